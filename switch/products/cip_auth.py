"""Passwords of the payment application: hashed by bounded workers, never on the event loop.

Whoever is wrong gets one answer, in one time: an unknown user is checked against a hash of nobody's
password, and is written to the audit trail like a known one. A machine's right credentials are
remembered for a minute under a key of this process, so that a busy site costs one hash a minute.
"""

import hmac
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Collection
from typing import Any, Final

import trio
from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from core_ext import Histogram
from switch.flows.cip_book import CipRefusal
from switch.flows.cip_records import User
from switch.flows.step import Step
from switch.node import Node
from switch.sections.cip import Auth
from switch.web.requests import Rate

PASSWORD_LENGTH: Final = (12, 256)
CACHE_MAX: Final = 10_000


class Busy(CipRefusal):
    """Too many passwords wait to be checked."""

    def __init__(self) -> None:
        super().__init__("overloaded", 503, "too many passwords wait")


class WrongCredentials(CipRefusal):
    """One answer for every cause, lock included."""

    def __init__(self) -> None:
        super().__init__("authentication_failed", 401)


class Passwords:
    """Hashes and verifies in worker threads, at most `threads` at once and `queue_max` waiting."""

    def __init__(self, section: Auth) -> None:
        self.section = section
        self.hasher = PasswordHasher(
            time_cost=section.time_cost,
            memory_cost=section.memory_kib,
            parallelism=section.parallelism,
        )
        self._limiter = trio.CapacityLimiter(section.threads)
        self._nobody = self.hasher.hash(os.urandom(16).hex())
        self.waiting = 0
        self.queue_ns = Histogram()
        self.hash_ns = Histogram()

    async def verify(self, hashed: str | None, password: str) -> bool:
        """True where the password is the one; `hashed` None costs as much, and is False.

        Raises:
            Busy: the queue is full, or the budget was spent in it.
        """
        right: bool = await self._run(_verify, self.hasher, hashed or self._nobody, password)
        return right and hashed is not None

    async def hash(self, password: str) -> str:
        """Raises: Busy."""
        hashed: str = await self._run(_hash, self.hasher, password)
        return hashed

    async def _run(self, work: Callable[..., Any], *arguments: Any) -> Any:
        if self.waiting >= self.section.queue_max + self.section.threads:
            raise Busy
        began = time.perf_counter_ns()
        self.waiting += 1
        try:
            # A thread cannot be stopped: who waited too long leaves it to end by itself.
            waited, took, result = await trio.to_thread.run_sync(
                _timed, began, work, *arguments,
                limiter=self._limiter, abandon_on_cancel=True,
            )  # fmt: skip
        finally:
            self.waiting -= 1
        self.queue_ns.record(waited)
        self.hash_ns.record(took)
        return result


