"""Applications, users, signing keys and counters of the payment application.

Secrets are sealed under the master key, each under its owner's name; passwords are kept as argon2
hashes, which are made and checked elsewhere, by bounded workers.
"""

from collections.abc import Callable
from hashlib import sha256
from typing import Final, Protocol
from zoneinfo import ZoneInfo

from core_ext import Records
from protocols.cip.confirmation import APP_NO_MAX, day_number, make_code
from protocols.cip.identifiers import RANDOM_BYTES, identifier
from switch.flows import cip_records as rec
from switch.flows.cip_records import Application, Failures, SigningKey, User
from switch.flows.step import Refusal, Step
from switch.sections.cip import Cip, CipApplication

KEY_BYTES: Final = 32
KEYS_MAX: Final = 16  # of one application, ended ones included
KEY_OVERLAP_NS: Final = 7 * 86_400 * 1_000_000_000
HASHES_KEPT: Final = 4  # a new password is none of these
APPLICATIONS_MAX: Final = APP_NO_MAX + 1

Chance = Callable[[int], bytes]


class CipRefusal(Refusal):
    """What the payment application does not do, with the word the API has for it.

    Attributes:
        code: stable, as in the API's errors. status: of HTTP.
    """

    def __init__(self, code: str, status: int, text: str = "") -> None:
        super().__init__(text or code)
        self.code = code
        self.status = status


class Vault(Protocol):
    """Seals and opens secrets under the master key, each for one owner."""

    def seal(self, secret: bytes, owner: str) -> bytes: ...

    def open(self, sealed: bytes, owner: str) -> bytes: ...


