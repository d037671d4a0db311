"""TransfiYa, profile v2: entries that the network's ledger prepares, commits and aborts.

Each call is decided and kept in one step and answered 202; what came of it is told by a proof over
the intent's hash, the same bytes until the ledger has taken them. A hold is a prepared entry, its
capture a commit, its release an abort, and neither of these two can fail. A core that answers later
has states of its own between them, in which nothing is told.
"""

from collections.abc import Callable
from typing import Any, Final

import msgspec
from msgspec import Struct

from core_ext import Records
from protocols.transfiya import check_record, encode, make_proof, make_record
from protocols.transfiya.ledger import ABORTED, COMMITTED, FAILED, PREPARED, REASONS, public_of
from protocols.transfiya.times import utc_text
from switch.flows.states import Moves, move
from switch.flows.step import Step
from switch.flows.transfiya_bank import Movement
from switch.flows.transfiya_core import DONE
from switch.flows.transfiya_jobs import OK, ROLE, BankSide, Job, Outcome, Passed, Shared, segment
from switch.flows.transfiya_records import (
    DOWNLOAD,
    ENTRIES,
    ENTRY_PARKED,
    LATER,
    POSTING,
    PREFIX,
    UNDOING,
    UPLOAD,
    Entry,
    Item,
    SignerRecord,
    name_key,
)

RETRY: Final = "v2-retry"
PARKED: Final = ENTRY_PARKED
PREPARING: Final = "preparing"
COMMITTING: Final = "committing"
ABORTING: Final = "aborting"
TOLD: Final = frozenset((PREPARED, FAILED, COMMITTED, ABORTED))
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
    # With a core that answers later:
    ("", "preparing"): PREPARING,
    (PREPARING, "prepared"): PREPARED,
    (PREPARING, "failed"): FAILED,
    (PREPARED, "committing"): COMMITTING,
    (COMMITTING, "committed"): COMMITTED,
    (PREPARING, "aborting"): ABORTING,
    (PREPARED, "aborting"): ABORTING,
    (FAILED, "aborting"): ABORTING,  # what a lost answer may have held is given back still
    (ABORTING, "aborted"): ABORTED,
}


class Reply(Struct, frozen=True):
    """HTTP status and body."""

    status: int
    body: bytes


_decode = msgspec.msgpack.Decoder(Entry).decode
Act = Callable[[Step, Item], str]
_ACCEPTED: Final = Reply(202, b"{}")


def _passed_of(entry: Entry) -> Passed:
    return Passed(
        entry.id, entry.bank, entry.schema.upper(), PREFIX, entry.intent, entry.handle,
        entry.state, entry.reason,
    )  # fmt: skip


def _nothing(step: Step, item: Item) -> str:
    """Undo what was never done."""
    return DONE


