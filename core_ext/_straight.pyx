"""Straight-through processing: common operations through all three roles of one process.

red, sicoop and ceibo decide cash_outs and deposits in `switch.flows`; that is the reference. Where
all three share a process and nothing is out of the ordinary, the same decision is made here in one
call: the same records, byte for byte, and the same commands to the ledger, in the same order. What
is not common is left to the flows *before anything was changed* (`Why` says for what reason).

How one is decided:

1. *form*: every field in its normal form; other spellings than the usual ones are left alone.
2. *peers*: terminal, network, branch and cashier, from their records.
3. *name*: the reference, which nobody may have used, and the number of the operation.
4. *sicoop*, of a deposit: its limits, declarations and caps have nothing to say (`_deposit`).
5. *issuer*: person and card, of a cash_out its code (`_issuer`).
6. *ledger*: would both books take the hold? From here on it is ours.
7. *post and store*: all commands in one batch, six records, all in the open group.

Everything that can say no comes before the first change, so a refusal by the ledger in step 7 is
our own mistake, and stops the node as it would in the flows.
"""

cimport cython
from cpython.unicode cimport PyUnicode_AsUTF8AndSize
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from core_ext._cursor cimport Cursor, Pen, cursor, pen, put
from core_ext._issuer cimport (
    ACCOUNT, AMOUNT, FORM, KNOWN, LEDGER, MINE, OFF, PAPER, PEER, SPACE_BRANCHES,
    SPACE_BY_OPERATION, SPACE_CASHIERS, SPACE_CEIBO, SPACE_META, SPACE_NETWORKS, SPACE_NEWEST,
    SPACE_RED, SPACE_SHIFTS, SPACE_SICOOP, SPACE_TERMINALS, STATE, TILL, TIME, WHYS, Grant,
    Issuer, allows, put_moment, would_hold,
)
from core_ext._deposit cimport DepositRules, Meters
from core_ext._ledger cimport (
    DONE, H_METERED, H_METER_CREDIT, H_NIGHT, POLICY_ASK, Batch, CaptureTerms, HoldTerms, Id,
    Ledger,
)
from core_ext._mac cimport MacKey
from core_ext._names cimport put_plain
from core_ext._operation cimport (
    RED_FIELDS, REFERENCE, TEXTS_MAX, VALUE_MAX, Asked, digest_at_red, digest_at_sicoop,
    red_record, sicoop_record,
)
from core_ext._pack cimport (
    Text, field_is, is_text, nothing, put_array, put_chars, put_decimal, put_uint, same, skip,
    split_array, take_array, take_bool, take_str, take_uint, text, text_at, uint_at,
)
from core_ext._payload cimport Operation
from core_ext._records cimport Records
from core_ext._siphash cimport sip_key
from core_ext._ticket cimport HEAD_LINES, Line, Printed, Ticket, compose, fits_line

cdef enum:
    COMMANDS_MAX = 6   # of a cash_out: two holds, a step, a clearing, two captures
    VERSION_MAX = 32
    HOLDER_MAX = 40
    CARD_MAX = 32      # bytes of a card's reference, as messages bound it

cdef int64_t REPEAT_OVER_MIDNIGHT_NS = 600_000_000_000  # rule R7

WHY = (
    "", "off", "form", "known", "peer", "amount", "account", "person", "card", "code", "ledger",
    "till", "time", "state", "paper", "count", "cap", "name",
)
"""Names of the reasons for leaving a request to the flows, by their number; "": it was decided."""


cdef inline bint digits(Text t, Py_ssize_t least, Py_ssize_t most) noexcept nogil:
    cdef Py_ssize_t i
    if not least <= t.n <= most:
        return False
    for i in range(t.n):
        if not 48 <= t.p[i] <= 57:
            return False
    return True


cdef inline Text since(Pen* w, const unsigned char* start) noexcept nogil:
    """What was written from `start` on."""
    return text(start, w.at - start)


cdef inline Text zero_filled(Pen* w, Text t) noexcept nogil:
    """Six digits."""
    cdef const unsigned char* start = w.at
    put(w, b"000000", 6 - t.n)
    put(w, t.p, t.n)
    return since(w, start)


cdef Text text_of(object value) except *:
    """The text of a str, in its own memory; none for anything else, such as UNSET."""
    cdef Py_ssize_t n = 0
    cdef const char* p
    if type(value) is not str:
        return nothing()
    p = PyUnicode_AsUTF8AndSize(value, &n)
    return text(p, n)


