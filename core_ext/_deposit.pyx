"""What sicoop has to say about a deposit beside its amount, natively for the common one.

`switch.flows.sicoop` is the reference: limits and declarations count terminals, cashiers, branches
and depositors on accounts of their own ("meters"), a network on its position; an alarm is due each
time the position crosses 80, 90 or 100 % of the net debit cap. Here it is only found out that
nothing of that is the case: no threshold is reached or nearly so, no alarm is due. Anything else is
left to the flows before anything was changed. A meter that does not exist yet is made with the
hold, as the flows make it.
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport int32_t, int64_t, uint16_t, uint32_t, uint64_t
from libc.string cimport strlen

from core_ext._blake2 cimport blake2b_128
from core_ext._cursor cimport Pen, pen, put
from core_ext._issuer cimport CAP, COUNT, MINE, OFF
from core_ext._ledger cimport Account, Core
from core_ext._ledger_state cimport (
    WINDOWS, Profile, UsageSide, account_at, cold_at, find_account, period_of, tr_i128, usage_at,
)
from core_ext._names cimport mask_name, put_plain
from core_ext._pack cimport text

cdef enum:
    METERS_LEDGER = 1   # METERS and ACCOUNT_METER of `switch.flows.limit_book`
    METER_CODE = 90
    NAME_MAX = 128      # bytes of a meter's name
    MASKED_MAX = 64

cdef extern from *:
    """
    static const char* const tr_scopes[] = {"terminal", "cashier", "branch", "depositor"};
    static const int tr_percent[] = {80, 90, 100};  /* ALARM_PERCENT of switch.flows.sicoop */
    """
    const char* SCOPE_NAMES "tr_scopes"[4]
    const int PERCENT "tr_percent"[3]

_SCOPES = ("terminal", "cashier", "branch", "depositor", "network")
_SIDES = ("debit", "credit")
_WINDOWS = ("day", "night", "week", "month")


cdef void used_so_far(
    Core* core, const Id* id, int side, int window, int32_t day, int64_t* amount, uint32_t* count
) noexcept nogil:
    """Sum and count of a window, as `Ledger.usage`."""
    cdef uint32_t ref = find_account(core, id)
    cdef int32_t period = period_of(window, day)
    cdef UsageSide* u
    amount[0], count[0] = 0, 0
    if ref == 0 or cold_at(core, ref).usage == 0:
        return
    u = &usage_at(core, cold_at(core, ref).usage).side[side]
    if u.current[window].period == period:
        amount[0], count[0] = u.current[window].amount, u.current[window].count
    elif u.previous[window].period == period:
        amount[0], count[0] = u.previous[window].amount, u.previous[window].count


cdef bint is_free(const Profile* p, int64_t amount) noexcept nogil:
    """Whether an account that counts nothing yet may be credited this much by its profile."""
    cdef int64_t most
    cdef int window
    if not p.known or amount < p.operation_min or p.operation_max or p.multiple > 1:
        return False
    for window in range(WINDOWS):
        most = p.amount[WINDOWS + window]
        if most and amount > most:
            return False
    return True


cdef bint meter_id(int scope, const Asked* a, Id* id) noexcept nogil:
    """Account that counts the deposits of a subject, as `limit_book.meter_id` names it."""
    cdef unsigned char name[NAME_MAX]
    cdef Pen w = pen(name, NAME_MAX)
    put(&w, b"meter:", 6)
    put(&w, SCOPE_NAMES[scope], <Py_ssize_t> strlen(SCOPE_NAMES[scope]))
    put(&w, b":deposit:", 9)
    if scope == 0:
        put(&w, a.hold.terminal.p, a.hold.terminal.n)
    elif scope == 1:
        put(&w, a.hold.network.p, a.hold.network.n)
        put(&w, a.hold.cashier.p, a.hold.cashier.n)
    elif scope == 2:
        put(&w, a.hold.network.p, a.hold.network.n)
        put(&w, a.hold.branch.p, a.hold.branch.n)
    elif a.depositor.n:
        put(&w, a.depositor.p, a.depositor.n)
    elif a.hold.document.p != NULL:
        put(&w, a.hold.document_type.p, a.hold.document_type.n)
        put(&w, a.hold.document.p, a.hold.document.n)
    else:
        put(&w, b"TEL", 3)
        put(&w, a.hold.phone.p, a.hold.phone.n)
    return not w.short and blake2b_128(name, w.at - name, <unsigned char*> id)


@cython.final
cdef class DepositRules:
    """Limits, declarations and caps of deposits, as far as they leave the common one alone.

    Args:
        told: one byte for each of the 10,000 numbers of networks: the highest percentage of its
            net debit cap that the newest deposit reached; sicoop keeps it.
    """

    def __cinit__(self, *, Ledger ledger not None, bytearray told not None):
        if len(told) != 10_000:
            raise ValueError("networks have four digits")
        self._ledger = ledger
        PyObject_GetBuffer(told, &self._told, PyBUF_SIMPLE)
        self._has_told = True

    def __dealloc__(self):
        if self._has_told:
            PyBuffer_Release(&self._told)

    def set_rules(
        self, *, bint open, dict profiles not None, list declarations not None, bint structuring,
        int percent, int count,
    ):
        """What holds from now on.

        Args:
            open: False: no deposit is decided here.
            profiles: of the ledger, by the scopes that are counted: terminal, cashier, branch,
                depositor.
            declarations: thresholds: (scope, side of its account, window, amount); every scope but
                network is counted.
            structuring, percent, count: whether deposits that together reach so much of a
                threshold, and are so many, are to be told (D20).

        Raises:
            ValueError: more thresholds than there is room for, or an unknown scope; none is
                decided.
        """
        cdef Declaration* d
        self._open = False
        if len(declarations) > DECLARATIONS_MAX or not profiles.keys() <= set(_SCOPES[:SCOPES]):
            raise ValueError("at most 16 thresholds, of scopes that are known")
        for index in range(SCOPES):
            self._counted[index] = _SCOPES[index] in profiles
            self._profiles[index] = profiles.get(_SCOPES[index], 0)
        self._declaration_count = 0
        for scope, side, window, threshold in declarations:
            d = &self._declarations[self._declaration_count]
            d.scope, d.side = _SCOPES.index(scope), _SIDES.index(side)
            d.window, d.threshold = _WINDOWS.index(window), threshold
            self._declaration_count += 1
        self._structuring = structuring
        self._percent = percent
        self._count = count
        self._open = open

    cdef int judge(self, const Asked* a, Meters* meters) noexcept:
        """Whether sicoop would take this deposit without a word; MINE, or a `Why`. `meters`: the
        accounts that count it."""
        if not self._open or not a.debit_cap:
            return OFF
        if not self._cap_is_quiet(a):
            return CAP
        if not self._find_meters(a, meters) or self._undeclared(a):
            return COUNT
        return MINE

    cdef bint _cap_is_quiet(self, const Asked* a) noexcept:
        """Whether the hold leaves the position at the percentage that was told last; as
        `Sicoop._watch_cap`, whose percentages are rounded down."""
        cdef const Account* net = self._ledger.account_of(<const unsigned char*> &a.net)
        cdef int number = 0, reached = 0, i
        cdef tr_i128 used
        if net == NULL or net.credit_limit <= 0:
            return False
        used = net.debits_posted
        used = used - net.credits_posted + net.debits_pending + a.hold.amount
        for i in range(3):
            if used * 100 >= <tr_i128> net.credit_limit * PERCENT[i]:
                reached = PERCENT[i]
        for i in range(4):
            number = 10 * number + a.hold.network.p[i] - 48
        return (<const unsigned char*> self._told.buf)[number] == reached

    cdef bint _find_meters(self, const Asked* a, Meters* meters) noexcept:
        """The accounts that count this deposit, those to be made included; False: one of these
        would refuse, or there is no room for it."""
        cdef Core* core = self._ledger._core
        cdef Meter* meter
        cdef int scope
        meters.count = meters.fresh = 0
        for scope in range(SCOPES):
            if not self._counted[scope]:
                continue
            meter = &meters.at[meters.count]
            meters.count += 1
            meter.profile = self._profiles[scope]
            if not meter_id(scope, a, &meter.id):
                return False
            meter.fresh = find_account(core, &meter.id) == 0
            if meter.fresh:
                meters.fresh += 1
                if not is_free(&core.profiles[meter.profile], a.hold.amount):
                    return False
        return core.accounts.most - core.accounts.live >= <uint32_t> meters.fresh

    cdef bint _undeclared(self, const Asked* a) noexcept:
        """Whether a threshold is reached, or a pattern to be told; as `_declaration_missing`."""
        cdef Core* core = self._ledger._core
        cdef Declaration* d
        cdef Id id
        cdef int64_t before = 0
        cdef uint32_t count = 0
        cdef tr_i128 total
        cdef int i
        for i in range(self._declaration_count):
            d = &self._declarations[i]
            if d.scope == NETWORK_SCOPE:
                id = a.net
            elif not meter_id(d.scope, a, &id):
                return True
            used_so_far(core, &id, d.side, d.window, a.hold.day, &before, &count)
            total = before
            total = total + a.hold.amount
            if total >= d.threshold:
                return True
            if (self._structuring and <int64_t> count + 1 >= self._count
                    and total * 100 >= <tr_i128> d.threshold * self._percent):
                return True
        return False

    cdef int add_meters(self, const Meters* meters, Batch batch) except -1:
        """Queue the making of those that do not exist yet."""
        cdef int i
        for i in range(meters.count):
            if meters.at[i].fresh:
                batch.add_account(
                    <const unsigned char*> &meters.at[i].id, METERS_LEDGER, METER_CODE,
                    meters.at[i].profile,
                )
        return 0

    cdef int set_terms(self, const Meters* meters, bint known_only, HoldTerms* terms) noexcept:
        """Name the meters in the terms of a hold; `known_only`: those that exist by now."""
        cdef int i
        terms.meter_count = 0
        for i in range(meters.count):
            if not (known_only and meters.at[i].fresh):
                terms.meters[terms.meter_count] = <const unsigned char*> &meters.at[i].id
                terms.meter_count += 1
        return 0


# ---- for tests: what flows and native core both make


def masked_name(str name not None):
    """A name as an answer has it and as a ticket does, or None where the flows would mask it."""
    cdef bytes raw = name.encode()
    cdef unsigned char masked[MASKED_MAX]
    cdef unsigned char plain[MASKED_MAX]
    cdef Pen w = pen(masked, MASKED_MAX)
    cdef Pen paper = pen(plain, MASKED_MAX)
    if not mask_name(text(<const char*> raw, len(raw)), &w):
        return None
    shown = (<const char*> masked)[:w.at - masked].decode()
    if not put_plain(&paper, text(masked, w.at - masked)):
        return shown, None
    return shown, (<const char*> plain)[:paper.at - plain].decode()


def account_id(bytes name not None):
    """Sixteen bytes of BLAKE2b of at most 128. Raises ValueError."""
    cdef unsigned char out[16]
    if not blake2b_128(<const unsigned char*> <const char*> name, len(name), out):
        raise ValueError("at most 128 bytes")
    return (<const char*> out)[:16]
