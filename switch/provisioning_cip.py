"""What operators change of the payment application: applications, users, keys, reports.

Passwords are hashed where they are typed, so a running node never waits for a hash: what comes here
is the hash. Keys are returned once, when they are made.
"""

import secrets
from collections.abc import Callable
from typing import Any, Final, TypeVar

import msgspec

from protocols.cip import shown_code
from switch.admin_socket import ProvisioningError
from switch.flows import cip_records as rec
from switch.flows.cip import CipFlow
from switch.flows.cip_book import CipBook, CipRefusal
from switch.flows.cip_records import Application, ReportRun, User
from switch.flows.cip_reports import utc_text
from switch.flows.cip_sources import LedgerSource, SimulatedSource
from switch.flows.step import Arm, Call, Disarm, Step
from switch.node import Node
from switch.ops.keys import MasterKey
from switch.sections.cip import CipApplication, application_findings, is_address

COMMANDS: Final = (
    "cip_app_add", "cip_app_list", "cip_app_set", "cip_user_add", "cip_user_list",
    "cip_user_hashes", "cip_user_password", "cip_user_email", "cip_user_state", "cip_key_add",
    "cip_key_rotate", "cip_key_list", "cip_key_end", "cip_report_run", "cip_report_send",
    "cip_report_list", "cip_own_keys",
)  # fmt: skip

EXAMPLES: Final = {
    "return_urls": """'return_urls=["https://sof.example/back"]'""",
    "report_hours": """'report_hours=["18:00"]'""",
    "modes": """'modes=["gateway", "partial"]', or --modes gateway,partial""",
    "amount": """'amount={"currency": "PYG", "min": 1, "max": 5000000}'""",
    "fee": """'fee={"fixed": 100, "basis_points": 50}'""",
    "fields": """'fields=[{"name": "account", "label": "Account", "required": true}]'""",
    "addresses": """'addresses=["10.0.0.0/8"]'""",
}
"""What people type in a shell, by key."""

Answer = dict[str, Any]
T = TypeVar("T")


class Sealed:
    """The flow's view of the master key."""

    def __init__(self, master: MasterKey) -> None:
        self._master = master

    def seal(self, secret: bytes, owner: str) -> bytes:
        return self._master.seal(secret, purpose="product-keys", owner=owner)

    def open(self, sealed: bytes, owner: str) -> bytes:
        return self._master.open(sealed, purpose="product-keys", owner=owner)


def flow_of(node: Node) -> CipFlow:
    """The flow on a node's state, with the sources that need nothing outside of it."""
    flow = CipFlow(
        section=node.config.cip,
        records=node.store.records,
        vault=Sealed(node.master),
        chance=secrets.token_bytes,
    )
    flow.sources["simulator"] = SimulatedSource(node.store.records, flow)
    flow.sources["ledger"] = LedgerSource(node.store.ledger, node.limits, node.registry)
    return flow