cdef bint phone_of(Text given, Pen* w, Text* phone) noexcept nogil:
    """A telephone number in E.164 form, as `norms.phone`; False for another one."""
    cdef const unsigned char* start = w.at
    if digits(given, 10, 10) and given.p[0] == 48 and given.p[1] == 57:  # 09
        put(w, b"+595", 4)
        put(w, given.p + 1, 9)
        phone[0] = since(w, start)
        return True
    if given.n < 1 or given.p[0] != 43 or not digits(text(given.p + 1, given.n - 1), 8, 15):
        return False
    if given.p[1] == 48 or (is_text(text(given.p, 5), b"+5959", 5) and given.n != 13):
        return False
    phone[0] = given
    return True


@cython.final
cdef class Straight:
    """The common operations of one process, over its records and ledger.

    Args:
        fingerprint_key: 16 bytes, as the flows use them.
        told: what sicoop has told of each network's cap, see `DepositRules`.

    Attributes:
        near: all three roles decide in this process; else nothing is decided here.
    """

    def __cinit__(
        self, *, Issuer issuer not None, Records records not None, Ledger ledger not None,
        bytes fingerprint_key not None, bytearray told not None,
    ):
        if len(fingerprint_key) != 16:
            raise ValueError("a key has 16 bytes")
        self.issuer = issuer
        self.deposits = DepositRules(ledger=ledger, told=told)
        self._records = records
        self._ledger = ledger
        self._batch = Batch()
        self._probe = Batch()
        self._fresh = Batch()
        self._fingerprint = sip_key(<const unsigned char*> <const char*> fingerprint_key)

    # ---- what is told

    def set_times(
        self, *, int64_t from_ns, int64_t until_ns, int64_t day_start_ns, str today not None,
        str yesterday not None, str business_date not None, int32_t day, uint64_t first_operation,
        str limits_version not None, bint night, int64_t utc_offset_ns,
    ):
        """What is true from one instant up to another, in nanoseconds since 1970.

        Args:
            day_start_ns: when the local day began.
            today, yesterday: local dates, `20261122`. business_date: `2026-11-22`.
            day: the business date as a number.
            first_operation: lowest number of an operation of this date.
            night: night windows count what is done now.
            utc_offset_ns: local time less UTC.
        """
        self._until_ns = 0
        copy_exactly(self._today, today, 8)
        copy_exactly(self._yesterday, yesterday, 8)
        copy_exactly(self._business, business_date, 10)
        version = limits_version.encode()
        self._version_n = len(version)
        copy_exactly(self._version, limits_version, min(self._version_n, VERSION_MAX))
        self._day_start_ns = day_start_ns
        self._day = day
        self._first_operation = first_operation
        self._night = night
        self._offset_ns = utc_offset_ns
        self._from_ns = from_ns
        self._until_ns = until_ns

    def expire(self):
        """Decide nothing before the next `set_times`."""
        self._until_ns = 0

    def covers(self, int64_t now_ns):
        """Whether `set_times` told what is true at an instant."""
        return self._from_ns <= now_ns < self._until_ns

    def set_ticket(
        self, list heading not None, tuple titles not None, int branch_line, int branch_at,
        MacKey key not None,
    ):
        """How tickets look.

        Args:
            heading: the lines above the title, none of them empty.
            titles: of a cash_out, of a deposit.
            branch_line, branch_at: in which line, and where, the six digits of the branch stand.
            key: proves a ticket; HMAC-SHA-256.

        Raises:
            ValueError: a line is too long, or has signs that JSON would escape.
        """
        cdef int i
        self._style.known = False
        if len(heading) > HEAD_LINES or key.mac_bytes != 32:
            raise ValueError("a heading has at most 4 lines, the key is one of HMAC-SHA-256")
        for i in range(len(heading)):
            copy_line(&self._style.head[i], heading[i])
        for i in range(2):
            copy_line(&self._style.titles[i], titles[i])
        if not 0 <= branch_line < len(heading) or not 0 <= branch_at <= 34:
            raise ValueError("the branch stands in one of the lines")
        self._style.head_count = len(heading)
        self._style.branch_line = branch_line
        self._style.branch_at = branch_at
        self._ticket_key = key
        self._style.known = True

    def forget_ticket(self):
        """Tickets look in a way that is not for us: who wants one is left to the flows."""
        self._style.known = False

    def add_money(
        self, str currency not None, bytes clearing not None, bytes issuer not None,
        str sign not None, int exponent,
    ):
        """Tell the accounts of a currency, once they exist, at the issuer and at sicoop; and how
        its amounts are written."""
        cdef int i = 0
        cdef bytes raw = sign.encode()
        if len(issuer) != 16 or len(raw) > <Py_ssize_t> sizeof(self._money[0].symbol.sign):
            raise ValueError("an account has 16 bytes, a sign at most 8")
        self.issuer.add_clearing(currency, clearing)
        while i < self._money_count and self._money[i].currency[:3] != currency.encode():
            i += 1
        if i == CURRENCIES:
            return
        copy_exactly(self._money[i].currency, currency, 3)
        memcpy(&self._money[i].issuer, <const char*> issuer, 16)
        memcpy(self._money[i].symbol.sign, <const char*> raw, len(raw))
        self._money[i].symbol.n = len(raw)
        self._money[i].symbol.exponent = exponent
        self._money_count = max(self._money_count, i + 1)

    def add_position(self, str network not None, str currency not None, bytes account not None):
        """Tell the account of a network at sicoop, once it exists."""
        cdef int number = int(network)
        if not 0 <= number < NETWORKS_MAX or len(account) != 16:
            raise ValueError("a network has 4 digits, an account 16 bytes")
        copy_exactly(self._positions[number].currency, currency, 3)
        memcpy(&self._positions[number].account, <const char*> account, 16)
        self._positions[number].known = True

    @property
    def counts(self):
        """How many cash_outs were decided, and left to the flows for what reason."""
        cdef int i
        return {WHY[i] or "decided": self._counts[0][i] for i in range(<int> WHYS)}

    @property
    def deposit_counts(self):
        """The same of deposits."""
        cdef int i
        return {WHY[i] or "decided": self._counts[1][i] for i in range(<int> WHYS)}

    # ---- deciding

    def cash_out(self, str terminal not None, message, int64_t now_ns):
        """Decide a `CashOut` of a signed-on terminal, all its fields decoded and in range; without
        a ticket.

        Returns (operation, authorization) of one that was approved, registered and captured; or
        the reason, one of `WHY`, for which it is left to the flows, with nothing changed.

        Raises:
            whatever ledger and record store raise; the node must stop then.
        """
        cdef Operation m
        fill_operation(&m, message)
        m.deposit = False
        m.token = text_of(message.token)
        m.card = m.depositor = nothing()
        return self._result(terminal, &m, now_ns)

    def deposit(self, str terminal not None, message, int64_t now_ns):
        """The same for a `Deposit`."""
        cdef Operation m
        if type(message.token) is str or type(message.declaration) is dict:
            return "form"
        fill_operation(&m, message)
        m.deposit = True
        m.token = nothing()
        m.card = text_of(message.card)
        m.depositor = text_of(message.depositor)
        return self._result(terminal, &m, now_ns)

    cdef object _result(self, str terminal, const Operation* m, int64_t now_ns):
        cdef Done done
        cdef int why = self.decide(text_of(terminal), m, now_ns, &done, NULL)
        if why != MINE:
            return WHY[why]
        return done.operation[:12].decode("ascii"), done.authorization[:6].decode("ascii")

    cdef int decide(
        self, Text terminal, const Operation* m, int64_t now_ns, Done* done, Ticket* ticket
    ) except -1:
        """Decide one request; MINE: it is approved and written, else a `Why` and no change.

        `ticket` gets the lines where the terminal wants one; NULL: somebody else composes it. What
        was left to the flows a moment ago is not examined, nor counted, again.
        """
        cdef int why
        if (now_ns == self._refused_ns and m.trace == self._refused_trace
                and same(terminal, text(self._refused_terminal, 8))):
            return self._refused_why
        why = self._decide(terminal, m, now_ns, done, ticket)
        self._counts[<int> m.deposit][why] += 1
        if why not in (MINE, ACCOUNT, TIME) and terminal.n == 8:
            memcpy(self._refused_terminal, terminal.p, 8)
            self._refused_trace = m.trace
            self._refused_ns = now_ns
            self._refused_why = why
        return why

    cdef int _decide(
        self, Text terminal, const Operation* m, int64_t now_ns, Done* done, Ticket* ticket
    ) except -1:
        cdef Asked a
        cdef Grant g
        cdef Meters meters
        cdef Pen w = pen(a.texts, TEXTS_MAX)
        cdef int why
        if not self._from_ns <= now_ns < self._until_ns:
            return TIME
        if not self.near:
            return OFF
        why = self._identity(m, &a, &w)
        if why == MINE:
            why = self._peers(terminal, m, &a, &w)
        if why == MINE:
            why = self._name(m, &a, now_ns, &w)
        if why == MINE:
            why = self._accounts(&a)
        if why == MINE and a.ticket and ticket != NULL and not self._printable(&a):
            why = PAPER
        if why == MINE:
            why = self._judge(&a, &g, &meters, now_ns, &w)
        if why != MINE:
            return why
        if not a.deposit and not self._grantable(&a, &g, now_ns):
            return LEDGER
        if a.deposit and not self._deposit_grantable(&a, &g, &meters, now_ns):
            return LEDGER
        if a.ticket and ticket != NULL and not self._print(&a, &g, now_ns, ticket):
            return PAPER
        self._store(&a, &g, now_ns)
        done.ticket = a.ticket
        memcpy(done.reference, a.reference.p, REFERENCE)
        memcpy(done.operation, a.hold.operation.p, 12)
        memcpy(done.authorization, g.authorization, 6)
        memcpy(done.business_date, self._business, 10)
        done.trace = m.trace
        done.amount = m.amount
        return MINE

    cdef int _judge(
        self, Asked* a, Grant* g, Meters* meters, int64_t now_ns, Pen* w
    ) except -1:
        """What sicoop and the issuer have to say; a `Why`."""
        cdef int why
        if not a.deposit:
            return self.issuer.examine(&a.hold, now_ns, g)
        why = self.deposits.judge(a, meters)
        if why == MINE:
            why = self.issuer.examine_deposit(&a.hold, a.card, a.depositor, now_ns, w, g)
        return FORM if why == MINE and w.short else why

    cdef int mark(
        self, Text terminal, uint32_t original, int64_t now_ns, Marked* marked
    ) except -1:
        """Mark the delivery of an operation registered today, as `Red._delivered`: MINE, and it is
        written; else a `Why` and no change. Wherever its other roles are, it is of red alone."""
        cdef unsigned char reference[REFERENCE]
        cdef unsigned char out[VALUE_MAX]
        cdef const unsigned char* at[RED_FIELDS + 1]
        cdef const unsigned char* value = NULL
        cdef Pen w = pen(reference, REFERENCE)
        cdef Py_ssize_t n = 0
        cdef Cursor c
        cdef Text network, number, date, operation, authorization
        cdef uint64_t stamp
        cdef bint owes
        if not self._from_ns <= now_ns < self._until_ns:
            return TIME
        if terminal.n != 8 or not self._records.lookup(SPACE_TERMINALS, terminal.p, 8, &value, &n):
            return PEER
        c = cursor(value, n)
        take_array(&c)
        number, network = take_str(&c), take_str(&c)
        put(&w, network.p, network.n)
        put(&w, number.p, number.n)
        put(&w, self._today, 8)
        put_decimal(&w, original, 6)
        if w.short or w.at - reference != REFERENCE or not self._records.lookup(
            SPACE_RED, reference, REFERENCE, &value, &n
        ):
            return STATE
        if not split_array(value, n, at, RED_FIELDS):
            return STATE
        owes = field_is(at, 24, b"\xa7confirm", 8)  # to a platform in another process
        marked.deposit = field_is(at, 1, b"\xa7deposit", 8)
        if not (
            (marked.deposit or field_is(at, 1, b"\xa8cash_out", 9))
            and field_is(at, 12, b"\xaaREGISTRADA", 11)
            and field_is(at, 22, b"\0", 1) and (owes or field_is(at, 24, b"\xa0", 1))
            and field_is(at, 33, b"\xa0", 1)  # no delivery, and no annulment under way
        ):
            return STATE
        operation, authorization, date = text_at(at, 15), text_at(at, 16), text_at(at, 17)
        if operation.n != 12 or authorization.n != 6 or date.n != 10:
            return STATE
        memcpy(marked.operation, operation.p, 12)
        memcpy(marked.authorization, authorization.p, 6)
        memcpy(marked.business_date, date.p, 10)
        marked.trace = <uint32_t> uint_at(at, 6)
        marked.amount = <int64_t> uint_at(at, 7)
        c = cursor(at[18], at[19] - at[18])
        marked.fee = <int64_t> take_uint(&c)
        if c.short:  # what a platform elsewhere said of its fee may be strange
            return STATE
        stamp = uint_at(at, 11)
        w = pen(out, VALUE_MAX)
        put(&w, value, at[12] - value)
        put_chars(&w, b"ENTREGADA", 9)
        put(&w, at[13], at[22] - at[13])
        put_uint(&w, <uint64_t> now_ns)
        put(&w, at[23], at[32] - at[23])
        c = cursor(at[32], at[33] - at[32])
        put_array(&w, take_array(&c) + 1)
        put(&w, c.at, at[33] - c.at)
        put_moment(&w, b"ENTREGADA", 9, now_ns)
        put(&w, at[33], at[RED_FIELDS] - at[33])
        if w.short:
            return STATE
        self._records.store(SPACE_RED, reference, REFERENCE, out, w.at - out, owes, stamp)
        return MINE

    cdef int _identity(self, const Operation* m, Asked* a, Pen* w) noexcept:
        """Fields that need nobody's record, in normal form."""
        if not digits(m.cashier, 1, 6) or not (m.deposit or digits(m.token, 6, 8)):
            return FORM
        a.deposit = m.deposit
        a.kind = text(b"deposit", 7) if m.deposit else text(b"cash_out", 8)
        if not chosen_of(m, a):
            return FORM
        if m.branch.p != NULL and not digits(m.branch, 1, 6):
            return FORM
        if not is_text(m.document_type, b"CI", 2) or m.currency.n != 3:
            return FORM
        if (m.document.p == NULL) == (m.phone.p == NULL):
            return FORM
        a.business_date = text(self._business, 10)
        a.limits_version = text(self._version, self._version_n)
        a.hold.document = a.hold.phone = a.hold.link = nothing()
        a.hold.declared = 0
        if m.document.p != NULL:
            if not digits(m.document, 5, 8):
                return FORM
            a.hold.document = m.document
        elif not phone_of(m.phone, w, &a.hold.phone):
            return FORM
        a.hold.document_type = m.document_type
        a.hold.token = m.token
        a.hold.currency = m.currency
        a.hold.amount = m.amount
        a.hold.cashier = zero_filled(w, m.cashier)
        a.trace = m.trace
        return MINE if allows(&self.issuer._rules[<int> m.deposit].bounds, m.amount) else AMOUNT

    cdef int _peers(self, Text terminal, const Operation* m, Asked* a, Pen* w) noexcept:
        """Terminal, network, branch and cashier: known, of each other, and enabled."""
        cdef unsigned char key[10]
        cdef const unsigned char* value = NULL
        cdef Py_ssize_t n = 0
        cdef Cursor c
        if terminal.n != 8 or not self._records.lookup(
            SPACE_TERMINALS, terminal.p, terminal.n, &value, &n
        ):
            return PEER
        c = cursor(value, n)
        if take_array(&c) < 6:
            return PEER
        a.hold.terminal = a.newest = take_str(&c)
        a.hold.network = take_str(&c)
        a.hold.branch = take_str(&c)
        if take_bool(&c) or a.hold.network.n != 4 or a.hold.terminal.n != 8:
            return PEER
        skip(&c, 1)
        a.ticket = take_bool(&c)
        if c.short:
            return PEER
        if m.branch.p != NULL:
            a.hold.branch = zero_filled(w, m.branch)
        if a.hold.branch.n != 6:
            return PEER
        memcpy(key, a.hold.network.p, 4)
        if not self._records.lookup(SPACE_NETWORKS, key, 4, &value, &n):
            return PEER
        c = cursor(value, n)
        if take_array(&c) < 7:
            return PEER
        skip(&c, 2)
        if take_bool(&c):
            return PEER
        skip(&c, 1)
        a.debit_cap = take_uint(&c)
        skip(&c, 1)
        if not same(take_str(&c), m.currency) or c.short:
            return PEER
        memcpy(key + 4, a.hold.branch.p, 6)
        if not self._records.lookup(SPACE_BRANCHES, key, 10, &value, &n):
            return PEER
        c = cursor(value, n)
        if take_array(&c) < 4:
            return PEER
        skip(&c, 3)
        if take_bool(&c) or c.short:
            return PEER
        memcpy(key + 4, a.hold.cashier.p, 6)
        a.cashier_name = nothing()
        if self._records.lookup(SPACE_CASHIERS, key, 10, &value, &n):
            c = cursor(value, n)
            if take_array(&c) < 6:
                return PEER
            skip(&c, 3)
            a.cashier_name = take_str(&c)
            skip(&c, 1)
            if take_bool(&c) or c.short:
                return PEER
        return TILL if self._records.lookup(SPACE_SHIFTS, key, 10, &value, &n) else MINE

    cdef int _name(self, const Operation* m, Asked* a, int64_t now_ns, Pen* w) noexcept:
        """The reference of the request, the number of the operation, and both must be new."""
        cdef const unsigned char* start
        cdef const unsigned char* value = NULL
        cdef Py_ssize_t n = 0
        cdef uint64_t number
        if not self._refer(m, a, now_ns, w):
            return KNOWN
        number = self._next_operation()
        start = w.at
        put_decimal(w, number, 12)
        a.hold.operation = since(w, start)
        a.hold.day = self._day
        memcpy(&a.own, start, 12)
        memcpy(<unsigned char*> &a.own + 12, b"SICO", 4)
        if w.short:
            return FORM
        start = w.at
        put(w, a.hold.network.p, 4)
        put(w, a.hold.operation.p, 12)
        if w.short or self._records.lookup(SPACE_CEIBO, start, 16, &value, &n):
            return KNOWN
        return MINE

    cdef bint _refer(self, const Operation* m, Asked* a, int64_t now_ns, Pen* w) noexcept:
        """Name the request; False where its reference is known."""
        cdef const unsigned char* start = w.at
        put(w, a.hold.network.p, 4)
        put(w, a.hold.terminal.p, 8)
        put(w, self._today, 8)
        put_decimal(w, m.trace, 6)
        a.reference = since(w, start)
        return not w.short and not self._known(a, now_ns)

    cdef uint64_t _next_operation(self) noexcept:
        """One more than the highest number so far, or the day's first, as `Sicoop` counts."""
        cdef const unsigned char* value = NULL
        cdef Py_ssize_t n = 0, i
        cdef uint64_t last = 0
        if self._records.lookup(SPACE_META, b"operation", 9, &value, &n):
            for i in range(n):
                last = 10 * last + value[i] - 48
        return max(last + 1, self._first_operation)

    cdef bint _known(self, Asked* a, int64_t now_ns) noexcept:
        """Whether red or sicoop has this reference, or red had it just before midnight."""
        cdef unsigned char before[REFERENCE]
        cdef const unsigned char* value = NULL
        cdef Py_ssize_t n = 0
        if (self._records.lookup(SPACE_RED, a.reference.p, REFERENCE, &value, &n)
                or self._records.lookup(SPACE_SICOOP, a.reference.p, REFERENCE, &value, &n)):
            return True
        if now_ns - self._day_start_ns >= REPEAT_OVER_MIDNIGHT_NS:
            return False
        memcpy(before, a.reference.p, REFERENCE)
        memcpy(before + 12, self._yesterday, 8)
        return self._records.lookup(SPACE_RED, before, REFERENCE, &value, &n)

    cdef int _accounts(self, Asked* a) noexcept:
        """Those of sicoop's book, if they were told."""
        cdef int i, number = 0
        cdef Position* position
        for i in range(4):
            if not 48 <= a.hold.network.p[i] <= 57:
                return PEER
            number = 10 * number + a.hold.network.p[i] - 48
        position = &self._positions[number]
        if not position.known or not same(a.hold.currency, text(position.currency, 3)):
            return ACCOUNT
        a.net = position.account
        for i in range(self._money_count):
            if same(a.hold.currency, text(self._money[i].currency, 3)):
                a.issuer = self._money[i].issuer
                a.symbol = &self._money[i].symbol
                return MINE
        return ACCOUNT

    cdef bint _printable(self, const Asked* a) noexcept:
        return self._style.known and fits_line(a.cashier_name)

    cdef int _print(
        self, const Asked* a, const Grant* g, int64_t now_ns, Ticket* ticket
    ) except -1:
        """Compose the ticket of what is about to be registered; 0: a name that is not for paper."""
        cdef unsigned char holder[HOLDER_MAX]
        cdef Pen w = pen(holder, HOLDER_MAX)
        cdef Printed p
        if not put_plain(&w, g.name):
            return 0
        p.deposit = a.deposit
        p.holder = text(holder, w.at - holder)
        p.reference = a.reference
        p.operation = a.hold.operation
        p.authorization = text(g.authorization, 6)
        p.terminal = a.hold.terminal
        p.branch = a.hold.branch
        p.cashier = a.hold.cashier
        p.cashier_name = a.cashier_name
        p.document_type = a.hold.document_type if a.hold.document.p != NULL else nothing()
        p.identity = a.hold.document if a.hold.document.p != NULL else a.hold.phone
        p.currency = a.hold.currency
        p.business_date = text(self._business, 10)
        p.amount = a.hold.amount
        p.fee = 0
        p.second = (now_ns + self._offset_ns) // 1_000_000_000 % 86400
        p.trace = a.trace
        compose(&self._style, a.symbol, self._ticket_key, &p, ticket)
        return 1

    # ---- the ledger

    cdef bint _grantable(self, const Asked* a, const Grant* g, int64_t now_ns) except -1:
        """Fill the batch, and ask the ledger whether it would take both holds."""
        cdef Batch batch = self._batch
        cdef HoldTerms terms
        cdef CaptureTerms whole
        cdef const unsigned char* own = <const unsigned char*> &a.own
        cdef const unsigned char* hold = <const unsigned char*> &g.hold
        cdef const unsigned char* lock = <const unsigned char*> &g.card.lock
        memset(&terms, 0, sizeof(terms))
        memset(&whole, 0, sizeof(whole))
        terms.day = a.hold.day
        terms.policy = POLICY_ASK
        terms.options = H_METERED | (H_NIGHT if self._night else 0)
        batch.restart()
        batch.add_hold(
            own, <const unsigned char*> &a.issuer, <const unsigned char*> &a.net, a.hold.amount,
            &terms, NULL, False,
        )
        batch.add_step(lock, g.step)
        batch.add_clear(lock, True)
        terms.code = 1
        batch.add_hold(
            hold, g.card.account.p, <const unsigned char*> &g.clearing, a.hold.amount, &terms,
            NULL, False,
        )
        batch.add_capture(own, 0, &whole, NULL, False)
        batch.add_capture(hold, 0, &whole, NULL, False)
        return (
            self._ledger.has_room(2, 0, 1)
            and would_hold(self._ledger, batch, 0, now_ns)
            and would_hold(self._ledger, batch, 3, now_ns)
        )

    cdef bint _deposit_grantable(
        self, const Asked* a, const Grant* g, const Meters* meters, int64_t now_ns
    ) except -1:
        """The same for a deposit, whose meters may have to be made first (`_fresh`). Of these it is
        known that they have room (`_deposit`); the ledger is asked about a hold without them."""
        cdef Batch batch = self._batch
        cdef HoldTerms terms
        cdef CaptureTerms whole
        cdef const unsigned char* own = <const unsigned char*> &a.own
        cdef const unsigned char* hold = <const unsigned char*> &g.hold
        cdef const unsigned char* net = <const unsigned char*> &a.net
        cdef const unsigned char* issuer = <const unsigned char*> &a.issuer
        cdef const unsigned char* clearing = <const unsigned char*> &g.clearing
        memset(&terms, 0, sizeof(terms))
        memset(&whole, 0, sizeof(whole))
        terms.day = a.hold.day
        terms.policy = POLICY_ASK
        terms.options = H_METERED | H_METER_CREDIT | (H_NIGHT if self._night else 0)
        self._probe.restart()
        self.deposits.set_terms(meters, True, &terms)
        self._probe.add_hold(own, net, issuer, a.hold.amount, &terms, NULL, False)
        self._fresh.restart()
        self.deposits.add_meters(meters, self._fresh)
        batch.restart()
        self.deposits.set_terms(meters, False, &terms)
        batch.add_hold(own, net, issuer, a.hold.amount, &terms, NULL, False)
        terms.meter_count = 0
        terms.code = 2
        self._probe.add_hold(hold, clearing, g.card.account.p, a.hold.amount, &terms, NULL, False)
        batch.add_hold(hold, clearing, g.card.account.p, a.hold.amount, &terms, NULL, False)
        batch.add_capture(own, 0, &whole, NULL, False)
        batch.add_capture(hold, 0, &whole, NULL, False)
        return (
            self._ledger.has_room(2, 0, 0)
            and would_hold(self._ledger, self._probe, 0, now_ns)
            and would_hold(self._ledger, self._probe, 1, now_ns)
        )

    # ---- writing

    cdef int _store(self, const Asked* a, const Grant* g, int64_t now_ns) except -1:
        """Post, and write what all roles keep. Values are made before anything changes, since
        texts lie in the record store."""
        cdef unsigned char red[VALUE_MAX]
        cdef unsigned char sicoop[VALUE_MAX]
        cdef unsigned char ceibo[VALUE_MAX]
        cdef unsigned char names[64]
        cdef unsigned char results[COMMANDS_MAX]
        cdef Py_ssize_t red_n = red_record(
            a, g, digest_at_red(self._fingerprint, a), now_ns, red
        )
        cdef Py_ssize_t sicoop_n = sicoop_record(
            a, g, digest_at_sicoop(self._fingerprint, a), now_ns, sicoop
        )
        cdef Py_ssize_t ceibo_n = self.issuer.encode(&a.hold, g, now_ns, True, ceibo)
        cdef unsigned char* operation = names
        cdef unsigned char* newest = names + 12
        cdef uint64_t stamp = <uint64_t> now_ns
        cdef Records records = self._records
        cdef Py_ssize_t i
        assert red_n and sicoop_n and ceibo_n, "normal forms fit into a record"
        memcpy(operation, a.hold.operation.p, 12)
        memcpy(newest, a.newest.p, 8)
        if a.deposit and len(self._fresh):
            self._ledger.apply_batch(self._fresh, 0, results)  # as the flows: born at no time
            for i in range(len(self._fresh)):
                assert results[i] == DONE, "there is room for an account"
        self._ledger.apply_batch(self._batch, now_ns, results)
        for i in range(len(self._batch)):
            assert results[i] == DONE, "the ledger was asked a moment ago"
        records.store(SPACE_META, b"operation", 9, operation, 12, False, 0)
        records.store(SPACE_BY_OPERATION, operation, 12, a.reference.p, REFERENCE, False, stamp)
        records.store(SPACE_NEWEST, newest, 8, a.reference.p, REFERENCE, False, stamp)
        records.store(SPACE_RED, a.reference.p, REFERENCE, red, red_n, False, stamp)
        records.store(SPACE_SICOOP, a.reference.p, REFERENCE, sicoop, sicoop_n, False, stamp)
        records.store(
            SPACE_CEIBO, <const unsigned char*> &g.hold, 16, ceibo, ceibo_n, False, stamp
        )
        return 0


