"""The issuer's common decisions: a cash_out proved by a TOTP code, its capture, its release; a
deposit on a card of the person named.

The flows of `switch.flows.ceibo` and `switch.flows.tokens` are the reference: what is decided here
is decided there in the same way, with the same records, byte for byte, and the same ledger. What
is not common is left to them *before anything was changed*: a repeat, a code that is wrong, used
or of another kind, a card that would refuse, limits that count others than the card.

Time: a code that is right is found at once. A miss tries as many seeds as `max_cards` says,
whoever is meant and for whatever reason there is nothing to compare with; then the flows try again
in their own constant time. So the time of a refusal tells nobody who is a customer.

Nothing here is kept of a request: a hold is asked for in a struct of texts in the caller's memory.
"""

cimport cython
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from core_ext._cursor cimport Cursor, Pen, cursor, pen, put, put_u8
from core_ext._ledger cimport (
    DONE, H_METERED, H_NIGHT, OPEN, POLICY_ASK, Batch, CaptureTerms, Hold, HoldTerms, Id, Ledger,
)
from core_ext._mac cimport Sealed, SeedVault
from core_ext._names cimport mask_name
from core_ext._pack cimport (
    Text, field_is, is_text, nothing, put_array, put_bool, put_chars, put_decimal, put_str,
    put_struct, put_uint, same, skip, split_array, take_array, take_bin, take_str, text, text_at,
    uint_at,
)
from core_ext._records cimport Entry, Records
from core_ext._siphash cimport sip_key, siphash24

cdef enum:
    HOLD_FIELDS = 27
    CARD_FIELDS = 12
    PERSON_FIELDS = 7
    SEALED_MIN = 29
    SEALED_MAX = 156
    ASK_BYTES_MAX = 512

# 32 letters and digits that nobody confuses, as in the flows.
cdef const char* ALPHABET = b"ABCDEFGHJKLMNPQRSTUVWXYZ23456789"
cdef dict HASHES = {"sha1": 0, "sha256": 1, "sha512": 2}


cdef inline void put_kind(Pen* w, bint deposit) noexcept nogil:
    if deposit:
        put_chars(w, b"deposit", 7)
    else:
        put_chars(w, b"cash_out", 8)