class CipCommands:
    """Commands on the payment application of one node, running or not."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._own: CipFlow | None = None

    @property
    def _flow(self) -> CipFlow:
        """The flow that the node plays; of a node that plays none, one on its state."""
        for product in self._node.products:
            if isinstance(product, CipFlow):
                return product
        if self._own is None:
            self._own = flow_of(self._node)
        return self._own

    @property
    def _book(self) -> CipBook:
        return self._flow.book

    # ---- applications

    def cip_app_add(
        self, step: Step, id: str, name: str = "", modes: list[str] | None = None,
        source: str = "simulator", values: dict[str, Any] | None = None,
    ) -> Answer:  # fmt: skip
        """`values`: any key of the section [cip.application.ID]."""
        _check_id(id)
        given: dict[str, Any] = {**(values or {}), "name": name, "source": source}
        if modes is not None:
            given["modes"] = modes
        section = _section(id, given)
        application = _told(lambda: self._book.add_application(step, id, section))
        self._audit(step, "cip.app.add", id)
        self._flow.applications_changed(step, application)
        self._leave_calls(step)
        return {"application": id, "app_no": application.app_no}

    def cip_app_set(self, step: Step, id: str, values: dict[str, Any]) -> Answer:
        """Change keys of an application, as in its section."""
        application = self._application(id)
        present = {
            field.name: getattr(application, {"partial_variants": "variants"}.get(
                field.name, field.name))
            for field in msgspec.structs.fields(CipApplication)
        }  # fmt: skip
        section = _section(id, {**msgspec.to_builtins(present), **values})
        _told(lambda: self._book.configure(step, {id: section}))
        self._audit(step, "cip.app.set", id, ",".join(sorted(values)))
        self._flow.applications_changed(step, application)
        self._leave_calls(step)
        return _shown_application(application)

    def cip_app_list(self, step: Step) -> list[Answer]:
        return [_shown_application(application) for application in self._book.applications()]

    # ---- users

    def cip_user_add(
        self, step: Step, application: str, user: str, kind: str, hash: str, email: str = ""
    ) -> Answer:
        """`hash`: of the password, argon2id."""
        self._application(application)
        if not _is_user_id(user):
            raise ValueError("a user has 1 to 64 letters, digits, '.', '_', '@' or '-'")
        if kind not in rec.USER_KINDS:
            raise ValueError(f"a user is one of {', '.join(rec.USER_KINDS)}")
        if self._book.user(application, user) is not None:
            raise ValueError(f"user {user} of {application} exists")
        _check_hash(hash)
        _check_email(email)
        made = User(application, user, kind, [hash], created_ns=step.now_ns, email=email)
        self._book.put_user(made)
        self._audit(step, "cip.user.add", f"{application}:{user}", kind)
        return {"application": application, "user": user}

    def cip_user_list(self, step: Step, application: str) -> list[Answer]:
        self._application(application)
        return [
            {
                "user": u.id,
                "kind": u.kind,
                "disabled": u.disabled,
                "created": utc_text(u.created_ns),
            }
            for u in sorted(self._book.users(application), key=lambda user: user.id)
        ]  # fmt: skip

    def cip_user_hashes(self, step: Step, application: str, user: str) -> list[str]:
        """Hashes of the present password and those before it: a new one must be none of them."""
        return list(self._user(application, user).hashes)

    def cip_user_password(self, step: Step, application: str, user: str, hash: str) -> Answer:
        known = self._user(application, user)
        _check_hash(hash)
        self._book.set_password(known, hash)
        self._book.unlock(known)
        self._audit(step, "cip.user.password", f"{application}:{user}")
        return {"application": application, "user": user}

    def cip_user_email(self, step: Step, application: str, user: str, email: str) -> Answer:
        """Where the link goes that unlocks him; empty: nowhere."""
        known = self._user(application, user)
        _check_email(email)
        known.email = email
        self._book.put_user(known)
        self._audit(step, "cip.user.email", f"{application}:{user}")
        return {"application": application, "user": user, "email": email}

    def cip_user_state(self, step: Step, application: str, user: str, what: str) -> Answer:
        """`what`: unlock, disable or enable."""
        known = self._user(application, user)
        if what == "unlock":
            self._book.unlock(known)
        elif what in ("disable", "enable"):
            known.disabled = what == "disable"
            known.epoch += 1
            self._book.put_user(known)
        else:
            raise ValueError("unlock, disable or enable")
        self._audit(step, f"cip.user.{what}", f"{application}:{user}")
        return {"application": application, "user": user, "disabled": known.disabled}

    # ---- keys

    def cip_key_add(self, step: Step, application: str) -> Answer:
        found = self._application(application)
        key_id, secret = _told(lambda: self._book.add_key(step, found))
        self._audit(step, "cip.key.add", application, key_id)
        return {"application": application, "key_id": key_id, "key": secret.hex()}

    def cip_key_rotate(self, step: Step, application: str) -> Answer:
        found = self._application(application)
        key_id, secret = _told(lambda: self._book.rotate_key(step, found))
        self._audit(step, "cip.key.rotate", application, key_id)
        return {"application": application, "key_id": key_id, "key": secret.hex()}

    def cip_key_end(self, step: Step, application: str, key_id: str) -> Answer:
        """A key stops being valid now."""
        found = self._application(application)
        _told(lambda: self._book.end_key(step, found, key_id))
        self._audit(step, "cip.key.end", application, key_id)
        return {"application": application, "key_id": key_id}

    def cip_key_list(self, step: Step, application: str) -> list[Answer]:
        return [
            {
                "key_id": key.id, "from": utc_text(key.from_ns), "until": utc_text(key.until_ns),
                "valid": key.holds(step.now_ns),
            }
            for key in self._application(application).keys
        ]  # fmt: skip

    def cip_own_keys(self, step: Step) -> Answer:
        """Make the node's own two keys, where they are kept here and are not made yet."""
        section = self._node.config.cip
        kept = [
            name.removeprefix("keystore:")
            for name in (section.confirmation_key, section.idempotency_key)
            if name.startswith("keystore:")
        ]
        for name in kept:
            self._book.own_key(name)
        return {"keys": kept}

    # ---- reports

    def cip_report_run(self, step: Step, application: str) -> Answer:
        """A run of everything up to now."""
        found = self._application(application)
        run = self._flow.reports.cut(step, found, step.now_ns)
        if run is None:
            raise ValueError("this moment has its report already")
        self._audit(step, "cip.report.run", application, run.id)
        self._leave_calls(step)
        return shown_run(run)

    def cip_report_send(self, step: Step, run: str) -> Answer:
        """Send a run again, under a new id. `run`: or an application, for its newest one."""
        if self._book.application(run) is not None:
            own = [r.id for r in self._flow.reports.runs(run) if not r.repeats]
            if not own:
                raise ValueError(f"{run} has no report yet")
            run = own[-1]
        repeat = _told(lambda: self._flow.reports.repeat(step, run))
        self._audit(step, "cip.report.send", repeat.application, repeat.id)
        self._leave_calls(step)
        return shown_run(repeat)

    def cip_report_list(self, step: Step, application: str) -> list[Answer]:
        self._application(application)
        return [shown_run(run) for run in self._flow.reports.runs(application)]

    # ---- common

    def _leave_calls(self, step: Step) -> None:
        """On a node that does not play the product nobody makes calls: the next start repeats what
        is owed, and arms its timers."""
        if self._own is not None:
            step.effects[:] = [
                effect for effect in step.effects if not isinstance(effect, Call | Arm | Disarm)
            ]

    def _application(self, name: str) -> Application:
        found = self._book.application(name)
        if found is None:
            raise ProvisioningError(f"there is no application {name}", "troncal cip app list")
        return found

    def _user(self, application: str, user: str) -> User:
        self._application(application)
        found = self._book.user(application, user)
        if found is None:
            raise ProvisioningError(
                f"there is no user {user} of {application}", f"troncal cip user list {application}"
            )
        return found

    def _audit(self, step: Step, what: str, subject: str, reason: str = "") -> None:
        step.audit("operator", what, subject, "00", reason)


