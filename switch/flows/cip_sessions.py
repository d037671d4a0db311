"""Sessions of customers and of the service desk, on the server only.

A browser holds a secret, kept here as its hash; the session's own name is public and opens nothing.
The secret changes when somebody logs in, so one that was planted before is worth nothing after.
"""

from collections.abc import Callable, Iterator
from hashlib import sha256
from typing import Final

import msgspec

from core_ext import Records
from switch.flows import cip_records as rec
from switch.flows.cip_book import CipBook, CipRefusal
from switch.flows.cip_records import Application, Context, Session, User
from switch.flows.step import Step
from switch.sections.cip import SessionTimes

ROLE: Final = "cip"
TIMER: Final = "session"
SECOND_NS: Final = 1_000_000_000

PARTIAL: Final = "partial"
FULL: Final = "full"
DESK: Final = "desk"


class CipSessions:
    """All sessions; `expired` is told of each that ends by itself, while it is still as it was."""

    def __init__(
        self,
        records: Records,
        book: CipBook,
        times: SessionTimes,
        expired: Callable[[Step, Session], None],
    ) -> None:
        self._records = records
        self._book = book
        self.times = times
        self._expired = expired
        self.open_by_kind = dict.fromkeys((PARTIAL, FULL, DESK), 0)

    # ---- making

    def issue(
        self, step: Step, application: Application, context: Context, context_hash: bytes
    ) -> tuple[Session, str]:
        """A session for a signed context, and the secret of its one-time address."""
        session = self._new(step, PARTIAL, application, "issued")
        session.context = context
        session.context_hash = context_hash
        session.signed = True
        return session, self.renew_address(step, session)

    def renew_address(self, step: Step, session: Session) -> str:
        """Another one-time address for a session; the one before it opens nothing any more."""
        if session.address:
            self._records.delete(rec.COOKIES, session.address)
        secret = self._book.secret().hex()
        session.address = _hash("address", secret)
        session.address_until_ns = step.now_ns + self.times.context_ttl_s * SECOND_NS
        self._index(step, session.address, session)
        self.put(step, session)
        return secret

    def open_address(self, step: Step, secret: str) -> tuple[Session, str]:
        """Open the session of a one-time address, once.

        Raises:
            CipRefusal: unknown, used, or too old.
        """
        session = self._by_hash(_hash("address", secret))
        if (
            session is None
            or session.address != _hash("address", secret)
            or not session.is_open
            or step.now_ns >= session.address_until_ns
        ):
            raise CipRefusal("not_found", 404, "the address was used, or is too old")
        self._records.delete(rec.COOKIES, session.address)
        session.address = b""
        session.state = "login"
        session.user = ""
        session.entered_ns = session.seen_ns = step.now_ns
        step.disarm(ROLE, TIMER, session.id)  # it ends when it is idle now, not with the address
        self._arm(step, session)
        return session, self._renew_cookie(step, session)

    def open_plain(self, step: Step, application: Application) -> tuple[Session, str]:
        """A partial session of which only the application is known."""
        session = self._new(step, PARTIAL, application, "login")
        session.entered_ns = step.now_ns
        session.context.return_url = application.default_return_url
        return session, self._renew_cookie(step, session)

    def open_user(
        self, step: Step, kind: str, application: Application, user: User, entered_ns: int
    ) -> tuple[Session, str]:
        """A full or desk session: it begins with the login."""
        session = self._new(step, kind, application, "open")
        session.entered_ns = entered_ns
        session.user, session.user_kind = user.id, user.kind
        session.authenticated_ns = step.now_ns
        return session, self._renew_cookie(step, session)

    def log_in(self, step: Step, session: Session, user: User, asked_ns: int) -> str:
        """The customer of a partial session has proved who he is; returns the new cookie.

        Args:
            asked_ns: when his password came; what he took to type it is no time of ours.
        """
        session.state = "open"
        session.entered_ns = asked_ns
        session.user, session.user_kind = user.id, user.kind
        session.authenticated_ns = step.now_ns
        return self._renew_cookie(step, session)

    def _new(self, step: Step, kind: str, application: Application, state: str) -> Session:
        if sum(self.open_by_kind.values()) >= self.times.open_max:
            raise CipRefusal("overloaded", 503, "too many open sessions")
        if not step.admitting:
            raise CipRefusal("overloaded", 503, "no room for new work")
        name = self._book.identifier("ses_", step.now_ns)
        session = Session(name, kind, application.id, state, step.now_ns, step.now_ns)
        self.open_by_kind[kind] += 1
        self._arm(step, session)
        return session

    def _renew_cookie(self, step: Step, session: Session) -> str:
        if session.cookie:
            self._records.delete(rec.COOKIES, session.cookie)
        secret = self._book.secret().hex()
        session.cookie = _hash("cookie", secret)
        self._index(step, session.cookie, session)
        session.page += 1
        self.put(step, session)
        return secret

    # ---- finding

    def get(self, session_id: str) -> Session | None:
        found = self._records.get(rec.SESSIONS, rec.name_key(session_id))
        return None if found is None else rec.decode_session(found)

    def by_cookie(self, secret: str) -> Session | None:
        """The session a browser's secret belongs to, whatever its state."""
        session = self._by_hash(_hash("cookie", secret))
        return session if session is not None and session.cookie else None

    def is_over(self, session: Session, now_ns: int) -> bool:
        return not session.is_open or now_ns >= self._ends_ns(session)

    def unfinished(self) -> Iterator[Session]:
        for _, value in self._records.open_items(rec.SESSIONS):
            yield rec.decode_session(value)

    def _by_hash(self, hashed: bytes) -> Session | None:
        found = self._records.get(rec.COOKIES, hashed)
        return None if found is None else self.get(found.decode())

    # ---- going on

    def put(self, step: Step, session: Session) -> None:
        self._records.put(
            rec.SESSIONS, session.id.encode(), rec.encode(session),
            open=session.is_open, stamp=step.now_ns,
        )  # fmt: skip

    def touch(self, step: Step, session: Session, *, page: bool = False) -> None:
        """Seen; `page`: a form is shown, so earlier ones are outdated."""
        session.seen_ns = step.now_ns
        session.page += page
        self.put(step, session)

    def close(self, step: Step, session: Session, state: str = "closed") -> None:
        """End it: its cookie and its address open nothing any more. Of one that has expired the
        cookie still tells where its customer came from, so that he finds the way back."""
        if not session.is_open:
            return
        if session.address:
            self._records.delete(rec.COOKIES, session.address)
        if session.cookie and state == "closed":
            self._records.delete(rec.COOKIES, session.cookie)
        session.state = state
        session.address = b""
        self.open_by_kind[session.kind] -= 1
        self.put(step, session)
        step.disarm(ROLE, TIMER, session.id)

    def on_deadline(self, step: Step, session_id: str) -> None:
        session = self.get(session_id)
        if session is None or not session.is_open:
            return
        if step.now_ns < self._ends_ns(session):
            self._arm(step, session)
            return
        self._expired(step, session)
        self.close(step, session, "expired")

    def adopt(self, step: Step, session: Session) -> None:
        self.open_by_kind[session.kind] += 1
        self._arm(step, session)

    def _ends_ns(self, session: Session) -> int:
        if session.state == "issued":
            return session.address_until_ns
        times = self.times
        idle_ns = session.seen_ns + times.idle_s * SECOND_NS
        return min(idle_ns, session.created_ns + self._absolute_s(session) * SECOND_NS)

    def _absolute_s(self, session: Session) -> int:
        """A signed session may wait for its customer first."""
        waiting_s = self.times.context_ttl_s if session.signed else 0
        return self.times.absolute_s + waiting_s

    def _arm(self, step: Step, session: Session) -> None:
        ends_ns = self._ends_ns(session)
        if not ends_ns:
            ends_ns = step.now_ns + self.times.context_ttl_s * SECOND_NS
        step.arm(ROLE, TIMER, session.id, max((ends_ns - step.now_ns) / SECOND_NS, 0.0))

    def _index(self, step: Step, hashed: bytes, session: Session) -> None:
        self._records.put(rec.COOKIES, hashed, session.id.encode(), stamp=step.now_ns)


def context_of(session: Session) -> dict[str, object]:
    """What a site signed, as plain values, for the session query."""
    return {key: value for key, value in msgspec.structs.asdict(session.context).items() if value}


def _hash(kind: str, secret: str) -> bytes:
    return sha256(f"{kind}\n{secret}".encode("utf-8", "surrogatepass")).digest()