def _gone(entry: Entry) -> bool:
    return entry.state in (ABORTED, ABORTING)


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
        if verdict == "ok" and pinned is not None and pinned not in keys:
            verdict = "proof-invalid"
        if verdict == "ok":
            verdict, _ = check_record(value["data"].get("intent"))
        self._shared.count("iou_check", verdict)
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
        result = self._reserve(step, side, entry, value["data"])
        if result == LATER:
            self._move(step, side, entry, "preparing")
        else:
            self._prepared(step, side, entry, result)

    def _prepared(self, step: Step, side: BankSide, entry: Entry, result: str) -> None:
        """Phase 1 is over: done, or not for a reason."""
        entry.core_state = result if result == DONE else ""
        entry.reason = "" if result == DONE else result
        self._move(step, side, entry, "failed" if entry.reason else "prepared")

    def _reserve(self, step: Step, side: BankSide, entry: Entry, data: Any) -> str:
        """Hold the amount: done, later, or the reason why not."""
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
        entry.core, entry.core_state = work.core, result if result == LATER else ""
        return result

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
            arrived_ns=entry.arrived_ns, deadline_ns=0, core=entry.core, core_ref=entry.core,
            core_state=entry.core_state, held=True,
        )  # fmt: skip

    def _command(self, step: Step, side: BankSide, entry: Entry, act: str) -> None:
        if act == "commit" and entry.state == PREPARED:
            self._act(step, side, entry, side.core.post, POSTING)
        elif act == "abort" and entry.state == "":
            self._move(step, side, entry, "aborted")
        elif act == "abort" and entry.state in (PREPARING, PREPARED, FAILED):
            touched = entry.state != FAILED or entry.core_state != ""
            self._act(step, side, entry, side.core.undo if touched else _nothing, UNDOING)
        elif act == "commit" and entry.state == "":
            self._move(step, side, entry, "parked")
            step.alarm("transfiya_parked", entry.handle, "a commit without a prepare")
        elif entry.state in (COMMITTED, COMMITTING) if act == "commit" else _gone(entry):
            self._shared.count("duplicates", side.name, act)
            if entry.state in TOLD:
                self._tell_again(entry)
        else:
            step.alarm("transfiya_contradiction", entry.handle, f"{act} of one {entry.state}")
            if entry.state in TOLD:
                self._tell_again(entry)

    def _act(self, step: Step, side: BankSide, entry: Entry, act: Act, phase: str) -> None:
        """Commit or abort in the core; its end is told at once, or when it comes."""
        events = ("committed", "committing") if phase == POSTING else ("aborted", "aborting")
        if act(step, self._work(entry)) == LATER:
            entry.core_state = phase
            self._move(step, side, entry, events[1])
        else:
            entry.core_state = DONE
            self._move(step, side, entry, events[0])

    # ---- a core that answers later; names are ids of entries

    def movement(self, name: str) -> Movement | None:
        entry = self._of_core(name)
        if entry is None or not entry.core:
            return None
        asked = entry.core_state != LATER or entry.state == PREPARING
        return Movement(
            entry.core_state if asked else "", entry.core, entry.minor, entry.currency,
            entry.account, entry.schema == "debit", held=True,
        )  # fmt: skip

    def _of_core(self, name: str) -> Entry | None:
        """The entry behind the name that `_work` gives an item."""
        bank, _, key = name.partition("|")
        return self.named(f"{PREFIX}|{bank}|{key.removeprefix(f'{PREFIX}/')}")

    def _under_way(self, name: str) -> tuple[Entry, BankSide]:
        entry = self._of_core(name)
        assert entry is not None, "its movement was found"
        return entry, self._shared.banks[entry.bank]

    def core_answered(self, step: Step, name: str, result: str) -> None:
        entry, side = self._under_way(name)
        self._prepared(step, side, entry, result)
        step.call(ROLE, "go", entry.id)

    def core_lost(self, step: Step, name: str) -> None:
        entry, side = self._under_way(name)
        self._lost(step, side, entry)
        step.call(ROLE, "go", entry.id)

    def _lost(self, step: Step, side: BankSide, entry: Entry) -> None:
        """Nobody knows whether it is held: told as failed, and undone until the core takes it."""
        self._prepared(step, side, entry, "core-unknown")
        side.core.undo(step, self._work(entry))
        entry.core_state = UNDOING

    def core_posted(self, step: Step, name: str) -> None:
        entry, side = self._under_way(name)
        entry.core_state = DONE
        self._move(step, side, entry, "committed")
        step.call(ROLE, "go", entry.id)

    def core_undone(self, step: Step, name: str) -> None:
        entry, side = self._under_way(name)
        entry.core_state = ""
        self._shared.count("core_undo", entry.bank, side.settings.core)
        self._put(entry)
        if entry.state == ABORTING:
            self._move(step, side, entry, "aborted")
            step.call(ROLE, "go", entry.id)

    # ---- telling

    def _move(self, step: Step, side: BankSide, entry: Entry, event: str) -> None:
        entry.state = move(MOVES, entry.state, event)
        entry.history.append((entry.state, step.now_ns))
        self._shared.passed.append(_passed_of(entry))
        if entry.state in TOLD or entry.state == PARKED:
            self._shared.count("ended", side.name, entry.schema, PREFIX, entry.state)
        self._put(entry)
        if entry.state in TOLD:
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

    def standing(self, entry_id: str) -> Passed | None:
        """The state of an entry."""
        entry = self.named(entry_id)
        return None if entry is None else _passed_of(entry)

    def tries(self, entry_id: str) -> int:
        """How often what it owes was told in vain."""
        return self._tries.get(entry_id, 0)

    def on_deadline(self, step: Step, entry_id: str) -> None:
        self._waiting.discard(entry_id)
        step.call(ROLE, "go", entry_id)

    def adopt(self, step: Step, entry: Entry) -> None:
        self._shared.count("resumed", entry.bank, entry.state)
        side = self._shared.banks[entry.bank]
        if entry.core_state and side.core.adopt(step, self._work(entry)):
            self._lost(step, side, entry)
        if not entry.told:
            step.call(ROLE, "resume", entry.id)
