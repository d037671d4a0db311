"""TransfiYa, profile v2: entries that the network's ledger prepares, commits and aborts.

Each call is decided and kept in one step and answered 202; what came of it is told by a proof over
the intent's hash, the same bytes until the ledger has taken them. A hold is a prepared entry, its
capture a commit, its release an abort, and neither of these two can fail.
"""

from typing import Any, Final

import msgspec
from msgspec import Struct

from core_ext import Records
from protocols.transfiya import check_record, encode, make_proof, make_record
from protocols.transfiya.ledger import ABORTED, COMMITTED, FAILED, PREPARED, REASONS, public_of
from protocols.transfiya.times import utc_text
from switch.flows.states import Moves, move
from switch.flows.step import Step
from switch.flows.transfiya_core import DONE, Core
from switch.flows.transfiya_jobs import OK, ROLE, BankSide, Job, Outcome, Shared, segment
from switch.flows.transfiya_records import DOWNLOAD, ENTRIES, UPLOAD, Item, SignerRecord, name_key

RETRY: Final = "v2-retry"
PREFIX: Final = "v2"
PARKED: Final = "parked"
FIRST_RETRY_S: Final = 0.25
RETRY_S_MAX: Final = 60.0
REFUSALS_MAX: Final = 3
HANDLE_CHARS_MAX: Final = 128
ACTS: Final = ("commit", "abort")

MOVES: Final[Moves] = {
    ("", "prepared"): PREPARED,
    ("", "failed"): FAILED,
    ("", "aborted"): ABORTED,  # of an entry never seen: it can never be prepared
    ("", "parked"): PARKED,  # a commit of an entry never seen: a person must look
    (PREPARED, "committed"): COMMITTED,
    (PREPARED, "aborted"): ABORTED,
    (FAILED, "aborted"): ABORTED,
}


class Entry(Struct, array_like=True):
    """One entry of an intent at this bank.

    Fields:
        hash: of the record that prepared it; another one under the same handle is refused.
        intent, intent_hash: what the proof is about. proof: the bytes that tell `state`.
        told: the ledger has taken them.
    """

    bank: str
    handle: str
    schema: str
    state: str
    intent: str
    intent_hash: str
    arrived_ns: int
    hash: str = ""
    account: str = ""
    currency: str = ""
    minor: int = 0
    core: str = ""
    reason: str = ""
    proof: bytes = b""
    told: bool = False
    refusals: int = 0
    history: list[tuple[str, int]] = msgspec.field(default_factory=list)

    @property
    def id(self) -> str:
        return f"{PREFIX}|{self.bank}|{self.handle}"

    @property
    def open(self) -> bool:
        """It owes a proof, or money is held for it."""
        return (not self.told and self.state != PARKED) or self.state == PREPARED


class Reply(Struct, frozen=True):
    """HTTP status and body."""

    status: int
    body: bytes


_decode = msgspec.msgpack.Decoder(Entry).decode
_ACCEPTED: Final = Reply(202, b"{}")


def _handle_of(value: Any) -> str:
    """A handle, plain or in an object."""
    found = value.get("handle") if isinstance(value, dict) else value
    return found if isinstance(found, str) and 0 < len(found) <= HANDLE_CHARS_MAX else ""