class CipBook:
    """The registry of the payment application, on the record store."""

    def __init__(self, records: Records, vault: Vault, chance: Chance) -> None:
        self._records = records
        self._vault = vault
        self._chance = chance
        self._applications: dict[str, Application] = {}
        self._zones: dict[str, ZoneInfo] = {}
        for _, value in records.items(rec.APPLICATIONS):
            application = rec.decode_application(value)
            self._applications[application.id] = application
        self._confirmation_key = b""

    def identifier(self, prefix: str, now_ns: int) -> str:
        """A new identifier that sorts by time."""
        return identifier(prefix, now_ns, self._chance(RANDOM_BYTES))

    def secret(self, size: int = 16) -> bytes:
        """Random bytes, for cookies, addresses and keys."""
        return self._chance(size)

    # ---- applications

    def application(self, application_id: str) -> Application | None:
        return self._applications.get(application_id)

    def applications(self) -> list[Application]:
        return sorted(self._applications.values(), key=lambda found: found.id)

    def put_application(self, application: Application) -> None:
        self._applications[application.id] = application
        self._records.put(rec.APPLICATIONS, application.id.encode(), rec.encode(application))

    def add_application(
        self, step: Step, application_id: str, section: CipApplication
    ) -> Application:
        """Make an application.

        Raises:
            CipRefusal: it exists, or its number is another's.
        """
        if application_id in self._applications:
            raise CipRefusal("exists", 409, f"application {application_id} exists")
        application = Application(application_id, self._free_number(section.app_no), "", ())
        application.created_ns = step.now_ns
        self._overrule(application, section)
        self.put_application(application)
        return application

    def configure(self, step: Step, applications: dict[str, CipApplication]) -> None:
        """Make or overrule what the file names."""
        for application_id, section in applications.items():
            known = self._applications.get(application_id)
            if known is None:
                self.add_application(step, application_id, section)
                continue
            before = rec.encode(known)
            if section.app_no >= 0 and section.app_no != known.app_no:
                known.app_no = self._free_number(section.app_no)
            self._overrule(known, section)
            if rec.encode(known) != before:
                self.put_application(known)

    def _free_number(self, wanted: int) -> int:
        taken = {found.app_no for found in self._applications.values()}
        if wanted >= 0:
            if wanted in taken:
                raise CipRefusal("exists", 409, f"application number {wanted} is taken")
            return wanted
        numbers = (*range(1, APP_NO_MAX + 1), 0)
        free: int | None = next((number for number in numbers if number not in taken), None)
        if free is None:
            raise CipRefusal("full", 409, f"there are {APPLICATIONS_MAX} applications already")
        return free

    def _overrule(self, known: Application, section: CipApplication) -> None:
        known.name = section.name or known.name or known.id
        known.modes = tuple(section.modes)
        known.variants = tuple(section.partial_variants)
        for name in (
            "source", "late_approval", "return_urls", "default_return_url", "timezone",
            "report_hours", "amount", "fee", "fields", "webhook_url", "report_url",
            "report_folder", "csv_totals", "bank", "bank_inquiry", "terminal", "addresses",
            "certificates", "machine_passwords",
        ):  # fmt: skip
            setattr(known, name, getattr(section, name))

    def zone(self, application: Application) -> ZoneInfo:
        found = self._zones.get(application.timezone)
        if found is None:
            found = self._zones[application.timezone] = ZoneInfo(application.timezone)
        return found

    # ---- users

    def user(self, application_id: str, user_id: str) -> User | None:
        found = self._records.get(rec.USERS, rec.pair(application_id, user_id))
        return None if found is None else rec.decode_user(found)

    def users(self, application_id: str) -> list[User]:
        everyone = (rec.decode_user(value) for _, value in self._records.items(rec.USERS))
        return [user for user in everyone if user.application == application_id]

    def put_user(self, user: User) -> None:
        self._records.put(rec.USERS, rec.pair(user.application, user.id), rec.encode(user))

    def set_password(self, user: User, hashed: str) -> None:
        """Give a user another password; what was verified before no longer counts."""
        user.hashes = [hashed, *user.hashes][: HASHES_KEPT + 1]
        user.epoch += 1
        self.put_user(user)

    def failures(self, user: User, address: str) -> Failures:
        found = self._records.get(rec.FAILURES, _failure_key(user, address))
        return Failures() if found is None else rec.decode_failures(found)

    def is_locked(self, user: User, address: str, now_ns: int) -> bool:
        return now_ns < self.failures(user, address).locked_until_ns

    def is_locked_anywhere(self, user: User, now_ns: int) -> bool:
        """Locked, a machine at whatever address."""
        head = _failure_head(user)
        return any(
            now_ns < rec.decode_failures(value).locked_until_ns
            for key, value in self._records.items(rec.FAILURES)
            if key.startswith(head)
        )

    def count_failure(
        self, step: Step, user: User, address: str, *, failures_max: int, lock_s: int
    ) -> bool:
        """One more wrong password; True: this one locked the user."""
        known = self.failures(user, address)
        if known.locked_until_ns and known.locked_until_ns <= step.now_ns:
            known = Failures()
        known.count += 1
        locked = known.count == failures_max
        if locked:
            known.locked_until_ns = step.now_ns + lock_s * 1_000_000_000
        self._records.put(
            rec.FAILURES, _failure_key(user, address), rec.encode(known), stamp=step.now_ns
        )
        step.audit(
            f"{user.application}:{user.id}", "cip_login", address or "page", "refused",
            "locked" if locked else "", security=True,
        )  # fmt: skip
        if locked:
            step.alarm("cip_lockout", f"{user.application}:{user.id}")
        return locked

    def clear_failures(self, user: User, address: str) -> None:
        key = _failure_key(user, address)
        if self._records.get(rec.FAILURES, key) is not None:
            self._records.delete(rec.FAILURES, key)

    def unlock(self, user: User) -> None:
        """Forget wrong passwords from wherever they came."""
        head = _failure_head(user)
        keys = [key for key, _ in self._records.items(rec.FAILURES) if key.startswith(head)]
        for key in keys:
            self._records.delete(rec.FAILURES, key)

    def issue_unlock(self, step: Step, user: User, life_s: int) -> str:
        """The secret of a link that unlocks a user, once; kept here as its hash."""
        secret = self.secret().hex()
        until_ns = step.now_ns + life_s * 1_000_000_000
        value = rec.encode(rec.Unlock(user.application, user.id, until_ns))
        self._records.put(rec.UNLOCKS, _unlock_key(secret), value, stamp=until_ns)
        return secret

    def is_unlock(self, secret: str, now_ns: int) -> bool:
        found = self._records.get(rec.UNLOCKS, _unlock_key(secret))
        return found is not None and now_ns < rec.decode_unlock(found).until_ns

    def use_unlock(self, step: Step, secret: str) -> None:
        """Unlock whom a link was sent to.

        Raises:
            CipRefusal: unknown, used, or too old.
        """
        key = _unlock_key(secret)
        found = self._records.get(rec.UNLOCKS, key)
        unlock = None if found is None else rec.decode_unlock(found)
        user = None if unlock is None else self.user(unlock.application, unlock.user)
        if unlock is None or user is None or step.now_ns >= unlock.until_ns:
            raise CipRefusal("not_found", 404, "the link was used, or is too old")
        self._records.delete(rec.UNLOCKS, key)
        self.unlock(user)
        who = f"{user.application}:{user.id}"
        step.audit(who, "cip_unlock", who, "00", "link", security=True)

    # ---- keys

    def own_key(self, name: str) -> bytes:
        """A key of this node, made at its first use and kept sealed."""
        owner = f"cip-own:{name}"
        sealed = self._records.get(rec.SECRETS, owner.encode())
        if sealed is not None:
            return self._vault.open(sealed, owner)
        key = self._chance(KEY_BYTES)
        self._records.put(rec.SECRETS, owner.encode(), self._vault.seal(key, owner))
        return key

    def add_key(self, step: Step, application: Application) -> tuple[str, bytes]:
        """Make one more signing key; returns its id and the secret, which is shown once."""
        if len(application.keys) >= KEYS_MAX:
            application.keys = [key for key in application.keys if key.holds(step.now_ns)]
        if len(application.keys) >= KEYS_MAX:
            raise CipRefusal("full", 409, f"{application.id} has {KEYS_MAX} keys in force")
        number = self.count(f"keys:{application.id}")
        key_id = f"k{number}"
        secret = self._chance(KEY_BYTES)
        owner = _key_owner(application.id, key_id)
        self._records.put(rec.SECRETS, owner.encode(), self._vault.seal(secret, owner))
        application.keys.append(SigningKey(key_id, step.now_ns))
        self.put_application(application)
        return key_id, secret

    def rotate_key(self, step: Step, application: Application) -> tuple[str, bytes]:
        """A new signing key; those in force end after an overlap of seven days."""
        until = step.now_ns + KEY_OVERLAP_NS
        for key in application.keys:
            if not key.until_ns or key.until_ns > until:
                key.until_ns = until
        return self.add_key(step, application)

    def end_key(self, step: Step, application: Application, key_id: str) -> None:
        """A key stops being valid now.

        Raises:
            CipRefusal: there is no such key in force.
        """
        for key in application.keys:
            if key.id == key_id and key.holds(step.now_ns):
                key.until_ns = step.now_ns
                self.put_application(application)
                return
        raise CipRefusal("wrong_state", 409, f"{application.id} has no key {key_id} in force")

    def signing_secret(self, application: Application, key_id: str, now_ns: int) -> bytes | None:
        """The secret of a key in force; None: there is none of that id."""
        if not any(key.id == key_id and key.holds(now_ns) for key in application.keys):
            return None
        owner = _key_owner(application.id, key_id)
        sealed = self._records.get(rec.SECRETS, rec.name_key(owner))
        return None if sealed is None else self._vault.open(sealed, owner)

    def newest_key(self, application: Application, now_ns: int) -> tuple[str, bytes] | None:
        """What webhooks and reports are signed with."""
        for key in reversed(application.keys):
            secret = self.signing_secret(application, key.id, now_ns)
            if secret is not None:
                return key.id, secret
        return None

    # ---- nonces, counters, confirmation numbers

    def take_nonce(self, step: Step, application_id: str, nonce: str, keep_s: int) -> bool:
        """Note a nonce until no signature with it can pass any more; False: it was used."""
        key = sha256(f"{application_id}\n{nonce}".encode()).digest()
        found = self._records.get(rec.NONCES, key)
        if found is not None and int(found) > step.now_ns:
            return False
        until = step.now_ns + keep_s * 1_000_000_000
        self._records.put(rec.NONCES, key, b"%d" % until, stamp=until)
        return True

    def forget_nonces(self, now_ns: int, count: int) -> int:
        """Drop nonces that can no longer pass, at most `count`."""
        return int(self._records.forget(rec.NONCES, now_ns, max_count=count))

    def count(self, name: str) -> int:
        """Count up a durable counter; the first value is 1."""
        key = name.encode()
        found = self._records.get(rec.COUNTERS, key)
        number = 1 if found is None else int(found) + 1
        self._records.put(rec.COUNTERS, key, b"%d" % number)
        return number

    def counted(self, name: str) -> int:
        found = self._records.get(rec.COUNTERS, name.encode())
        return 0 if found is None else int(found)

    def use_confirmation_key(self, key: bytes) -> None:
        self._confirmation_key = key

    def new_code(self, application: Application, now_ns: int) -> str:
        """The next confirmation number of an application and day."""
        day = day_number(now_ns)
        sequence = self.count(f"code:{application.app_no}:{day}")
        return make_code(self._confirmation_key, application.app_no, day, sequence)