def shown_run(run: ReportRun) -> Answer:
    """A report run for people and `--json`."""
    return {
        "run": run.id, "application": run.application, "sequence": run.sequence,
        "state": run.state, "lines": run.lines, "cut": utc_text(run.cut_ns),
        "sha256": run.sha256, "repeats": run.repeats,
    }  # fmt: skip


def shown_payment(row: Any) -> Answer:
    """A payment of the read model for people and `--json`."""
    return {
        "payment_id": row.payment_id, "client_ref": row.client_ref,
        "application": row.application, "mode": row.mode, "status": row.status,
        "amount": row.amount, "fee": row.fee, "currency": row.currency,
        "cip": shown_code(row.cip) if row.cip else "", "source_code": row.source_code,
        "source": row.source, "instrument": row.instrument, "refunded": row.refunded,
        "created": utc_text(row.created_ns), "confirmed": utc_text(row.confirmed_ns),
        "run": row.run,
    }  # fmt: skip


def _shown_application(application: Application) -> Answer:
    return {
        "application": application.id, "app_no": application.app_no, "name": application.name,
        "modes": list(application.modes), "source": application.source,
        "timezone": application.timezone, "return_urls": list(application.return_urls),
        "keys": len(application.keys),
    }  # fmt: skip


def _check_id(name: str) -> None:
    allowed = set("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")
    if not (3 <= len(name) <= 16 and set(name) <= allowed):
        raise ValueError("an application has 3 to 16 capital letters, digits, '_' or '-'")


def _is_user_id(name: str) -> bool:
    rest = name.replace(".", "").replace("_", "").replace("@", "").replace("-", "")
    return 1 <= len(name) <= 64 and name.isascii() and (rest.isalnum() or not rest)


def _check_hash(text: str) -> None:
    if not text.startswith("$argon2id$") or len(text) > 256:
        raise ValueError("a password comes as its argon2id hash")


def _check_email(text: str) -> None:
    if text and not is_address(text):
        raise ValueError("that is no address a mail can be sent to")


def _section(name: str, values: dict[str, Any]) -> CipApplication:
    """Raises: ValueError, naming the key that cannot be."""
    unknown = set(values) - {field.name for field in msgspec.structs.fields(CipApplication)}
    if unknown:
        known = ", ".join(field.name for field in msgspec.structs.fields(CipApplication))
        raise ProvisioningError(f"there is no key {', '.join(sorted(unknown))}", f"keys: {known}")
    try:
        section = msgspec.convert(values, CipApplication)
    except msgspec.ValidationError as error:
        what, _, where = str(error).replace("`", "").partition(" - at $.")
        raise ProvisioningError(
            f"{where or 'a key'}: {what[:1].lower()}{what[1:]}",
            f"KEY=JSON, as {EXAMPLES.get(where.partition('[')[0], EXAMPLES['return_urls'])}",
        ) from None
    for where_, what, hint in application_findings((name,), section):
        raise ProvisioningError(f"{'.'.join(where_[1:])} {what}", hint)
    return section


def _told(do: Callable[[], T]) -> T:
    try:
        return do()
    except CipRefusal as refusal:
        raise ValueError(str(refusal)) from None
