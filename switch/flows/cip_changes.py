"""Acts of an application's administration that need two persons: its keys and return addresses.

One administrator asks, another one agrees; only then it happens, in the same step. What nobody has
decided within a day lapses. A key is made when it is approved, and its secret is told once, to the
one who approves.
"""

from collections.abc import Callable, Iterator
from typing import Final

from core_ext import Records
from switch.flows import cip_records as rec
from switch.flows.cip_book import CipBook, CipRefusal
from switch.flows.cip_records import Application, Change
from switch.flows.step import Step
from switch.sections.cip import is_return_url

ROLE: Final = "cip"
TIMER: Final = "change"
SECOND_NS: Final = 1_000_000_000
LIFE_S: Final = 86_400
OPEN_MAX: Final = 20  # of one application
URLS_MAX: Final = 16
URL_CHARS_MAX: Final = 512

KEY_ADD: Final = "key_add"
KEY_ROTATE: Final = "key_rotate"
KEY_END: Final = "key_end"
RETURN_URLS: Final = "return_urls"
KINDS: Final = (KEY_ADD, KEY_ROTATE, KEY_END, RETURN_URLS)
ADMIN: Final = "admin"

REQUESTED: Final = "REQUESTED"
DONE: Final = "DONE"
REJECTED: Final = "REJECTED"
EXPIRED: Final = "EXPIRED"


