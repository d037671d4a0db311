"""ISO 8583 beside other codecs of Python, in one run: `python -m bench.micro.iso8583`.

The message is the 0200 of 17 elements and 181 bytes in iso87-ascii that the vectors have as
`87-auth-ecommerce` (there an 0100). Measured from Python, in batches as a turn has them:

    index       `decode_many` of 64 frames: checked whole, a Message each, no value made
    route       the same, and elements 2, 3, 11, 32, 37 and 41 of each
    all         the same, and `to_dict` of each: every element as a str in a dict
    encode      one `encode` of a dict of str at a time
    answer      one `answer` of a decoded message at a time, elements 38 and 39 set, 11 echoed
    turn        index, then an answer to each

Another codec is measured where it is installed (`pip install pyiso8583 py8583
starkbank-iso8583`): what it calls decoding against index, route and all; its encoding against
encode and answer, the decoded dict at hand; both against turn. starkbank-iso8583 has its own
layout, Mastercard's in EBCDIC. Rounds alternate, so that all meet the same moods of the machine.
Figures are messages a second: the median of the rounds, and the best.
"""

import argparse
import importlib
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

from core_ext._iso8583 import Message
from protocols.iso8583 import Dialect

BATCH = 64
ELEMENTS = {
    "2": "4111111111111111", "3": "000000", "4": "000000012345", "7": "0922143015", "11": "004217",
    "12": "113015", "13": "0922", "14": "2812", "18": "5411", "22": "010", "25": "59",
    "32": "123456", "37": "626511004217", "41": "TERM0042", "42": "MERCHANT0000042",
    "43": "TIENDA DE PRUEBA         MONTEVIDEO  UYU", "49": "858",
}  # fmt: skip
CHANGES = {"38": "A12345", "39": "00"}
ROUTING = ("2", "3", "11", "32", "37", "41")
RATES_WANTED = {"index": 2.0e6, "all": 1.0e6, "encode": 0.8e6, "answer": 1.0e6}
RATIO_WANTED = 25

Case = Callable[[], object]


def ours(dialect: Dialect) -> dict[str, Case]:
    """Our cases, each over one batch."""
    elements = {"mti": "0200", **ELEMENTS}
    frame = dialect.encode(elements)
    frames = [bytes(bytearray(frame)) for _ in range(BATCH)]
    decode_many, encode = dialect.decode_many, dialect.encode
    message = dialect.decode(frame)
    assert message.to_dict() == elements

    def decoded() -> list[Message]:
        return [m for m in decode_many(frames) if isinstance(m, Message)]

    def route() -> None:
        for m in decode_many(frames):
            for key in ROUTING:
                m[key]  # type: ignore[index]

    def everything() -> None:
        for m in decode_many(frames):
            m.to_dict()  # type: ignore[union-attr]

    def encode_all() -> None:
        for _ in range(BATCH):
            encode(elements)

    def answer_all() -> None:
        for _ in range(BATCH):
            message.answer(CHANGES)

    def turn() -> None:
        for m in decode_many(frames):
            m.answer(CHANGES)  # type: ignore[union-attr]

    assert len(decoded()) == BATCH
    return {
        "index": lambda: decode_many(frames), "route": route, "all": everything,
        "encode": encode_all, "answer": answer_all, "turn": turn,
    }  # fmt: skip


def against(decode: Case, encode: Case) -> dict[str, Case]:
    """Another codec's two ways, each over one batch, beside our cases."""

    def many(one: Case) -> Case:
        def batch() -> None:
            for _ in range(BATCH):
                one()

        return batch

    def both() -> None:
        for _ in range(BATCH):
            decode()
            encode()

    decoding, encoding = many(decode), many(encode)
    return {
        "index": decoding, "route": decoding, "all": decoding, "encode": encoding,
        "answer": encoding, "turn": both,
    }  # fmt: skip


def pyiso8583() -> dict[str, Case]:
    codec = importlib.import_module("iso8583")
    spec = importlib.import_module("iso8583.specs").default_ascii
    frame = Dialect.load("iso87-ascii").encode({"mti": "0200", **ELEMENTS})
    values, _ = codec.decode(frame, spec)
    assert {key: values[key] for key in ELEMENTS} == ELEMENTS
    given = {key: values[key] for key in ("t", *ELEMENTS)}
    assert bytes(codec.encode(dict(given), spec)[0]) == frame
    return against(lambda: codec.decode(frame, spec), lambda: codec.encode(dict(given), spec))


