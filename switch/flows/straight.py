"""The way past the flows for common operations, where all roles share this process.

`core_ext._straight` decides one in one native call: the same records, answers and ledger as the
flows, which stay the reference and take whatever it leaves alone. This is what ties it to them: the
rules of the business date, the accounts of a network, and the answer. `docs/decisions/0007` says
why, `tests/flows/test_straight.py` that both ways come to the same.
"""

from msgspec import UNSET

from core_ext import Ledger, Records
from core_ext._desk import HostLane
from core_ext._iso8583 import Layout
from core_ext._issuer import Issuer
from core_ext._mac import MacKey, SeedVault
from core_ext._relay import Relay
from core_ext._straight import Straight
from protocols.codes import answer_text
from protocols.currencies import CURRENCIES
from protocols.messages import ENTREGUE, RECIBA, Answer, CashOut, Deposit
from switch.calendar import Calendar, Day, day_date
from switch.config import Config
from switch.flows import norms, ticket
from switch.flows.ceibo import Ceibo
from switch.flows.issuers import Issuers
from switch.flows.limit_book import LimitBook, side_of
from switch.flows.red import Red
from switch.flows.registry import Terminal, account_id
from switch.flows.sicoop import Sicoop, first_operation
from switch.flows.states import REGISTRADA
from switch.flows.step import Step
from switch.limits import Kind, OperationRule

MINUTE_NS = 60 * 1_000_000_000
QUARTER_NS = 15 * MINUTE_NS
HOST_IN_FLIGHT_MAX = 4096  # answers of one connection that may wait natively; then Python holds on
NUMBERS = {currency.number: code for code, currency in CURRENCIES.items()}
DECLARATIONS_MAX = 16  # thresholds that the native core has room for
METERED = frozenset(("terminal", "cashier", "branch", "depositor"))  # at sicoop, in a deposit
_DELIVER = answer_text("APROBADA", "cash_out", None, REGISTRADA)
_RECEIVE = answer_text("APROBADA", "deposit", None, REGISTRADA)


