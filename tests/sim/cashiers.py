"""People at terminals: what they ask for, what they were told, and what they did with the cash.

A cashier moves cash on ENTREGUE or RECIBA and on nothing else, once per operation. Without an
answer he asks: for the operation, or the same once more. All that red lets out is kept in the
order in which it left, and that order is held against the rules at once.
"""

from typing import Any

from protocols.messages import Annul, Answer, CashOut, Delivered, Deposit, LastOperation
from tests.house import NETWORK
from tests.sim.faults import NS, Errand
from tests.sim.network import Finding
from tests.sim.world import TERMINALS, World

PAYS = {"cash_out": "ENTREGUE", "deposit": "RECIBA"}
DATE = "20261122"
CASHIER = "000345"
REFUSED = ("ERROR", "RECHAZO_REGISTRADO")
PAID = ("REGISTRADA", "ENTREGADA", "ANULADA")
ASKED_MAX = 12  # questions of one cashier while faults last


class Operation:
    """One errand under way."""

    def __init__(self, world: World, errand: Errand) -> None:
        self.world = world
        self.errand = errand
        self.kind = errand.kind
        self.pays = PAYS[errand.kind]
        self.reference = f"{NETWORK}{TERMINALS[errand.terminal]}{DATE}{errand.trace:06d}"
        self.request: Any = None
        self.moved = False  # the cash has changed hands
        self.marked = False  # red has acknowledged the mark
        self.annulling = False
        self.settled = False  # the cashier has his instruction
        self.asked = 0
        self._waits = 0
        # What red said, in the order in which it let it out, and what it was asked to do about it.
        self.told: list[tuple[str, str]] = []
        self.acted = False
        self.was_told_to_pay = False
        self.was_refused = ""

    # ---- the cashier

    def begin(self) -> None:
        errand, world = self.errand, self.world
        holder = world.holder(errand)
        values: dict[str, Any] = {
            "trace": errand.trace, "document": holder.document, "cashier": CASHIER,
            "amount": errand.amount, "currency": "PYG",
        }  # fmt: skip
        if self.kind == "deposit":
            self.request = Deposit(**values)
        else:
            code = "731905" if errand.wrong_code else world.code(holder)
            self.request = CashOut(token=code, **values)
        for _ in range(errand.clicks):
            self.send(self.request)
        self.wait()
        if errand.annuls_after_s:
            world.time.after(int(errand.annuls_after_s * NS), self.annul)

    def wait(self) -> None:
        """Without an instruction he asks in the end."""
        self._waits += 1
        number = self._waits
        self.world.time.after(int(self.errand.patience_s * NS), lambda: self._patience(number))

    def _patience(self, number: int) -> None:
        if number == self._waits and not self.settled:
            self.ask()

    def ask(self) -> None:
        self.asked += 1
        if self.asked > ASKED_MAX and not self.world.weather.over:
            return
        repeat = self.errand.asks == "repeat" and self.asked % 2 and not self.world.weather.over
        self.send(self.request if repeat else self.query())
        self.wait()

    def query(self) -> LastOperation:
        return LastOperation(original=self.errand.trace, kind=self.kind)  # type: ignore[arg-type]

    def annul(self) -> None:
        """He withdraws it, with the cash still, or again, where it was before."""
        if (self.moved and not self.marked) or self.annulling or not self.world.places["red"].alive:
            return
        self.annulling = True
        annul = Annul(
            trace=self.errand.trace + 500, original=self.errand.trace, cashier=CASHIER,
            supervisor="000900", business_date="2026-11-22",
        )  # fmt: skip
        self.send(annul)
        self.settled = False
        self.wait()

    def hears(self, message: Any) -> None:
        """An answer has come to the terminal."""
        if not isinstance(message, Answer):
            return
        told = message.instruction
        if told == self.pays and not self.annulling:
            self.settled = True
            if not self.moved:
                self.moved = True
                self.world.note(f"cashier: {self.name} cash moves")
                self._afterwards()
        elif told == "ESPERE" or message.key == "EN_PROCESO":
            self.world.time.after(5 * NS, lambda: None if self.settled else self.ask())
        elif isinstance(told, str):
            self.settled = True
            self.marked = self.marked or (self.moved and message.state == "ENTREGADA")

    def _afterwards(self) -> None:
        if self.errand.marks:
            self.world.time.after(NS // 2, self._mark)
        if self.errand.repeats:
            self.world.time.after(2 * NS, lambda: self.send(self.request))

    def _mark(self) -> None:
        if not self.annulling:
            self.send(Delivered(original=self.errand.trace))

    @property
    def name(self) -> str:
        return f"{self.kind} {self.errand.trace}"

    # ---- the line between terminal and red

    def send(self, message: Any) -> None:
        what = type(message).__name__
        self.world.note(f"terminal: {what} of {self.name} leaves")
        for delay_ns in self.world.weather.fates("terminal there"):
            self.world.time.after(delay_ns, lambda: self._arrive(message))

    def _arrive(self, message: Any) -> None:
        place = self.world.places["red"]
        if not place.alive:
            return
        if isinstance(message, Delivered | Annul):
            self.acted = True
        node = place.node
        terminal = node.registry.terminal(TERMINALS[self.errand.terminal])
        assert terminal is not None
        place.turn(lambda step: node.terminal_request(step, terminal, message, self))

    def ready(self, message: Any) -> None:
        """red lets an answer out: it counts from here on, whether it arrives or not."""
        if isinstance(message, Answer):
            self.judge(message)
        for delay_ns in self.world.weather.fates("terminal back"):
            self.world.time.after(delay_ns, lambda: self.hears(message))

    def flush(self) -> None:
        pass

    # ---- the rules about what is told

    def judge(self, message: Answer) -> None:
        told, state = str(message.instruction), message.state
        if not isinstance(state, str):
            return
        self.world.note(f"red: {self.name} is told {told} {state} {message.key}")
        self.told.append((told, state))
        if told == self.pays:
            if state != "REGISTRADA":
                raise Finding(f"{self.name}: {told} of what is {state}")
            if self.was_refused:
                raise Finding(f"{self.name}: {told} after it was {self.was_refused}")
            if "ENTREGADA" in (s for _, s in self.told):
                raise Finding(f"{self.name}: {told} after it was delivered")
            self.was_told_to_pay = True
        elif self.was_told_to_pay and not self.acted:
            raise Finding(f"{self.name}: {told} {state} after {self.pays}, and nobody asked for it")
        if self.was_told_to_pay and state not in PAID:
            raise Finding(f"{self.name}: {state} after {self.pays}")
        if state in REFUSED:
            self.was_refused = state


def start_errands(world: World) -> list[Operation]:
    """Put all cashiers of the plan on the timeline."""
    operations = [Operation(world, errand) for errand in world.plan.errands]
    for operation in operations:
        world.time.at(int(operation.errand.at_s * NS), operation.begin)
    return operations