def py8583() -> dict[str, Case]:
    codec = importlib.import_module("py8583.py8583").Iso8583
    spec = importlib.import_module("py8583.py8583spec").IsoSpec1987ASCII
    frame = Dialect.load("iso87-ascii").encode({"mti": "0200", **ELEMENTS})
    known = spec()

    def decode() -> Any:
        return codec(IsoMsg=frame, IsoSpec=known)

    def encode() -> Any:
        message = codec(IsoSpec=known)
        message.MTI("0200")
        for key, value in ELEMENTS.items():
            number = int(key)
            message.Field(number, 1)
            message.FieldData(number, int(value) if known.ContentType(number) == "n" else value)
        return message.BuildIso()

    assert int(decode().FieldData(11)) == int(ELEMENTS["11"])
    assert len(encode()) > 100
    return against(decode, encode)


def starkbank() -> dict[str, Case]:
    message = importlib.import_module("starkbank.iso8583.message")
    layouts = importlib.import_module("starkbank.iso8583.template.mastercard")
    template = layouts.mastercard
    given = {"MTI": "0200", **{f"DE{int(key):03}": value for key, value in ELEMENTS.items()}}
    frame = message.unparse(given, template, "cp500")
    assert message.parse(frame, template, "cp500")["DE011"] == ELEMENTS["11"]
    return against(
        lambda: message.parse(frame, template, "cp500"),
        lambda: message.unparse(given, template, "cp500"),
    )


PEERS = {"pyiso8583": pyiso8583, "py8583": py8583, "starkbank-iso8583": starkbank}


def installed() -> dict[str, dict[str, Case]]:
    found = {}
    for name, make in PEERS.items():
        try:
            found[name] = make()
        except Exception as error:  # whatever a codec that is not there, or not well, raises
            print(f"{name}: not measured ({type(error).__name__}: {error})", file=sys.stderr)
    return found


def seconds(case: Case, times: int) -> float:
    began = time.perf_counter()
    for _ in range(times):
        case()
    return time.perf_counter() - began


def measure(
    codecs: dict[str, dict[str, Case]], rounds: int, round_s: float
) -> list[dict[str, Any]]:
    """Rates of every case of every codec, in rounds that alternate."""
    times = {
        (name, case): max(1, int(round_s / max(seconds(run, 1), 1e-7)))
        for name, cases in codecs.items()
        for case, run in cases.items()
    }
    rates: dict[tuple[str, str], list[float]] = {key: [] for key in times}
    for _ in range(rounds):
        for (name, case), count in times.items():
            took = seconds(codecs[name][case], count)
            rates[name, case].append(BATCH * count / took)
    return [
        {
            "codec": name,
            "case": case,
            "median_per_s": round(statistics.median(found)),
            "best_per_s": round(max(found)),
        }
        for (name, case), found in rates.items()
    ]


def judged(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Our rows, each with the ratio to every other codec by medians, and what was wanted."""
    of = {(row["codec"], row["case"]): row["median_per_s"] for row in rows}
    out = []
    for row in rows:
        if not row["codec"].startswith("troncal"):
            continue
        ratios = {
            name: round(row["median_per_s"] / of[name, row["case"]], 1)
            for name in PEERS
            if (name, row["case"]) in of
        }
        out.append({**row, "ratios": ratios, "wanted_per_s": RATES_WANTED.get(row["case"])})
    return out


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--round-s", type=float, default=0.05, help="seconds a case and round")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    codecs = {
        "troncal iso87-ascii": ours(Dialect.load("iso87-ascii")),
        "troncal iso87-binary": ours(Dialect.load("iso87-binary")),
        "troncal iso87-ebcdic": ours(Dialect.load("iso87-ebcdic")),
        **installed(),
    }
    rows = measure(codecs, options.rounds, options.round_s)
    if options.json:
        print(json.dumps({"rows": rows, "judged": judged(rows)}))
        return 0
    print(f"{'codec':22}{'case':10}{'median/s':>12}{'best/s':>12}   times as fast as")
    ratios = {(row["codec"], row["case"]): row["ratios"] for row in judged(rows)}
    for row in rows:
        beside = ratios.get((row["codec"], row["case"]), {})
        text = ", ".join(f"{name} {ratio}" for name, ratio in beside.items())
        figures = f"{row['median_per_s']:>12,}{row['best_per_s']:>12,}"
        print(f"{row['codec']:22}{row['case']:10}{figures}   {text}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