cdef void civil(int32_t day, unsigned char* out) noexcept nogil:
    """`2026-11-22` of a day since 1970-01-01 (Hinnant's civil_from_days)."""
    cdef int32_t z = day + 719468
    cdef int32_t era = z // 146097
    cdef int32_t doe = z - era * 146097
    cdef int32_t yoe = (doe - doe // 1460 + doe // 36524 - doe // 146096) // 365
    cdef int32_t doy = doe - (365 * yoe + yoe // 4 - yoe // 100)
    cdef int32_t mp = (5 * doy + 2) // 153
    cdef int32_t month = mp + 3 if mp < 10 else mp - 9
    cdef int32_t year = yoe + era * 400 + (1 if month <= 2 else 0)
    cdef Pen w = pen(out, 10)
    put_decimal(&w, <uint64_t> year, 4)
    put(&w, b"-", 1)
    put_decimal(&w, <uint64_t> month, 2)
    put(&w, b"-", 1)
    put_decimal(&w, <uint64_t> (doy - (153 * mp + 2) // 5 + 1), 2)


cdef bint before(const unsigned char* a, Text b) noexcept nogil:
    """Whether ten characters sort before a text of ten."""
    cdef int i
    for i in range(10):
        if a[i] != b.p[i]:
            return a[i] < b.p[i]
    return False


cdef bint parse_card(const unsigned char* value, Py_ssize_t n, Card* card) noexcept nogil:
    """Read a card's record; False: not as cards usually are."""
    cdef Cursor c = cursor(value, n)
    cdef Text kind
    cdef Py_ssize_t kinds
    if take_array(&c) < CARD_FIELDS:
        return False
    card.id = take_str(&c)
    card.person = take_str(&c)
    card.account = take_bin(&c)
    card.currency = take_str(&c)
    card.seed = take_bin(&c)
    card.mode = take_str(&c)
    card.active = is_text(take_str(&c), b"active", 6)
    card.tier = take_str(&c)
    card.pays = card.takes = False
    kinds = take_array(&c)
    while kinds and not c.short:
        kinds -= 1
        kind = take_str(&c)
        if is_text(kind, b"cash_out", 8):
            card.pays = True
        elif is_text(kind, b"deposit", 7):
            card.takes = True
    card.expires = take_str(&c)
    return (not c.short and card.account.n == 16 and card.currency.n == 3
            and card.expires.n in (0, 10))


cdef int read_card(const unsigned char* value, Py_ssize_t n, Card* card) noexcept nogil:
    """Read a card that pays by TOTP; 1 active and usual, 0 not active, -1 to be left alone."""
    cdef bint usual = parse_card(value, n, card)
    if usual and not card.active:
        return 0
    if (not usual or not is_text(card.mode, b"totp", 4)
            or not SEALED_MIN <= card.seed.n <= SEALED_MAX
            or not lock_of(b"car:", card.id, nothing(), &card.lock)):
        return -1
    return 1


cdef bint undecided_hold(const unsigned char** at, const DecisionAsk* m) noexcept nogil:
    """Whether the hold is this cash_out, without fee or commission, and no decision has come."""
    return (
        field_is(at, 2, b"\xa8cash_out", 9) and uint_at(at, 3) == <uint64_t> m.amount
        and same(text_at(at, 4), m.currency) and field_is(at, 8, b"\xa6ACTIVA", 7)
        and at[14] - at[13] == 7 and field_is(at, 14, b"\0", 1) and field_is(at, 15, b"\0", 1)
        and same(text_at(at, 24), m.link) and field_is(at, 25, b"\x80", 1)
    )


cdef Py_ssize_t concluded(
    const unsigned char** at, const DecisionAsk* m, int64_t now_ns, unsigned char* out
) noexcept nogil:
    """The record of an undecided hold once it is captured, or released; 0: it does not fit."""
    cdef Pen w = pen(out, HOLD_VALUE_MAX)
    cdef const char* state = b"CAPTURADA" if m.captures else b"LIBERADA"
    cdef Py_ssize_t state_n = 9 if m.captures else 8
    cdef Cursor history = cursor(at[23], at[24] - at[23])
    put_array(&w, HOLD_FIELDS)
    put(&w, at[0], at[8] - at[0])
    put_chars(&w, state, state_n)
    put(&w, at[9], at[23] - at[9])
    put_array(&w, take_array(&history) + 1)
    put(&w, history.at, at[24] - history.at)
    put_moment(&w, state, state_n, now_ns)
    put(&w, at[24], at[25] - at[24])
    put_u8(&w, 0x81)  # firsts: the only one so far
    put_chars(&w, b"capture" if m.captures else b"release", 7)
    put_array(&w, 2)
    put_uint(&w, m.declared)
    put_chars(&w, b"00", 2)
    put(&w, at[26], at[HOLD_FIELDS] - at[26])
    return 0 if w.short else w.at - out


@cython.final
cdef class Issuer:
    """The issuer's rules of one business date, over the records and the ledger of a node.

    Args:
        digits, algorithm, step_s, back, forward, max_cards, ocra_above: of `[tokens]`.
        fingerprint_key, authorization_key: 16 bytes each, as the flows use them.

    Attributes:
        wants_clearing: a request met a currency whose account was not told.
    """

    def __cinit__(
        self, *, Records records not None, Ledger ledger not None, SeedVault vault not None,
        int digits, str algorithm not None, int step_s, int back, int forward, int max_cards,
        int64_t ocra_above, bytes fingerprint_key not None, bytes authorization_key not None,
    ):
        if not 1 <= max_cards <= CARDS_MAX:
            raise ValueError("max_cards is 1..16")
        if not 6 <= digits <= 8 or step_s < 1 or back < 0 or forward < 0:
            raise ValueError("digits is 6..8, a step a second or more, back and forward 0 or more")
        if len(fingerprint_key) != 16 or len(authorization_key) != 16:
            raise ValueError("a key has 16 bytes")
        self._records = records
        self._ledger = ledger
        self._vault = vault
        self._rule.hash = HASHES[algorithm]
        self._rule.digits = digits
        self._rule.step_s = step_s
        self._rule.back = back
        self._rule.forward = forward
        self._max_cards = max_cards
        self._bound_above = ocra_above
        self._fingerprint = sip_key(<const unsigned char*> <const char*> fingerprint_key)
        self._authorization = sip_key(<const unsigned char*> <const char*> authorization_key)
        self._iso_day = -1
        self._batch = Batch()

    def set_rules(
        self, str kind not None, bint open, tuple bounds not None, dict tiers not None, bint night
    ):
        """What holds from now on.

        Args:
            kind: cash_out or deposit.
            open: False: none of this kind is decided here, whatever it is.
            bounds: least, most and multiple of any amount.
            tiers: the same for the tiers that have bounds of their own, which hold beside it.
            night: night windows count what is done now, of either kind.

        Raises:
            ValueError: more tiers, or longer names, than there is room for; nothing is decided.
        """
        cdef bytes name
        cdef Tier* tier
        cdef Rules* rules = &self._rules[("cash_out", "deposit").index(kind)]
        rules.open = False
        rules.bounds = bounds_of(bounds)
        rules.tier_count = 0
        if len(tiers) > TIERS_MAX:
            raise ValueError("at most 32 tiers have bounds of their own")
        for key, value in tiers.items():
            name = key.encode()
            tier = &rules.tiers[rules.tier_count]
            if len(name) > <Py_ssize_t> sizeof(tier.name):
                raise ValueError("the name of a tier has at most 32 bytes")
            memcpy(tier.name, <const char*> name, len(name))
            tier.n = len(name)
            tier.bounds = bounds_of(value)
            rules.tier_count += 1
        self._night = night
        rules.open = open

    def add_clearing(self, str currency not None, bytes account not None):
        """Tell the clearing account of a currency, once it exists in the ledger."""
        cdef bytes code = currency.encode()
        cdef Id known
        if len(code) != 3 or len(account) != 16:
            raise ValueError("a currency has 3 letters, an account 16 bytes")
        if self.find_clearing(text(<const char*> code, 3), &known):
            return
        if self._clearing_count < CURRENCIES_MAX:
            memcpy(self._clearings[self._clearing_count].currency, <const char*> code, 3)
            memcpy(&self._clearings[self._clearing_count].account, <const char*> account, 16)
            self._clearing_count += 1

    cdef bint find_clearing(self, Text currency, Id* account) noexcept:
        cdef int i
        for i in range(self._clearing_count):
            if same(currency, text(self._clearings[i].currency, 3)):
                account[0] = self._clearings[i].account
                return True
        return False

    def undecided(self, int64_t after_ns, int64_t before_ns, int limit):
        """Holds that were granted after one instant and before another, and are still neither
        captured nor released: (network and operation, instant), oldest first, `limit` at most."""
        cdef list found = []
        cdef Entry* entry
        cdef uint32_t at = self._records._opened[SPACE_CEIBO].oldest
        cdef uint64_t stamp
        while at and len(found) < limit:
            entry = self._records._at(at)
            memcpy(&stamp, entry.body + 2, 8)
            if stamp >= <uint64_t> before_ns:
                break
            if stamp > <uint64_t> after_ns and entry.body[1] & 0x7F == 16:
                found.append(((<const char*> entry.body + 10)[:16], stamp))
            at = entry.newer
        return found

    # ---- a hold

    cdef int grant(self, const HoldAsk* m, int64_t now_ns, Grant* g) except -1:
        """Decide a whole hold, for a host: MINE, and it stands; else a `Why` and no change."""
        cdef unsigned char value[HOLD_VALUE_MAX]
        cdef unsigned char results[3]
        cdef unsigned char* hold = <unsigned char*> &g.hold
        cdef const unsigned char* lock
        cdef const unsigned char* found = NULL
        cdef HoldTerms terms
        cdef Py_ssize_t n = 0
        cdef int why, i
        memcpy(hold, m.network.p, 4)
        memcpy(hold + 4, m.operation.p, 12)
        if self._records.lookup(SPACE_CEIBO, hold, 16, &found, &n):
            return KNOWN
        why = self.examine(m, now_ns, g)
        if why != MINE:
            return why
        lock = <const unsigned char*> &g.card.lock
        memset(&terms, 0, sizeof(terms))
        terms.day = m.day
        terms.code = 1
        terms.policy = POLICY_ASK
        terms.options = H_METERED | (H_NIGHT if self._night else 0)
        self._batch.restart()
        self._batch.add_step(lock, g.step)
        self._batch.add_clear(lock, True)
        self._batch.add_hold(
            hold, g.card.account.p, <const unsigned char*> &g.clearing, m.amount, &terms, NULL,
            False,
        )
        if not self._ledger.has_room(1, 0, 1) or not would_hold(
            self._ledger, self._batch, 2, now_ns
        ):
            return LEDGER
        n = self.encode(m, g, now_ns, False, value)
        assert n, "normal forms fit into a record"
        self._ledger.apply_batch(self._batch, now_ns, results)
        for i in range(3):
            assert results[i] == DONE, "the ledger was asked a moment ago"
        self._records.store(SPACE_CEIBO, hold, 16, value, n, True, <uint64_t> now_ns)
        return MINE

    cdef int conclude(
        self, const DecisionAsk* m, int64_t now_ns, unsigned char* authorization
    ) except -1:
        """Capture or release a host's whole cash_out that nobody has decided: MINE, and done; else
        a `Why` and no change. `authorization` gets the six signs of the hold."""
        cdef unsigned char key[16]
        cdef unsigned char out[HOLD_VALUE_MAX]
        cdef const unsigned char* at[HOLD_FIELDS + 1]
        cdef const unsigned char* value = NULL
        cdef Py_ssize_t n = 0
        cdef uint64_t stamp
        memcpy(key, m.network.p, 4)
        memcpy(key + 4, m.operation.p, 12)
        if not self._rules[0].open:
            return OFF
        if (not self._records.lookup(SPACE_CEIBO, key, 16, &value, &n)
                or not split_array(value, n, at, HOLD_FIELDS) or not undecided_hold(at, m)):
            return STATE
        memcpy(authorization, at[13] + 1, 6)
        stamp = uint_at(at, 6)
        n = concluded(at, m, now_ns, out)
        if not n:
            return STATE
        if not self._conclude_in_ledger(key, m, now_ns):
            return LEDGER
        self._records.store(SPACE_CEIBO, key, 16, out, n, False, stamp)
        return MINE

    cdef bint _conclude_in_ledger(
        self, const unsigned char* key, const DecisionAsk* m, int64_t now_ns
    ) except -1:
        """False, and nothing changed, where the ledger's hold is not as the record says."""
        cdef CaptureTerms whole
        cdef unsigned char result
        cdef const Hold* hold = self._ledger.hold_of(key)
        if hold == NULL or hold.state != OPEN or hold.amount != m.amount or hold.captured:
            return False
        self._batch.restart()
        if m.captures:
            memset(&whole, 0, sizeof(whole))
            self._batch.add_capture(key, 0, &whole, NULL, False)
        else:
            self._batch.add_release(key, True, NULL, False)
        self._ledger.apply_batch(self._batch, now_ns, &result)
        return result == DONE

    cdef int examine(self, const HoldAsk* m, int64_t now_ns, Grant* g) except -1:
        """Whether the issuer's part of a cash_out is common and would be granted; a `Why`.

        Changes nothing. The ledger's own word is still to be asked.
        """
        cdef Card cards[CARDS_MAX]
        cdef Sealed seeds[CARDS_MAX]
        cdef int64_t found[CARDS_MAX]
        cdef int64_t now_s = now_ns // 1_000_000_000
        cdef uint64_t code = 0
        cdef int count = 0, hits = 0, hit = 0, why, i
        if not self._rules[0].open or (self._bound_above and m.amount > self._bound_above):
            return OFF
        if m.token.n != self._rule.digits:
            return FORM
        for i in range(<int> m.token.n):
            code = code * 10 + (m.token.p[i] - 48)
        why = self.find_cards(m, now_s, cards, &count)
        for i in range(count):
            seeds[i].p, seeds[i].n = cards[i].seed.p, cards[i].seed.n
            seeds[i].aad, seeds[i].aad_bytes = cards[i].id.p, cards[i].id.n
        if self._vault.window(
            &self._rule, code, now_s, seeds, count, max(count, self._max_cards), found
        ) != 1:
            return CARD
        if why != MINE:
            return why
        for i in range(count):
            if found[i] >= 0:
                if found[i] <= self._ledger.step_of(<const unsigned char*> &cards[i].lock):
                    return CODE  # used
                hits += 1
                hit = i
        if hits != 1:
            return CODE
        g.card = cards[hit]
        g.step = found[hit]
        why = self.judge(m, &g.card, &self._rules[0])
        if why != MINE:
            return why
        g.deposit = False
        g.name = nothing()
        g.fingerprint = m.declared or self.fingerprint(m, False, nothing(), nothing())
        return self.settle_grant(m, g)

    cdef int examine_deposit(
        self, const HoldAsk* m, Text chosen, Text depositor, int64_t now_ns, Pen* w, Grant* g
    ) noexcept:
        """Whether the issuer's part of a deposit is common and would be granted; a `Why`. Changes
        nothing; as `Ceibo._decide_deposit`.

        Args:
            chosen: the card that was named; empty where none was.
            depositor: who brings the cash; empty where it is the holder.
            w: takes the masked name.
        """
        cdef const unsigned char* start = w.at
        cdef int64_t now_s = now_ns // 1_000_000_000
        cdef Id terminal, cashier
        cdef Text person, name
        cdef Cursor c
        cdef int why
        if not self._rules[1].open:
            return OFF
        if not (lock_of(b"ask:", m.terminal, nothing(), &terminal)
                and lock_of(b"ask:", m.network, m.cashier, &cashier)):
            return FORM
        if (self._ledger.lock_ends_s(<const unsigned char*> &terminal) > now_s
                or self._ledger.lock_ends_s(<const unsigned char*> &cashier) > now_s):
            return CODE
        if not self.find_person(m, &person):
            return PERSON
        c = cursor(person.p, person.n)
        if take_array(&c) < PERSON_FIELDS:
            return PERSON
        skip(&c, 3)
        name = take_str(&c)
        skip(&c, 1)
        why = self.find_deposit_card(&c, chosen, &g.card)
        if why == MINE:
            why = self.judge(m, &g.card, &self._rules[1])
        if why != MINE:
            return why
        if not mask_name(name, w):
            return NAME
        g.deposit = True
        g.name = text(start, w.at - start)
        g.step = 0
        g.fingerprint = self.fingerprint(m, True, chosen, depositor)
        return self.settle_grant(m, g)

    cdef int find_deposit_card(self, Cursor* c, Text chosen, Card* card) noexcept:
        """The card named, the only active one, or the person's default, as `_deposit_card`; the
        cursor stands before the person's cards."""
        cdef Card cards[CARDS_MAX]
        cdef const unsigned char* value = NULL
        cdef Text id
        cdef Py_ssize_t n = 0, left = take_array(c)
        cdef int count = 0, i
        if left > CARDS_MAX:
            return PERSON
        while left:
            left -= 1
            id = take_str(c)
            if c.short or id.n > KEY_MAX:
                return PERSON
            if chosen.n and not same(id, chosen):
                continue
            if not self._records.lookup(SPACE_CARDS, id.p, id.n, &value, &n):
                continue
            if not parse_card(value, n, &cards[count]):
                return CARD
            if cards[count].active:
                count += 1
        id = take_str(c)
        if c.short:
            return PERSON
        for i in range(count):
            if count == 1 or same(cards[i].id, id):
                card[0] = cards[i]
                return MINE
        return CARD

    cdef int settle_grant(self, const HoldAsk* m, Grant* g) noexcept:
        """The rest of what a hold needs: accounts, its id, the authorisation."""
        if not self.find_clearing(m.currency, &g.clearing):
            self.wants_clearing = True
            return ACCOUNT
        memcpy(&g.hold, m.network.p, 4)
        memcpy(<unsigned char*> &g.hold + 4, m.operation.p, 12)
        self.authorize(&g.hold, g.authorization)
        return MINE

    cdef int find_cards(
        self, const HoldAsk* m, int64_t now_s, Card* cards, int* count
    ) noexcept:
        """The person's active cards that may be tried. Whatever it returns, a code is tried."""
        cdef Id terminal, cashier
        cdef Text person, id
        cdef Cursor c
        cdef const unsigned char* value = NULL
        cdef Py_ssize_t n = 0, left
        cdef int kind, why = MINE
        count[0] = 0
        if not (lock_of(b"ter:", m.terminal, nothing(), &terminal)
                and lock_of(b"cas:", m.network, m.cashier, &cashier)):
            return FORM
        if (self._ledger.lock_ends_s(<const unsigned char*> &terminal) > now_s
                or self._ledger.lock_ends_s(<const unsigned char*> &cashier) > now_s):
            why = CODE
        if not self.find_person(m, &person):
            return PERSON
        c = cursor(person.p, person.n)
        if take_array(&c) < PERSON_FIELDS:
            return PERSON
        skip(&c, 5)
        left = take_array(&c)
        if left > CARDS_MAX:
            return PERSON
        while left:
            left -= 1
            id = take_str(&c)
            if c.short:
                return PERSON
            if id.n > KEY_MAX or not self._records.lookup(SPACE_CARDS, id.p, id.n, &value, &n):
                continue
            kind = read_card(value, n, &cards[count[0]])
            if kind < 0:
                why = CARD
            elif kind > 0 and self._ledger.lock_ends_s(
                <const unsigned char*> &cards[count[0]].lock
            ) <= now_s:
                count[0] += 1
        return why

    cdef bint find_person(self, const HoldAsk* m, Text* value) noexcept:
        """The record of the one person meant; False where there is none, or several."""
        cdef unsigned char key[KEY_MAX]
        cdef Pen w = pen(key, sizeof(key))
        cdef const unsigned char* found = NULL
        cdef Py_ssize_t n = 0
        cdef Cursor c
        cdef Text id
        if m.document.p != NULL:
            put(&w, m.document_type.p, m.document_type.n)
            put(&w, m.document.p, m.document.n)
            if w.short or not self._records.lookup(
                SPACE_PERSON_BY_DOCUMENT, key, w.at - key, &found, &n
            ):
                return False
            id = text(found, n)
        else:
            if not 0 < m.phone.n <= KEY_MAX or not self._records.lookup(
                SPACE_PERSONS_BY_PHONE, m.phone.p, m.phone.n, &found, &n
            ):
                return False
            c = cursor(found, n)
            if take_array(&c) != 1:
                return False
            id = take_str(&c)
            if c.short:
                return False
        if id.n > KEY_MAX or not self._records.lookup(SPACE_PERSONS, id.p, id.n, &found, &n):
            return False
        value[0] = text(found, n)
        return True

    cdef int judge(self, const HoldAsk* m, const Card* card, const Rules* rules) noexcept:
        """What the card itself has to say, as `Ceibo._card_refusal`."""
        cdef bint may = card.pays if rules == &self._rules[0] else card.takes
        cdef Py_ssize_t i
        if not may or not same(card.currency, m.currency):
            return CARD
        if card.expires.n:
            if self._iso_day != m.day:
                civil(m.day, self._iso)
                self._iso_day = m.day
            if before(card.expires.p, text(self._iso, 10)):
                return CARD
        if not allows(&rules.bounds, m.amount):
            return AMOUNT
        for i in range(rules.tier_count):
            if same(card.tier, text(rules.tiers[i].name, rules.tiers[i].n)):
                if not allows(&rules.tiers[i].bounds, m.amount):
                    return AMOUNT
        return MINE

    # ---- what is written

    cdef uint64_t fingerprint(
        self, const HoldAsk* m, bint deposit, Text chosen, Text depositor
    ) noexcept:
        """Digest of the request as an `IssuerHold` in MessagePack, as `Fingerprint` makes it."""
        cdef unsigned char out[ASK_BYTES_MAX]
        cdef Pen w = pen(out, sizeof(out))
        put_array(&w, 1)
        put_struct(&w, 12 + (not deposit) + (chosen.n > 0) + (depositor.n > 0))
        put_chars(&w, b"op", 2)
        put_chars(&w, b"issuer_hold", 11)
        put_chars(&w, b"network", 7)
        put_str(&w, m.network)
        put_chars(&w, b"operation", 9)
        put_str(&w, m.operation)
        put_chars(&w, b"kind", 4)
        put_kind(&w, deposit)
        put_chars(&w, b"amount", 6)
        put_uint(&w, <uint64_t> m.amount)
        put_chars(&w, b"currency", 8)
        put_str(&w, m.currency)
        put_chars(&w, b"terminal", 8)
        put_str(&w, m.terminal)
        put_chars(&w, b"branch", 6)
        put_str(&w, m.branch)
        put_chars(&w, b"cashier", 7)
        put_str(&w, m.cashier)
        put_chars(&w, b"day", 3)
        put_uint(&w, <uint64_t> m.day)
        put_chars(&w, b"document_type", 13)
        put_str(&w, m.document_type)
        if m.document.p != NULL:
            put_chars(&w, b"document", 8)
            put_str(&w, m.document)
        else:
            put_chars(&w, b"phone", 5)
            put_str(&w, m.phone)
        if not deposit:
            put_chars(&w, b"token", 5)
            put_str(&w, m.token)
        if chosen.n:
            put_chars(&w, b"card", 4)
            put_str(&w, chosen)
        if depositor.n:
            put_chars(&w, b"depositor", 9)
            put_str(&w, depositor)
        # Normal forms are short: what does not fit here was refused before.
        return siphash24(self._fingerprint, out, w.at - out)

    cdef void authorize(self, const Id* hold, unsigned char* out) noexcept:
        """Six letters and digits of a keyed digest, as `Ceibo._authorization`."""
        cdef uint64_t digest = siphash24(self._authorization, <const unsigned char*> hold, 16)
        cdef int i
        for i in range(6):
            out[i] = <unsigned char> ALPHABET[(digest >> (56 - 8 * i)) & 31]

    cdef Py_ssize_t encode(
        self, const HoldAsk* m, const Grant* g, int64_t now_ns, bint captured, unsigned char* out,
    ) noexcept:
        """Write the hold's record, as a `CeiboHold`, to HOLD_VALUE_MAX bytes; returns its length.

        `captured`: the record of a hold that is captured in the step that granted it.
        """
        cdef Pen w = pen(out, HOLD_VALUE_MAX)
        put_array(&w, 27)
        put_str(&w, m.network)
        put_str(&w, m.operation)
        put_kind(&w, g.deposit)
        put_uint(&w, <uint64_t> m.amount)
        put_str(&w, m.currency)
        put_uint(&w, g.fingerprint)
        put_uint(&w, <uint64_t> now_ns)
        put_uint(&w, <uint64_t> m.day)
        if captured:
            put_chars(&w, b"CAPTURADA", 9)
        else:
            put_chars(&w, b"ACTIVA", 6)
        put_chars(&w, b"00", 2)
        put_chars(&w, b"APROBADA", 8)
        put_str(&w, g.card.id)
        put_str(&w, g.card.person)
        put_str(&w, text(g.authorization, 6))
        put_uint(&w, 0)  # fee
        put_uint(&w, 0)  # commission
        put_str(&w, g.name)
        put_str(&w, m.terminal)
        put_str(&w, m.branch)
        put_bool(&w, False)  # compensated
        put_bool(&w, False)  # forced
        put_uint(&w, <uint64_t> g.step)
        put_str(&w, nothing())  # internal
        put_array(&w, 2 if captured else 1)
        put_moment(&w, b"ACTIVA", 6, now_ns)
        if captured:
            put_moment(&w, b"CAPTURADA", 9, now_ns)
        put_str(&w, m.link)
        put_u8(&w, 0x80)  # firsts: an empty map
        put_array(&w, 0)  # balances
        return 0 if w.short else w.at - out


cdef Bounds bounds_of(tuple values) except *:
    cdef Bounds b
    b.least, b.most, b.multiple = values
    if b.multiple < 1:
        raise ValueError("multiple must be at least 1")
    return b