class Entries:
    """All entries of the banks that speak v2."""

    def __init__(self, shared: Shared, records: Records) -> None:
        self._shared = shared
        self._records = records
        self._live: dict[str, Entry] = {}
        self._dirty: dict[str, Entry] = {}
        self._tries: dict[str, int] = {}
        self._waiting: set[str] = set()

    # ---- store

    def named(self, entry_id: str) -> Entry | None:
        found = self._live.get(entry_id)
        if found is not None:
            return found
        raw = self._records.get(ENTRIES, name_key(entry_id))
        return None if raw is None else _decode(raw)

    def stored(self) -> list[Entry]:
        return [_decode(raw) for _, raw in self._records.items(ENTRIES)]

    def unfinished(self) -> list[Entry]:
        found = [_decode(raw) for _, raw in self._records.open_items(ENTRIES)]
        self._live |= {entry.id: entry for entry in found}
        return sorted(found, key=lambda entry: (entry.arrived_ns, entry.handle))

    def flush(self) -> None:
        for entry_id, entry in self._dirty.items():
            raw = msgspec.msgpack.encode(entry)
            self._records.put(
                ENTRIES, name_key(entry_id), raw, open=entry.open, stamp=entry.arrived_ns
            )
            if not entry.open:
                self._live.pop(entry_id, None)
                self._tries.pop(entry_id, None)
        self._dirty.clear()

    def _put(self, entry: Entry) -> None:
        self._dirty[entry.id] = self._live[entry.id] = entry

    # ---- taking in

    def take(self, step: Step, side: BankSide, path: str, value: Any, arrived_ns: int) -> Reply:
        """Decide about one call: `debits`, `credits`, or one of them with /{handle}/commit or
        /abort, or `intents/{handle}`, which only informs."""
        parts = path.split("/")
        if parts[0] == "intents":
            return _ACCEPTED
        reason = self._distrust(side, value)
        if reason:
            return self._refuse(step, side, parts[0], reason)
        data = value["data"]
        intent = data["intent"]
        handle = _handle_of(data.get("handle"))
        if not handle or (len(parts) == 3 and parts[1] != handle):
            return self._refuse(step, side, parts[0], "hash-invalid")
        known = self.named(f"{PREFIX}|{side.name}|{handle}")
        entry = known or Entry(
            bank=side.name, handle=handle, schema=parts[0][:-1], state="",
            intent=_handle_of(intent["data"].get("handle")), intent_hash=intent["hash"],
            arrived_ns=arrived_ns,
        )  # fmt: skip
        if len(parts) == 3:
            if data.get("action") != parts[2]:
                return self._refuse(step, side, parts[0], "hash-invalid")
            self._command(step, side, entry, parts[2])
        else:
            self._prepare(step, side, entry, value)
        step.call(ROLE, "go", entry.id)
        return _ACCEPTED

    def _distrust(self, side: BankSide, value: Any) -> str:
        """Why a record is not believed; empty: both it and its intent are whole and pinned."""
        pinned = public_of(side.settings.ledger_public)
        verdict, keys = check_record(value)
        if verdict != "ok":
            return verdict
        if pinned is not None and pinned not in keys:
            return "proof-invalid"
        verdict, _ = check_record(value["data"].get("intent"))
        return "" if verdict == "ok" else verdict

    def _refuse(self, step: Step, side: BankSide, endpoint: str, reason: str) -> Reply:
        self._shared.count("refusals", side.name, endpoint, reason)
        step.audit(f"transfiya:{side.name}", endpoint, "", "refused", reason)
        key = self._shared.ring.key(side.name, side.settings.bank_signer)
        data = {"reason": REASONS.get(reason, "record.schema-invalid"), "detail": reason}
        if key is None:
            return Reply(400, encode({"data": data}))
        return Reply(400, encode(make_record(data, {"moment": utc_text(step.now_ns)}, key)))

    def _prepare(self, step: Step, side: BankSide, entry: Entry, value: Any) -> None:
        if entry.state:
            self._shared.count("duplicates", side.name, entry.schema)
            if entry.hash == value["hash"] or entry.state == ABORTED:
                self._tell_again(entry)
            else:
                step.alarm("transfiya_duplicate_mismatch", entry.handle)
                self._report(step, side, entry, FAILED, "duplicate-mismatch")
            return
        entry.hash = value["hash"]
        reason = self._reserve(step, side, entry, value["data"])
        entry.reason = reason
        self._move(step, side, entry, "failed" if reason else "prepared")

    def _reserve(self, step: Step, side: BankSide, entry: Entry, data: Any) -> str:
        """Hold the amount; the reason why not, or empty."""
        amount, symbol = data.get("amount"), _handle_of(data.get("symbol"))
        party = "source" if entry.schema == "debit" else "target"
        handle = _handle_of(data.get(party))
        if not isinstance(amount, int) or isinstance(amount, bool) or amount <= 0:
            return "amount-invalid"
        if not any(
            claim.get("amount") == amount
            and _handle_of(claim.get("symbol")) == symbol
            and _handle_of(claim.get(party)) == handle
            for claim in data["intent"]["data"].get("claims", ())
            if isinstance(claim, dict)
        ):
            return "hash-invalid"
        row = side.settings.symbols.get(symbol)
        if row is None:
            return "symbol-unknown"
        signer = self._signer(side, handle)
        if signer is None:
            return "account-unknown"
        if signer.status != "active" or signer.currency != row.currency:
            return "account-inactive"
        entry.account, entry.currency, entry.minor = signer.account, signer.currency, amount
        work = self._work(entry)
        result = side.core.refusal(work, signer) or side.core.reserve(step, work, signer)
        entry.core = work.core
        return "" if result == DONE else result

    def _signer(self, side: BankSide, handle: str) -> SignerRecord | None:
        """Our customer behind an account reference."""
        for signer in self._shared.directory.signers(side.name):
            if handle and handle in (signer.alias, signer.account):
                return signer
        return None

    @staticmethod
    def _work(entry: Entry) -> Item:
        """The entry as the core sees it."""
        return Item(
            bank=entry.bank, key=f"{PREFIX}/{entry.handle}",
            kind=UPLOAD if entry.schema == "debit" else DOWNLOAD, purpose="", tx_ref=entry.intent,
            user="", symbol="", amount="", minor=entry.minor, source="", target="",
            arrived_ns=entry.arrived_ns, deadline_ns=0, core=entry.core,
        )  # fmt: skip

    def _command(self, step: Step, side: BankSide, entry: Entry, act: str) -> None:
        core: Core = side.core
        if act == "commit" and entry.state == PREPARED:
            core.post(step, self._work(entry))
            self._move(step, side, entry, "committed")
        elif act == "abort" and entry.state in ("", PREPARED, FAILED):
            if entry.state == PREPARED:
                core.undo(step, self._work(entry))
            self._move(step, side, entry, "aborted")
        elif act == "commit" and entry.state == "":
            self._move(step, side, entry, "parked")
            step.alarm("transfiya_parked", entry.handle, "a commit without a prepare")
        elif entry.state == (COMMITTED if act == "commit" else ABORTED):
            self._shared.count("duplicates", side.name, act)
            self._tell_again(entry)
        else:
            step.alarm("transfiya_contradiction", entry.handle, f"{act} of one {entry.state}")
            self._tell_again(entry)

    # ---- telling

    def _move(self, step: Step, side: BankSide, entry: Entry, event: str) -> None:
        entry.state = move(MOVES, entry.state, event)
        entry.history.append((entry.state, step.now_ns))
        self._shared.count("ended", side.name, entry.schema, PREFIX, entry.state)
        self._put(entry)
        if entry.state != PARKED:
            self._report(step, side, entry, entry.state, entry.reason)

    def _report(
        self, step: Step, side: BankSide, entry: Entry, status: str, reason: str = ""
    ) -> None:
        """Make the proof that tells a state; it is owed until the ledger has it."""
        custom: dict[str, Any] = {
            "handle": entry.handle, "status": status, "moment": utc_text(step.now_ns),
        }  # fmt: skip
        if entry.core and status != FAILED:
            custom["coreId"] = entry.core
        if status == FAILED:
            custom["reason"] = REASONS.get(reason, "bridge.core-unreachable")
            custom["detail"] = reason
        key = self._shared.ring.key(side.name, side.settings.bank_signer)
        assert key is not None, "a bank without its key does not start"
        entry.proof = encode(make_proof(entry.intent_hash, custom, key))
        entry.told = False
        self._put(entry)

    def _tell_again(self, entry: Entry) -> None:
        if entry.proof:
            entry.told, entry.refusals = False, 0
            self._put(entry)

    def advance(self, step: Step, entry_id: str) -> Job | None:
        entry = self.named(entry_id)
        if entry is None or entry.told or not entry.proof or entry_id in self._waiting:
            return None
        settings = self._shared.banks[entry.bank].settings
        path = settings.proofs_path.replace("{intent}", segment(entry.intent))
        return Job(entry.bank, entry_id, "proof", "POST", path, (), entry.proof)

    def on_outcome(self, step: Step, job: Job, outcome: Outcome) -> Job | None:
        entry = self.named(job.item)
        self._shared.count("calls", job.bank, job.call, outcome.status)
        if entry is None or entry.told:
            return None
        if entry.proof != job.body:
            return self.advance(step, job.item)  # it has another state to tell by now
        if outcome.status == OK:
            entry.told = True
        elif outcome.http and outcome.status == "refused":
            entry.refusals += 1
            if entry.refusals >= REFUSALS_MAX:
                entry.told = True
                step.alarm("transfiya_proof_refused", entry.handle)
        self._put(entry)
        if not entry.told:
            tries = self._tries[entry.id] = self._tries.get(entry.id, 0) + 1
            self._waiting.add(entry.id)
            step.arm(ROLE, RETRY, entry.id, min(FIRST_RETRY_S * 2 ** min(tries, 12), RETRY_S_MAX))
        else:
            self._tries.pop(entry.id, None)
        return None

    def on_deadline(self, step: Step, entry_id: str) -> None:
        self._waiting.discard(entry_id)
        step.call(ROLE, "go", entry_id)

    def adopt(self, step: Step, entry: Entry) -> None:
        self._shared.count("resumed", entry.bank, entry.state)
        if not entry.told:
            step.call(ROLE, "resume", entry.id)