def environment_key(text: str | None, name: str) -> bytes:
    """A key given in the environment: 64 hex digits.

    Raises:
        ValueError: it is missing, or of another form.
    """
    try:
        key = bytes.fromhex(text or "")
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise ValueError(f"{name} must hold {2 * KEY_BYTES} hex digits")
    return key


def own_keys(
    book: CipBook, section: Cip, environment: Callable[[str], str | None]
) -> tuple[bytes, bytes]:
    """The confirmation and the idempotency key, from the key store or the environment."""
    found = []
    for name in (section.confirmation_key, section.idempotency_key):
        kind, _, rest = name.partition(":")
        found.append(
            book.own_key(rest) if kind == "keystore" else environment_key(environment(rest), rest)
        )
    return found[0], found[1]


def _failure_key(user: User, address: str) -> bytes:
    """Of the user, and for machines of the address too: a stranger must not stop an agency."""
    where = address if user.kind == "machine" else ""
    return _failure_head(user) + sha256(where.encode()).digest()[:16]


def _unlock_key(secret: str) -> bytes:
    return sha256(f"unlock\n{secret}".encode("utf-8", "surrogatepass")).digest()


def _failure_head(user: User) -> bytes:
    return sha256(rec.pair(user.application, user.id)).digest()[:16]


def _key_owner(application_id: str, key_id: str) -> str:
    return f"cip-app:{application_id}:{key_id}"