class CipChanges:
    """All that was asked for and what became of it."""

    def __init__(self, records: Records, book: CipBook) -> None:
        self._records = records
        self._book = book

    # ---- finding

    def get(self, change_id: str) -> Change | None:
        found = self._records.get(rec.CHANGES, rec.name_key(change_id))
        return None if found is None else rec.decode_change(found)

    def of(self, application_id: str) -> list[Change]:
        """What waits for a second person, oldest first."""
        waiting = (change for change in self.unfinished() if change.application == application_id)
        return sorted(waiting, key=lambda change: change.id)

    def unfinished(self) -> Iterator[Change]:
        for _, value in self._records.open_items(rec.CHANGES):
            yield rec.decode_change(value)

    # ---- two persons

    def ask(
        self, step: Step, application: Application, what: str, values: dict[str, str], by: str
    ) -> Change:
        """One person asks.

        Args:
            values: `key_id` of a key that ends; `return_urls`, one a line, and
                `default_return_url`, of addresses.

        Raises:
            CipRefusal: `not_allowed` for who is no administrator, `invalid_fields`, `full`.
        """
        self._check_person(step, application, by, what)
        kept = _READ[what](application, values, step.now_ns) if what in _READ else None
        if kept is None:
            raise CipRefusal("invalid_fields", 422, what)
        if len(self.of(application.id)) >= OPEN_MAX:
            raise CipRefusal("full", 409, f"{OPEN_MAX} changes wait already")
        if not step.admitting:
            raise CipRefusal("overloaded", 503, "no room for new work")
        change = Change(
            self._book.identifier("chg_", step.now_ns), application.id, what, kept, by, step.now_ns
        )
        self._put(step, change)
        self._audit(step, change, "cip_change_asked", by)
        step.arm(ROLE, TIMER, change.id, LIFE_S)
        return change

    def approve(self, step: Step, change: Change, by: str) -> tuple[str, bytes] | None:
        """Another one agrees, and it happens; returns a new key's id and secret.

        Raises:
            CipRefusal: `not_allowed` for the one who asked and for no administrators,
                `wrong_state` for what is decided or has lapsed, or cannot be done any more.
        """
        application = self._second(step, change, by)
        made: tuple[str, bytes] | None = None
        match change.what:
            case "key_add":
                made = self._book.add_key(step, application)
            case "key_rotate":
                made = self._book.rotate_key(step, application)
            case "key_end":
                self._book.end_key(step, application, change.values["key_id"])
            case "return_urls":
                application.return_urls = tuple(change.values["return_urls"].split("\n"))
                application.default_return_url = change.values["default_return_url"]
                self._book.put_application(application)
            case _:
                raise AssertionError(change.what)
        self._decide(step, change, DONE, by)
        return made

    def reject(self, step: Step, change: Change, by: str) -> None:
        """Another one does not agree. Raises: CipRefusal, as `approve`."""
        self._second(step, change, by)
        self._decide(step, change, REJECTED, by)

    def _second(self, step: Step, change: Change, by: str) -> Application:
        application = self._book.application(change.application)
        assert application is not None, "changes name applications"
        self._check_person(step, application, by, change.id)
        if change.state != REQUESTED or self._is_over(step, change):
            raise CipRefusal("wrong_state", 409, "it is decided already, or has lapsed")
        if change.requested_by == by:
            self._refused(step, application, by, change.id, "same person")
            raise CipRefusal("not_allowed", 403, "who asked for it may not approve it")
        asker = self._book.user(change.application, change.requested_by)
        if asker is None or asker.disabled or asker.kind != ADMIN:
            raise CipRefusal("wrong_state", 409, "who asked for it is no administrator any more")
        return application

    def _check_person(self, step: Step, application: Application, by: str, subject: str) -> None:
        user = self._book.user(application.id, by)
        if user is None or user.disabled or user.kind != ADMIN:
            self._refused(step, application, by, subject, "role")
            raise CipRefusal("not_allowed", 403, "only administrators may")

    def _refused(
        self, step: Step, application: Application, by: str, subject: str, reason: str
    ) -> None:
        who = f"{application.id}:{by}"
        step.audit(who, "cip_change", subject, "refused", reason, security=True)

    def _decide(self, step: Step, change: Change, state: str, by: str) -> None:
        change.state, change.approved_by = state, by
        self._put(step, change)
        step.disarm(ROLE, TIMER, change.id)
        self._audit(step, change, f"cip_change_{state.lower()}", change.requested_by, second=by)

    def _audit(self, step: Step, change: Change, what: str, by: str, second: str = "") -> None:
        who = f"{change.application}:{by}"
        step.audit(who, what, change.id, "00", change.what, security=True, second=second)

    # ---- time

    def on_deadline(self, step: Step, change_id: str) -> None:
        change = self.get(change_id)
        if change is None or change.state != REQUESTED:
            return
        if not self._is_over(step, change):
            self.adopt(step, change)
            return
        change.state = EXPIRED
        self._put(step, change)
        self._audit(step, change, "cip_change_expired", change.requested_by)

    def adopt(self, step: Step, change: Change) -> None:
        left_ns = change.requested_ns + LIFE_S * SECOND_NS - step.now_ns
        step.arm(ROLE, TIMER, change.id, max(left_ns / SECOND_NS, 0.0))

    def _is_over(self, step: Step, change: Change) -> bool:
        return step.now_ns >= change.requested_ns + LIFE_S * SECOND_NS

    def _put(self, step: Step, change: Change) -> None:
        self._records.put(
            rec.CHANGES, change.id.encode(), rec.encode(change),
            open=change.state == REQUESTED, stamp=step.now_ns,
        )  # fmt: skip


def _nothing(
    application: Application, values: dict[str, str], now_ns: int
) -> dict[str, str] | None:
    return {}


def _key_of(application: Application, values: dict[str, str], now_ns: int) -> dict[str, str] | None:
    key_id = values.get("key_id", "")
    known = any(key.id == key_id and key.holds(now_ns) for key in application.keys)
    return {"key_id": key_id} if known else None


def _addresses(
    application: Application, values: dict[str, str], now_ns: int
) -> dict[str, str] | None:
    """The addresses, each usable and told once; the default one is among them, or is none."""
    urls = list(dict.fromkeys(u.strip() for u in values.get("return_urls", "").split("\n")))
    urls = [url for url in urls if url]
    default = values.get("default_return_url", "").strip()
    good = len(urls) <= URLS_MAX and all(
        len(url) <= URL_CHARS_MAX and is_return_url(url) for url in urls
    )
    if not urls or not good or default not in ("", *urls):
        return None
    return {"return_urls": "\n".join(urls), "default_return_url": default}


_READ: Final[
    dict[str, Callable[[Application, dict[str, str], int], dict[str, str] | None]]
] = {
    KEY_ADD: _nothing, KEY_ROTATE: _nothing, KEY_END: _key_of, RETURN_URLS: _addresses,
}  # fmt: skip
