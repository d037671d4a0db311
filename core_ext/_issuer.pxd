"""What other native modules may use of `_issuer`: a hold as asked for, and what is found of it."""

from libc.stdint cimport int32_t, int64_t, uint64_t

from libc.string cimport memset

from core_ext._cursor cimport Cursor, Pen, pen, put
from core_ext._ledger cimport DONE, Batch, Command, Id, Ledger
from core_ext._mac cimport Sealed, SeedVault, TotpRule
from core_ext._pack cimport Text, put_array, put_chars, put_uint
from core_ext._records cimport Records
from core_ext._siphash cimport SipKey


cdef enum Why:     # why a request is left to the flows; MINE: it is not
    MINE = 0
    OFF = 1        # by the configuration
    FORM = 2       # fields that are rare, or no good
    KNOWN = 3      # its key was used already
    PEER = 4       # network, terminal, branch or cashier is unknown or disabled
    AMOUNT = 5
    ACCOUNT = 6    # a currency, or an account, that was not told yet
    PERSON = 7
    CARD = 8       # a card that would refuse, or is none of the usual ones
    CODE = 9
    LEDGER = 10    # the ledger would refuse
    TILL = 11      # a shift counts its cash
    TIME = 12      # the times told are over
    STATE = 13     # of a hold to be captured or released
    PAPER = 14     # a ticket with signs that are not plain
    COUNT = 15     # of a deposit: near, or over, a limit or the threshold of a declaration
    CAP = 16       # of a deposit: an alarm about the network's position is due
    NAME = 17      # of a deposit: its holder's name has rare letters
    WHYS = 18

cdef enum:
    SPACE_NETWORKS = 1
    SPACE_BRANCHES = 2
    SPACE_TERMINALS = 3
    SPACE_CASHIERS = 4
    SPACE_PERSONS = 5
    SPACE_CARDS = 6
    SPACE_PERSON_BY_DOCUMENT = 7
    SPACE_PERSONS_BY_PHONE = 8
    SPACE_META = 10
    SPACE_RED = 20
    SPACE_NEWEST = 21
    SPACE_SHIFTS = 22
    SPACE_SICOOP = 30
    SPACE_BY_OPERATION = 31
    SPACE_CEIBO = 40

cdef enum:
    KEY_MAX = 32           # bytes of a key in the record store
    CARDS_MAX = 16         # of one person, as tokens.max_cards may be set
    TIERS_MAX = 32
    CURRENCIES_MAX = 32
    HOLD_VALUE_MAX = 1024  # bytes of a hold's record

cdef struct Bounds:        # of one amount
    int64_t least
    int64_t most
    int64_t multiple

cdef struct HoldAsk:       # a cash_out as the issuer is asked; every text in its normal form
    Text network           # 4 digits
    Text operation         # 12 digits
    Text currency          # 3 letters
    Text terminal          # 8 digits
    Text branch            # 6 digits
    Text cashier           # 6 digits
    Text document_type
    Text document          # this or phone
    Text phone
    Text token             # 6 to 8 digits
    Text link              # host that asks; empty: the sicoop of this process
    int64_t amount
    int32_t day            # business date, days since 1970-01-01
    uint64_t declared      # digest of what repeats are compared in; 0: of the request itself

cdef struct DecisionAsk:   # a hold's capture or release; every text in its normal form
    Text network           # 4 digits
    Text operation         # 12 digits
    Text currency          # 3 letters
    Text link              # host that asks
    int64_t amount
    uint64_t declared      # digest of what repeats are compared in
    bint captures

cdef struct Card:          # texts lie in the record store: good until the next put
    Text id
    Text person
    Text account
    Text currency
    Text seed
    Text mode
    Text tier
    Text expires
    bint active
    bint pays              # cash_out is among its kinds
    bint takes             # deposit is
    Id lock                # of its tries and steps in the ledger