cdef int fill_operation(Operation* m, object message) except -1:
    """What cash_out and deposit have in common."""
    m.cashier = text_of(message.cashier)
    m.document_type = text_of(message.document_type)
    m.document = text_of(message.document)
    m.phone = text_of(message.phone)
    m.currency = text_of(message.currency)
    m.branch = text_of(message.branch)
    m.amount = message.amount
    m.trace = message.trace
    return 0


cdef bint chosen_of(const Operation* m, Asked* a) noexcept:
    """The card that was chosen, and who brings the cash; False where they are not as usual."""
    a.card = a.depositor = nothing()
    if m.card.p != NULL:
        if not 1 <= m.card.n <= CARD_MAX:
            return False
        a.card = m.card
    if m.depositor.p != NULL:
        if m.depositor.n < 2 or not is_text(text(m.depositor.p, 2), b"CI", 2):
            return False
        if not digits(text(m.depositor.p + 2, m.depositor.n - 2), 5, 8):
            return False
        a.depositor = m.depositor
    return True


cdef int copy_line(Line* line, str value) except -1:
    cdef bytes raw = value.encode()
    if len(raw) > <Py_ssize_t> sizeof(line.at) or not fits_line(text(<const char*> raw, len(raw))):
        raise ValueError("a line has at most 40 plain signs")
    memcpy(line.at, <const char*> raw, len(raw))
    line.n = len(raw)
    return 0


cdef int copy_exactly(unsigned char* to, str value, Py_ssize_t n) except -1:
    cdef bytes raw = value.encode()
    if len(raw) != n:
        raise ValueError(f"{n} bytes are needed")
    memcpy(to, <const char*> raw, n)
    return 0