class StraightThrough:
    """Decides common operations natively; `ask` gives None for what the flows have to decide.

    Attributes:
        core: the native part, for drivers that need no message of ours.
    """

    def __init__(
        self,
        *,
        config: Config,
        records: Records,
        ledger: Ledger,
        calendar: Calendar,
        limits: LimitBook,
        vault: SeedVault,
        fingerprint_key: bytes,
        ticket_key: MacKey,
        red: Red,
        sicoop: Sicoop,
        ceibo: Ceibo,
    ) -> None:
        self._config = config
        self._ledger = ledger
        self._calendar = calendar
        self._limits = limits
        self._red = red
        self._sicoop = sicoop
        self._ceibo = ceibo
        self._ticket_key = ticket_key
        self._flushes = (red.flush, sicoop.flush, ceibo.flush)
        tokens, key = config.tokens, fingerprint_key[:16]
        self._key = key
        self.core = Straight(
            issuer=Issuer(
                records=records, ledger=ledger, vault=vault, digits=tokens.digits,
                algorithm=tokens.algorithm, step_s=tokens.step_s, back=tokens.back,
                forward=tokens.forward, max_cards=tokens.max_cards, ocra_above=tokens.ocra_above,
                fingerprint_key=key, authorization_key=key,
            ),
            records=records, ledger=ledger, fingerprint_key=key, told=sicoop.alarmed,
        )  # fmt: skip
        self._relay: Relay | None = None
        self._day = Day(0, 0, 0, "", "")

    def attach(self, relay: Relay) -> None:
        """Make known what passes on common operations while the platform is elsewhere."""
        self._relay = relay
        for code, currency in CURRENCIES.items():
            relay.add_symbol(code, currency.symbol, currency.exponent)

    def ask(self, step: Step, terminal: Terminal, message: CashOut | Deposit) -> Answer | None:
        """Decide one request of a signed-on terminal; None, and nothing changed: not common."""
        if not self.ready(step) or not self.core.near:
            return None
        deposit = type(message) is Deposit
        decide = self.core.deposit if deposit else self.core.cash_out
        found = decide(terminal.number, message, step.now_ns)
        if found == "account" and self._tell_accounts(terminal.network, message.currency):
            found = decide(terminal.number, message, step.now_ns)
        if isinstance(found, str):
            return None
        operation, authorization = found
        if terminal.ticket:
            local = self._calendar.local(step.now_ns)
            reference = f"{terminal.network}{terminal.number}{local.compact}{message.trace:06d}"
            return self._red.first_answer(reference)
        return Answer(
            "00", "APROBADA", _RECEIVE if deposit else _DELIVER, message.trace,
            RECIBA if deposit else ENTREGUE, REGISTRADA, UNSET, operation, authorization,
            self._day.iso, message.amount, 0, False,
        )  # fmt: skip

    def ready(self, step: Step) -> bool:
        """Bring the native part up to date for a step; False while it may not decide at all."""
        if not step.admitting:
            return False
        self.core.near = self._all_here()
        if self._relay is not None:
            self._relay.open = self._red.platform.forwards
        for flush in self._flushes:  # it looks at records only
            flush()
        if not self.core.covers(step.now_ns):
            self._refresh(step.now_ns)
        if self.core.issuer.wants_clearing:
            self._tell_clearings()
        return True

    def host_lane(
        self,
        owner: object,
        fd: int,
        *,
        layout: Layout,
        key: MacKey,
        data_key: bytes,
        link: str,
        clock_tolerance_s: int,
    ) -> HostLane:
        """The short way of a connection of `link`, a host that asks this process's issuer.

        Args:
            owner: told of what is left to be written.
            key, data_key: the newest of the link.
        """
        return HostLane(
            owner, fd, straight=self.core, layout=layout, key=key, data_key=data_key,
            fingerprint_key=self._key, link=link, clock_tolerance_s=clock_tolerance_s,
            in_flight_max=HOST_IN_FLIGHT_MAX, currencies=NUMBERS,
        )  # fmt: skip

    def reconfigure(self, config: Config) -> None:
        """Go on with another configuration; what is decided already stays as it is."""
        self._config = config
        self.core.expire()  # everything is told anew before the next decision

    def _all_here(self) -> bool:
        issuer = self._sicoop.issuer
        near = isinstance(issuer, Issuers) and issuer.only is self._ceibo
        return near and self._red.platform is self._sicoop

    def _refresh(self, now_ns: int) -> None:
        """Tell what holds for the rest of this quarter of an hour, or this minute where a night
        may begin or end in it."""
        local, business = self._calendar.local(now_ns), self._calendar.business(now_ns)
        most_ns = MINUTE_NS if self._limits.has_night else QUARTER_NS
        until_ns = min(local.end_ns, business.end_ns, now_ns - now_ns % most_ns + most_ns)
        night = self._limits.is_night(now_ns)
        self._set_rules(night)
        self._set_ticket()
        self._day = business
        self.core.set_times(
            from_ns=max(local.start_ns, business.start_ns, until_ns - most_ns), until_ns=until_ns,
            day_start_ns=local.start_ns, today=local.compact,
            yesterday=day_date(local.number - 1).strftime("%Y%m%d"),
            business_date=business.iso, day=business.number,
            first_operation=first_operation(business.number),
            limits_version=self._limits.version, night=night,
            utc_offset_ns=self._calendar.utc_offset_ns(now_ns),
        )  # fmt: skip

    def _set_rules(self, night: bool) -> None:
        config, limits = self._config, self._limits
        usual = (
            config.node.cashiers == "open"
            and not config.node.simulator
            and not config.watch.looks_at_each
        )
        cash_out = (
            usual
            and not config.fees.cash_out
            and not config.commissions.cash_out
            and not limits.counts("cash_out")
        )
        self._set_kind("cash_out", cash_out, night)
        if self._relay is not None:
            self._relay.set_kinds(usual, usual)
        deposit = (
            usual
            and not config.commissions.deposit
            and "person" not in limits.scopes("deposit")  # counted by tier, at the issuer
            and len(self._thresholds()) <= DECLARATIONS_MAX
        )
        self._set_kind("deposit", deposit, night)
        self.core.deposits.set_rules(
            open=deposit,
            profiles={scope: limits.profile(scope) for scope in METERED & limits.scopes("deposit")},
            declarations=self._thresholds() if deposit else [],
            structuring=config.watch.structuring != "off",
            percent=config.watch.structuring_percent,
            count=config.watch.structuring_count,
        )

    def _set_kind(self, kind: Kind, decide: bool, night: bool) -> None:
        limits = self._limits.limits
        tiers = {tier: rule for (of, tier), rule in limits.tiers.items() if of == kind}
        self.core.issuer.set_rules(
            kind,
            decide,
            _bounds(limits.operation[kind]),
            {tier: _bounds(rule) for tier, rule in tiers.items()},
            night,
        )

    def _thresholds(self) -> list[tuple[str, str, str, int]]:
        """From which sums on deposits have to be declared."""
        return [
            (rule.scope, side_of(rule.scope, rule.kind), rule.window, rule.threshold)
            for rule in self._limits.limits.declarations
            if rule.kind == "deposit"
        ]

    def _tell_clearings(self) -> None:
        """Tell the issuer's accounts with sicoop that the flows have made by now."""
        self.core.issuer.wants_clearing = False
        for currency in CURRENCIES:
            clearing = account_id(f"ceibo:{currency}:clearing:sicoop")
            if self._ledger.balance(clearing) is not None:
                self.core.issuer.add_clearing(currency, clearing)

    def _set_ticket(self) -> None:
        """Tell the fixed part of tickets, unless its signs are none for the native core."""
        red = self._config.red
        head = ticket.heading(
            company=red.company, ruc=red.ruc, address=red.address, branch="000000", terminal=""
        )
        lines = [line for line in head.lines if line]
        titles = head.titles["cash_out", False], head.titles["deposit", False]
        for number, line in enumerate(lines):
            at = line.find("Boca 000000")
            if at >= 0 and _plain([*lines, *titles]):
                self.core.set_ticket(lines, titles, number, at + len("Boca "), self._ticket_key)
                return
        self.core.forget_ticket()

    def _tell_accounts(self, network: str, currency: str) -> bool:
        """Tell the accounts of a network and its currency; False: the flows have to make them."""
        position = account_id(f"sicoop:{currency}:net:{network}")
        clearing = account_id(f"ceibo:{currency}:clearing:sicoop")
        issuer = account_id(f"sicoop:{currency}:issuer:ceibo")
        if any(self._ledger.balance(a) is None for a in (position, clearing, issuer)):
            return False
        unit = norms.currency(currency)
        self.core.add_money(currency, clearing, issuer, unit.symbol, unit.exponent)
        self.core.add_position(network, currency, position)
        return True


def _plain(lines: list[str]) -> bool:
    return not any(sign in line for line in lines for sign in '"\\')


def _bounds(rule: OperationRule) -> tuple[int, int, int]:
    return rule.min, rule.max, rule.multiple
