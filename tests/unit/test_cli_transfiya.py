"""`troncal transfiya`: IOUs and records checked from a file, keys and signers on a stopped node."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from switch.cli import root
from switch.cli.apart import free_port

FILE = Path(__file__).parents[1] / "vectors" / "transfiya.json"
VECTORS: dict[str, Any] = json.loads(FILE.read_text())


def run(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(root, list(words), catch_exceptions=False)
    return result.exit_code, result.output


@pytest.mark.parametrize(
    "name", ["signature-lower-case", "amount-changed", "signed-by-stranger", "amount-comma"]
)
def test_verify_an_iou(tmp_path: Path, name: str) -> None:
    case = next(one for one in VECTORS["v1"]["verify"] if one["name"] == name)
    file = tmp_path / "iou.json"
    file.write_text(json.dumps(case["iou"]))
    code, output = run("transfiya", "verify", str(file))
    assert (code, output.strip()) == (int(case["expect"] != "ok"), case["expect"])


def test_verify_against_an_action(tmp_path: Path) -> None:
    for case in VECTORS["v1"]["match"]:
        iou, action = tmp_path / "iou.json", tmp_path / "action.json"
        iou.write_text(json.dumps(case["iou"]))
        action.write_text(json.dumps(case["action"]))
        _, output = run(
            "transfiya", "verify", str(iou), "--action", str(action), "--at", case["now"]
        )
        assert output.strip() == case["expect"]


def test_verify_a_record(tmp_path: Path) -> None:
    case = VECTORS["v2"]["published_intents"][0]
    file = tmp_path / "record.json"
    record = {"hash": case["hash"], "data": case["data"], "meta": {"proofs": case["proofs"]}}
    file.write_text(json.dumps(record))
    assert run("transfiya", "verify", str(file))[0] == 0
    file.write_text(json.dumps({**record, "hash": "0" * 64}))
    assert run("transfiya", "verify", str(file)) == (1, "hash-invalid\n")
    file.write_text("no JSON")
    assert run("transfiya", "verify", str(file))[0] == 1


def test_keys_and_signers(tmp_path: Path) -> None:
    directory = tmp_path / "node"
    assert run("init", str(directory))[0] == 0
    where = ("-c", str(directory / "troncal.toml"), "--json")
    code, output = run("transfiya", "key", "new", "settlement", *where)
    key = json.loads(output)
    assert code == 0
    assert key["handle"].startswith("w")
    assert run("transfiya", "key", "new", "settlement", *where)[0] == 1
    assert json.loads(run("transfiya", "key", "list", *where)[1]) == [key]
    with (directory / "troncal.toml").open("a") as file:
        file.write(
            '\n[[transfiya.bank]]\nid = "rojo"\ninbound_auth = "none"\n'
            f'bank_signer = "{key["handle"]}"\nnetwork_url = "http://127.0.0.1:{free_port()}/v1"\n'
        )
    run("transfiya", "key", "new", "ana", *where)
    add = ("transfiya", "signer", "add", "rojo", "1001", "--key", "ana", "--balance", "100")
    add += ("--offline",)
    signer = json.loads(run(*add, *where)[1])
    assert signer["known"] is True
    assert (signer["bank"], signer["account"], signer["status"]) == ("rojo", "1001", "active")
    assert run(*add, *where)[0] == 1
    change = ("transfiya", "signer", "set", "rojo", signer["handle"], "inactive")
    assert json.loads(run(*change, *where)[1])["status"] == "inactive"
    assert json.loads(run("transfiya", "signer", "list", *where)[1])[0]["status"] == "inactive"
    assert json.loads(run("transfiya", "items", *where)[1]) == []
    # Nobody is there to be told: the signer stays, and the command says so.
    run("transfiya", "key", "new", "eva", *where)
    code, output = run("transfiya", "signer", "add", "rojo", "1002", "--key", "eva", *where)
    assert code == 1
    assert "does not take it: no answer" in output
    eva = json.loads(run("transfiya", "signer", "list", *where)[1])[1]
    assert (eva["account"], eva["known"]) == ("1002", False)
    assert f"signer register rojo {eva['handle']}" in output
    code, output = run("transfiya", "signer", "register", "rojo", "w1", *where)
    assert (code, "rojo has no signer w1" in output) == (1, True)
    code, output = run("transfiya", "signer", "register", "azul", "w1", *where)
    assert (code, "there is no bank azul" in output) == (1, True)
    # Nothing is kept of what is refused.
    refused = {
        ("--currency", "XXX"): "has no currency XXX",
        ("--key", "nobody"): "there is no key nobody",
        (): "account 1001 has a signer",
    }
    for words, told in refused.items():
        more = ("transfiya", "signer", "add", "rojo", "1001" if not words else "1003")
        code, output = run(*more, "--key", "eva", *words, "--offline", *where)
        assert (code, told in output) == (1, True), output
    assert len(json.loads(run("transfiya", "signer", "list", *where)[1])) == 2
    code, output = run("transfiya", "key", "new", "no name!", *where)
    assert (code, "a key has no such name" in output) == (1, True)
    assert run("transfiya", "items", "--state", "nonsense", *where)[0] == 2