cdef struct Grant:         # what `examine` or `examine_deposit` found
    Card card
    bint deposit           # else a cash_out
    Text name              # of a deposit's holder, masked
    int64_t step           # the code's, to be consumed; 0: there is none
    Id hold                # id in the ledger
    Id clearing
    uint64_t fingerprint
    unsigned char authorization[6]

cdef struct Tier:
    unsigned char name[32]
    Py_ssize_t n
    Bounds bounds

cdef struct Rules:         # of one kind of operation
    bint open              # it is decided here at all
    Bounds bounds
    Tier tiers[TIERS_MAX]
    int tier_count

cdef struct Clearing:      # of one currency
    unsigned char currency[3]
    Id account


cdef inline bint allows(const Bounds* b, int64_t amount) noexcept nogil:
    return b.least <= amount <= b.most and amount % b.multiple == 0


cdef inline bint would_hold(Ledger ledger, Batch batch, Py_ssize_t index, int64_t now_ns) noexcept:
    """Whether the ledger would place that hold of a batch as its state is now."""
    return ledger.would_hold(batch, index, now_ns) == DONE


cdef inline bint lock_of(const char* purpose, Text first, Text second, Id* lock) noexcept nogil:
    """Ledger key of tries and steps, as `tokens.lock_key`; False for a name that is too long."""
    cdef Pen w = pen(lock, sizeof(Id))
    memset(lock, 0, sizeof(Id))
    put(&w, purpose, 4)
    put(&w, first.p, first.n)
    put(&w, second.p, second.n)
    return not w.short


cdef inline void put_moment(
    Pen* w, const char* state, Py_ssize_t n, int64_t at_ns
) noexcept nogil:
    """One line of an operation's history."""
    put_array(w, 2)
    put_chars(w, state, n)
    put_uint(w, <uint64_t> at_ns)


cdef class Issuer:
    cdef Records _records
    cdef Ledger _ledger
    cdef SeedVault _vault
    cdef TotpRule _rule
    cdef int _max_cards
    cdef int64_t _bound_above
    cdef SipKey _fingerprint
    cdef SipKey _authorization
    cdef Batch _batch
    cdef bint _night
    cdef public bint wants_clearing   # a request met a currency whose account was not told
    cdef Rules _rules[2]       # of cash_out, of deposit
    cdef Clearing _clearings[CURRENCIES_MAX]
    cdef int _clearing_count
    cdef int32_t _iso_day
    cdef unsigned char _iso[10]

    cdef int grant(self, const HoldAsk* m, int64_t now_ns, Grant* g) except -1
    cdef int conclude(
        self, const DecisionAsk* m, int64_t now_ns, unsigned char* authorization
    ) except -1
    cdef bint _conclude_in_ledger(
        self, const unsigned char* key, const DecisionAsk* m, int64_t now_ns
    ) except -1
    cdef int examine(self, const HoldAsk* m, int64_t now_ns, Grant* g) except -1
    cdef int find_cards(self, const HoldAsk* m, int64_t now_s, Card* cards, int* count) noexcept
    cdef bint find_person(self, const HoldAsk* m, Text* value) noexcept
    cdef int examine_deposit(
        self, const HoldAsk* m, Text chosen, Text depositor, int64_t now_ns, Pen* w, Grant* g
    ) noexcept
    cdef int find_deposit_card(self, Cursor* c, Text chosen, Card* card) noexcept
    cdef int judge(self, const HoldAsk* m, const Card* card, const Rules* rules) noexcept
    cdef int settle_grant(self, const HoldAsk* m, Grant* g) noexcept
    cdef bint find_clearing(self, Text currency, Id* account) noexcept
    cdef uint64_t fingerprint(
        self, const HoldAsk* m, bint deposit, Text chosen, Text depositor
    ) noexcept
    cdef void authorize(self, const Id* hold, unsigned char* out) noexcept
    cdef Py_ssize_t encode(
        self, const HoldAsk* m, const Grant* g, int64_t now_ns, bint captured, unsigned char* out,
    ) noexcept