class Authenticator:
    """Who may call, and who may log in.

    Attributes:
        results: how often each came of it, for metrics.
    """

    def __init__(self, node: Node, flow: Any, passwords: Passwords) -> None:
        self._node = node
        self._flow = flow
        self.passwords = passwords
        self._key = os.urandom(32)
        self._verified: OrderedDict[bytes, tuple[int, float]] = OrderedDict()
        self._in_flight: dict[bytes, trio.Event] = {}
        self._rate = Rate(passwords.section.rate_per_minute, trio.current_time)
        self.results = {"ok": 0, "cached": 0, "wrong": 0, "locked": 0, "rate": 0, "busy": 0}
        self.lockouts = 0

    async def machine(self, application_id: str, user_id: str, password: str, address: str) -> User:
        """A site's machine by its three credentials.

        Raises:
            CipRefusal: 401 whatever is wrong; 429; 503.
        """
        name = self._digest(application_id, user_id, password)
        while (running := self._in_flight.get(name)) is not None:
            await running.wait()
        cached = self._cached(name, application_id, user_id, address)
        if cached is not None:
            self.results["cached"] += 1
            return cached
        done = self._in_flight[name] = trio.Event()
        try:
            user = await self._check(application_id, user_id, password, address, ("machine",))
            if self.passwords.section.cache_s:
                until = trio.current_time() + self.passwords.section.cache_s
                self._verified[name] = (user.epoch, until)
                if len(self._verified) > CACHE_MAX:
                    self._verified.popitem(last=False)
            return user
        finally:
            del self._in_flight[name]
            done.set()

    async def person(
        self, application_id: str, user_id: str, password: str, address: str,
        kinds: Collection[str],
    ) -> User:  # fmt: skip
        """A customer, or somebody of the service desk. Raises: CipRefusal, as `machine`."""
        return await self._check(application_id, user_id, password, address, kinds)

    async def _check(
        self, application_id: str, user_id: str, password: str, address: str,
        kinds: Collection[str],
    ) -> User:  # fmt: skip
        if not self._rate.take(f"{address}\n{application_id}"[:300]):
            self.results["rate"] += 1
            raise CipRefusal("rate_limited", 429)
        user = self._known(application_id, user_id, kinds)
        try:
            with trio.fail_after(self._flow.section.budget.auth_s):
                right = await self.passwords.verify(
                    user.hashes[0] if user is not None else None, password[: PASSWORD_LENGTH[1]]
                )
        except (trio.TooSlowError, Busy):
            self.results["busy"] += 1
            raise Busy from None
        verdict = await self._node.perform(
            lambda step: self._verdict(step, application_id, user_id, address, kinds, right)
        )
        if verdict is None:
            raise WrongCredentials
        if self.passwords.hasher.check_needs_rehash(verdict.hashes[0]):
            await self._rehash(verdict, password)
        return verdict

    def _verdict(
        self, step: Step, application_id: str, user_id: str, address: str,
        kinds: Collection[str], right: bool,
    ) -> User | None:  # fmt: skip
        """What the check comes to, in a step, known or not: the time shall not tell."""
        book, section = self._flow.book, self.passwords.section
        user = self._known(application_id, user_id, kinds)
        if user is None:
            # Never the name that was typed: people type passwords there.
            known = application_id if book.application(application_id) is not None else ""
            who = f"{known}:?" if known else "unknown"
            step.audit(who, "cip_login", address or "page", "refused", security=True)
            self.results["wrong"] += 1
            return None
        if book.is_locked(user, address, step.now_ns):
            who = f"{application_id}:{user_id}"
            step.audit(who, "cip_login", address or "page", "refused", "locked", security=True)
            self.results["locked"] += 1
            return None
        if not right:
            self.results["wrong"] += 1
            locked = book.count_failure(
                step, user, address, failures_max=section.max_failures, lock_s=section.lock_s
            )
            self.lockouts += locked
            if locked and user.email and self._flow.section.mail.host:
                step.call(self._flow.role, "unlock", f"{application_id}|{user_id}")
            return None
        book.clear_failures(user, address)
        self.results["ok"] += 1
        return user

    def _known(self, application_id: str, user_id: str, kinds: Collection[str]) -> User | None:
        application = self._flow.book.application(application_id)
        user: User | None = self._flow.book.user(application_id, user_id)
        if application is None or application.disabled or user is None or user.disabled:
            return None
        return user if user.kind in kinds and user.hashes else None

    async def _rehash(self, user: User, password: str) -> None:
        """The parameters have changed since: make the hash anew, now that the password is here."""
        try:
            hashed = await self.passwords.hash(password)
        except Busy:
            return  # another time
        old = user.hashes[0]

        def replace(step: Step) -> None:
            known = self._flow.book.user(user.application, user.id)
            if known is not None and known.hashes[0] == old:
                known.hashes[0] = hashed
                self._flow.book.put_user(known)

        await self._node.perform(replace)

    def _cached(self, name: bytes, application_id: str, user_id: str, address: str) -> User | None:
        found = self._verified.get(name)
        if found is None:
            return None
        user = self._known(application_id, user_id, ("machine",))
        epoch, until = found
        now_ns = self._node.clock.wall_ns()
        if user is None or user.epoch != epoch or trio.current_time() >= until:
            del self._verified[name]
            return None
        if self._flow.book.is_locked(user, address, now_ns):
            return None
        return user

    def _digest(self, *credentials: str) -> bytes:
        text = b"\0".join(c.encode("utf-8", "surrogatepass") for c in credentials)
        return hmac.digest(self._key, text, "sha256")


def password_fault(password: str) -> str:
    """Why a password cannot be one; "" where it can."""
    low, high = PASSWORD_LENGTH
    if not low <= len(password) <= high:
        return f"a password has {low} to {high} characters"
    return ""


def _timed(began: int, work: Callable[..., Any], *arguments: Any) -> tuple[int, int, Any]:
    started = time.perf_counter_ns()
    result = work(*arguments)
    return started - began, time.perf_counter_ns() - started, result


def _verify(hasher: PasswordHasher, hashed: str, password: str) -> bool:
    try:
        return hasher.verify(hashed, password)
    except (VerificationError, InvalidHashError):
        return False


def _hash(hasher: PasswordHasher, password: str) -> str:
    return hasher.hash(password)
