"""An issuer's desk for one ISO 8583 host: its common holds, decided where they are read.

A 0100 of the `ceibo` dialect that asks for a cash_out by one-time code is verified, indexed
(`_iso8583`), decided (`_issuer`), answered by splice and MACed here; the answer waits in the lanes
until the journal's group is durable. So are the 0220 that captures such a hold and the 0420 that
releases it. Every other message, and all that is not common about these, is handed to `protocols.iso8583.connection` as it came, frame by frame; `switch.flows.issuer_desk` is
the reference.

Frames have a length of two bytes, big-endian, and nothing else around a message; MACs are those of
the link's newest key.
"""

cimport cython
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport int32_t, int64_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memmove

from core_ext._cursor cimport Cursor, Pen, cursor, left, pen, put, put_u8, put_u16be, take_u16be
from core_ext._iso8583 cimport (
    SOUND, Index, Layout, Patch, pack_tag, scan, splice, tag_at, value_at,
)
from core_ext._issuer cimport MINE, DecisionAsk, Grant, HoldAsk
from core_ext._lanes cimport ALL, FULL, LEFT, Lane, Lanes
from core_ext._mac cimport MacKey, SeedVault
from core_ext._pack cimport Text, is_text, nothing, put_array, put_str, same, text
from core_ext._siphash cimport sip_key, siphash24
from core_ext._straight cimport Straight

cdef enum:
    LENGTH_BYTES = 2
    MAC_BYTES = 8
    BUFFER_BYTES = 163840          # two reads and the longest frame of two bytes of length
    ANSWER_MAX = 512
    TEXTS = 192
    SEALED_MAX = 36                # nonce, eight digits, tag
    TAG_HEAD = 5                   # two of a tag, three of its length
    CURRENCIES_MAX = 64
    HASH_BODY = 512

cdef int64_t SECOND_NS = 1_000_000_000
cdef int64_t DAY_NS = 86_400 * SECOND_NS
cdef uint32_t TAGS[4]              # of DE48: document, phone, code, cashier
TAGS[0] = pack_tag(b"01", 2)
TAGS[1] = pack_tag(b"02", 2)
TAGS[2] = pack_tag(b"03", 2)
TAGS[3] = pack_tag(b"04", 2)


cdef inline uint64_t bit(int number) noexcept nogil:
    """Of the first bitmap, highest bit first."""
    return <uint64_t> 1 << (64 - number)


cdef inline uint64_t second_bit(int number) noexcept nogil:
    """Of the second bitmap."""
    return <uint64_t> 1 << (128 - number)


cdef inline bint digits(Text t, Py_ssize_t least, Py_ssize_t most) noexcept nogil:
    cdef Py_ssize_t i
    if t.p == NULL or not least <= t.n <= most:
        return False
    for i in range(t.n):
        if not 48 <= t.p[i] <= 57:
            return False
    return True


cdef inline int64_t number_of(const unsigned char* p, Py_ssize_t n) noexcept nogil:
    cdef int64_t value = 0
    cdef Py_ssize_t i
    for i in range(n):
        value = 10 * value + p[i] - 48
    return value


cdef inline Text element(const Index* index, int number) noexcept nogil:
    cdef Py_ssize_t n = 0
    cdef const unsigned char* p = value_at(index, number, &n)
    return text(p, n)


cdef inline Text without_blanks(Text t) noexcept nogil:
    while t.n and t.p[t.n - 1] == 32:
        t.n -= 1
    return t


cdef inline Text filled(Pen* w, Text t) noexcept nogil:
    """Six digits, zeros in front."""
    cdef const unsigned char* start = w.at
    put(w, b"000000", 6 - t.n)
    put(w, t.p, t.n)
    return text(start, w.at - start)


cdef inline int nibble(unsigned char c) noexcept nogil:
    if 48 <= c <= 57:
        return c - 48
    c |= 32
    return c - 87 if 97 <= c <= 102 else -1


cdef int32_t day_of(int32_t year, int32_t month, int32_t day) noexcept nogil:
    """Days since 1970-01-01 (Hinnant's days_from_civil)."""
    cdef int32_t y = year - (month <= 2)
    cdef int32_t era = y // 400
    cdef int32_t yoe = y - era * 400
    cdef int32_t doy = (153 * (month - 3 if month > 2 else month + 9) + 2) // 5 + day - 1
    return era * 146097 + yoe * 365 + yoe // 4 - yoe // 100 + doy - 719468


cdef bint sent_near(Text sent, int64_t now_ns, int64_t tolerance_ns) noexcept nogil:
    """Whether MMDDhhmmss in UTC is a time of this year, less than the tolerance away from now."""
    cdef int32_t z, era, doe, yoe, doy, mp, year, month, day
    cdef int64_t at_ns
    if not digits(sent, 10, 10):
        return False
    z = <int32_t> (now_ns // (86400 * SECOND_NS)) + 719468
    era = z // 146097
    doe = z - era * 146097
    yoe = (doe - doe // 1460 + doe // 36524 - doe // 146096) // 365
    doy = doe - (365 * yoe + yoe // 4 - yoe // 100)
    mp = (5 * doy + 2) // 153
    year = yoe + era * 400 + (1 if mp >= 10 else 0)
    month = <int32_t> number_of(sent.p, 2)
    day = <int32_t> number_of(sent.p + 2, 2)
    if not (1 <= month <= 12 and 1 <= day <= 28 + (month != 2) * 2 + (month in (
            1, 3, 5, 7, 8, 10, 12))):
        return False
    if number_of(sent.p + 4, 2) > 23 or number_of(sent.p + 6, 2) > 59 or number_of(
        sent.p + 8, 2
    ) > 59:
        return False
    at_ns = SECOND_NS * (
        86400 * <int64_t> day_of(year, month, day) + 3600 * number_of(sent.p + 4, 2)
        + 60 * number_of(sent.p + 6, 2) + number_of(sent.p + 8, 2)
    )
    return -tolerance_ns < at_ns - now_ns < tolerance_ns


@cython.final
cdef class HostLane(Lane):
    """One connection of a host that asks for holds.

    Args:
        owner: told of what is left to be written.
        fd: its socket.
        straight: what is told of dates and rules; its issuer decides.
        layout: of the `ceibo` dialect.
        key: the newest MAC key of the link; others are left to Python.
        data_key: the newest data key, under which codes come.
        fingerprint_key: 16 bytes, as the flows use them.
        link: name of the host.
        clock_tolerance_s: how far off its clock may be.
        in_flight_max: answers that may wait here at once.
        currencies: letters by digits, `{"600": "PYG"}`.

    Attributes:
        ready: it has signed on, and nothing of it is held elsewhere.
        taken: messages decided here so far.
    """

    def __cinit__(
        self, owner, int fd, *, Straight straight not None, Layout layout not None,
        MacKey key not None, bytes data_key not None, bytes fingerprint_key not None,
        str link not None, int clock_tolerance_s, int in_flight_max, dict currencies not None,
    ):
        cdef bytes pair
        if len(fingerprint_key) != 16 or key.mac_bytes < MAC_BYTES:
            raise ValueError("a fingerprint key has 16 bytes, a MAC 8 or more")
        if len(currencies) > CURRENCIES_MAX or len(link) > 32 or in_flight_max < 1:
            raise ValueError("at most 64 currencies, a name of 32 letters")
        self.owner = owner
        self.fd = fd
        self.direct = True
        self._straight = straight
        self._layout = layout
        self._key = key
        self._data_key = b""
        self.rekey(key, data_key)
        self._fingerprint = sip_key(<const unsigned char*> <const char*> fingerprint_key)
        self._link = link.encode()
        # The time on the wire has whole seconds: what follows them is not the sender's fault.
        self._tolerance_ns = (clock_tolerance_s + 1) * SECOND_NS
        self._in_flight_max = in_flight_max
        for number, code in currencies.items():
            if len(number) != 3 or len(code) != 3:
                raise ValueError("a currency has three digits and three letters")
            pair = f"{number}{code}".encode("ascii")
            memcpy(self._currencies[self._currency_count].digits, <const char*> pair, 3)
            memcpy(self._currencies[self._currency_count].letters, <const char*> pair + 3, 3)
            self._currency_count += 1
        self._data = <unsigned char*> malloc(BUFFER_BYTES)
        if self._data == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self._data)

    # ---- frames

    def rekey(self, MacKey key not None, bytes data_key not None):
        """Go on under other keys; what was decided is answered under those of its request."""
        self._key = key
        if data_key != self._data_key:
            self._opener = SeedVault(data_key)
            self._data_key = data_key

    def retire(self):
        """Decide nothing any more, and report what leaves."""
        self._retired = self.reports = True

    cdef bint usable(self) noexcept:
        return self.ready and not self._retired and self.fd >= 0

    cdef bint push(self, const unsigned char* p, Py_ssize_t n) except -1:
        cdef Py_ssize_t held = self._stop - self._start
        if held + n > BUFFER_BYTES:
            return False
        if self._stop + n > BUFFER_BYTES:
            memmove(self._data, self._data + self._start, held)
            self._start, self._stop = 0, held
        memcpy(self._data + self._stop, p, n)
        self._stop += n
        return True

    cdef Py_ssize_t _whole(self) noexcept:
        """Length of the next frame where it is all there, else 0. An empty one is a keep-alive."""
        cdef Cursor c = cursor(self._data + self._start, self._stop - self._start)
        cdef Py_ssize_t n = take_u16be(&c)
        return LENGTH_BYTES + n if not c.short and left(&c) >= n else 0

    cdef object left(self):
        cdef Py_ssize_t n = self._whole()
        if self._all_left:
            return self.surrender()
        data = PyBytes_FromStringAndSize(<const char*> self._data + self._start, n)
        self._start += n
        return data

    cdef object surrender(self):
        data = PyBytes_FromStringAndSize(
            <const char*> self._data + self._start, self._stop - self._start
        )
        self._start = self._stop = 0
        return data

    cdef int seal(self, const unsigned char* payload, Py_ssize_t n) except -1:
        cdef Pen w = pen(self.extend(n + LENGTH_BYTES), n + LENGTH_BYTES)
        put_u16be(&w, <uint16_t> n)
        put(&w, payload, n)
        return 0

    cdef int work(self, Lanes lanes, int64_t now_ns, int64_t mono_ns, int* room) except -1:
        cdef unsigned char answer[ANSWER_MAX]
        cdef Py_ssize_t n, m
        while True:
            n = self._whole()
            if n == 0:
                return ALL
            self._all_left = self.in_flight >= self._in_flight_max
            if self._all_left:
                return LEFT
            if room[0] <= 0:
                return FULL
            m = self._decide(
                self._data + self._start + LENGTH_BYTES, n - LENGTH_BYTES, now_ns, answer
            )
            if m == 0:
                return LEFT
            self._start += n
            lanes.hold(self, answer, m, mono_ns)
            self.taken += 1
            room[0] -= 1

    # ---- a message

    cdef Py_ssize_t _decide(
        self, const unsigned char* p, Py_ssize_t n, int64_t now_ns, unsigned char* out
    ) except -1:
        """Decide one message; the length of its answer, or 0, and nothing changed: not ours."""
        cdef Index index
        if scan(self._layout.program, p, n, &index) != SOUND:
            return 0
        if is_text(text(<unsigned char*> index.mti, 4), b"0100", 4):
            return self._hold(&index, now_ns, out)
        return self._conclude(&index, now_ns, out)

    cdef Py_ssize_t _hold(
        self, const Index* index, int64_t now_ns, unsigned char* out
    ) except -1:
        cdef unsigned char texts[TEXTS]
        cdef HoldAsk m
        cdef Grant g
        if not self._read(index, now_ns, &m, texts) or not self._verified(index):
            return 0
        if self._straight.issuer.grant(&m, now_ns, &g) != MINE:
            return 0
        return self._answer(index, g.authorization, True, out)

    cdef Py_ssize_t _conclude(
        self, const Index* index, int64_t now_ns, unsigned char* out
    ) except -1:
        """The end of a hold: captured, or released."""
        cdef unsigned char authorization[6]
        cdef DecisionAsk m
        if not self._read_decision(index, now_ns, &m) or not self._verified(index):
            return 0
        if self._straight.issuer.conclude(&m, now_ns, authorization) != MINE:
            return 0
        return self._answer(index, authorization if m.captures else NULL, False, out)

    cdef bint _verified(self, const Index* index) except -1:
        cdef unsigned char tag[64]
        cdef unsigned char difference = 0
        cdef const unsigned char* mac
        cdef Py_ssize_t n = 0
        cdef int i
        mac = value_at(index, 64 * index.words, &n)
        if mac == NULL or n != MAC_BYTES:
            return False
        self._key.compute(self._key._cipher, NULL, 0, index.data, mac - index.data, tag)
        for i in range(MAC_BYTES):  # all of them, whatever differs
            difference |= tag[i] ^ mac[i]
        return difference == 0

    cdef bint _read(
        self, const Index* index, int64_t now_ns, HoldAsk* m, unsigned char* texts
    ) except -1:
        """The fields of a plain hold, in normal form; False for any other message."""
        cdef uint64_t needed = (
            bit(3) | bit(4) | bit(7) | bit(11) | bit(15) | bit(32) | bit(37) | bit(41) | bit(42)
            | bit(48) | bit(49) | bit(64)
        )
        cdef Pen w = pen(texts, TEXTS)
        cdef Text amount = element(index, 4), day = element(index, 15)
        cdef Text number = element(index, 49), branch = without_blanks(element(index, 42)), cashier
        cdef const unsigned char* today = self._straight._business
        if (index.words != 1 or index.bits[0] & needed != needed
                or index.bits[0] & ~(needed | bit(12) | bit(13))):
            return False
        if not is_text(element(index, 3), b"010000", 6):
            return False
        m.network, m.operation = element(index, 32), element(index, 37)
        m.terminal = element(index, 41)
        if not (digits(amount, 12, 12) and digits(m.network, 4, 4) and digits(m.operation, 12, 12)
                and digits(m.terminal, 8, 8) and digits(branch, 1, 6) and digits(day, 4, 4)):
            return False
        if not self._straight._from_ns <= now_ns < self._straight._until_ns:
            return False
        if not (same(text(day.p, 2), text(today + 5, 2))
                and same(text(day.p + 2, 2), text(today + 8, 2))):
            return False
        if not sent_near(element(index, 7), now_ns, self._tolerance_ns):
            return False
        m.currency = self._letters(number)
        m.amount = number_of(amount.p, 12)
        if m.amount == 0 or m.currency.p == NULL:
            return False
        m.day = self._straight._day
        m.link = text(<const char*> self._link, len(self._link))
        m.branch = filled(&w, branch)
        if not self._read_tags(index, m, w.at, &cashier):
            return False
        m.declared = self._declared(index, m, cashier)
        return True

    cdef Text _letters(self, Text number) noexcept:
        """Of a currency by its digits; none of an unknown one."""
        cdef int i
        for i in range(self._currency_count):
            if same(number, text(self._currencies[i].digits, 3)):
                return text(self._currencies[i].letters, 3)
        return nothing()

    cdef bint _read_decision(
        self, const Index* index, int64_t now_ns, DecisionAsk* m
    ) noexcept:
        """The fields of a plain capture or release; False for any other message."""
        cdef uint64_t needed = (
            bit(3) | bit(4) | bit(7) | bit(11) | bit(25) | bit(32) | bit(37) | bit(49)
        )
        cdef Text reason = element(index, 25), mti = text(<unsigned char*> index.mti, 4)
        if (index.words != 2 or index.bits[0] != needed
                or index.bits[1] != (second_bit(90) | second_bit(128))):
            return False
        m.captures = is_text(mti, b"0220", 4) and is_text(reason, b"00", 2)
        if not m.captures and not (is_text(mti, b"0420", 4) and (
            is_text(reason, b"00", 2) or is_text(reason, b"21", 2) or is_text(reason, b"22", 2)
            or is_text(reason, b"23", 2)
        )):
            return False
        m.network, m.operation = element(index, 32), element(index, 37)
        m.currency = self._letters(element(index, 49))
        if not (is_text(element(index, 3), b"010000", 6) and digits(element(index, 4), 12, 12)
                and digits(m.network, 4, 4) and digits(m.operation, 12, 12)
                and digits(element(index, 90), 42, 42) and m.currency.p != NULL
                and sent_near(element(index, 7), now_ns, DAY_NS)):
            return False
        m.amount = number_of(element(index, 4).p, 12)
        m.link = text(<const unsigned char*> <const char*> self._link, len(self._link))
        m.declared = self._decision_declared(index, m.captures)
        return m.amount > 0

    cdef uint64_t _decision_declared(self, const Index* index, bint captures) noexcept:
        """Digest of what a repeat is compared in; the fields that a decision has not are empty."""
        cdef unsigned char body[HASH_BODY]
        cdef Pen w = pen(body, HASH_BODY)
        cdef int number, i
        put_array(&w, 8)
        for number in (3, 4, 41, 42, 49):
            put_str(&w, element(index, number))
        put_array(&w, 8)
        for i in range(8):
            put_u8(&w, 0xA0)
        put_u8(&w, 0xA0)  # no code
        put_str(&w, element(index, 25) if captures else nothing())
        return siphash24(self._fingerprint, body, w.at - body)

    cdef bint _read_tags(
        self, const Index* index, HoldAsk* m, unsigned char* texts, Text* cashier
    ) except -1:
        """Person, code and cashier, and nothing else, each once; the code is opened."""
        cdef Pen w = pen(texts, TEXTS - 6)
        cdef unsigned char sealed[SEALED_MAX]
        cdef unsigned char* token
        cdef Text parts[4]
        cdef Py_ssize_t n = 0, total = 0
        cdef int i, high, low
        for i in range(4):
            parts[i].p = tag_at(
                self._layout.program, index, 48, TAGS[i], &parts[i].n
            )
            if parts[i].p != NULL:
                total += TAG_HEAD + parts[i].n
        if total != element(index, 48).n or (parts[0].p == NULL) == (parts[1].p == NULL):
            return False
        m.document_type = text(b"CI", 2)
        m.document = m.phone = nothing()
        if parts[0].p != NULL:
            m.document = text(parts[0].p + 2, parts[0].n - 2)
            if not is_text(text(parts[0].p, 2), b"CI", 2) or not digits(m.document, 5, 8):
                return False
        else:
            m.phone = parts[1]
            if (m.phone.n < 1 or m.phone.p[0] != 43 or m.phone.p[1] == 48
                    or not digits(text(m.phone.p + 1, m.phone.n - 1), 8, 15)):
                return False
        cashier[0] = parts[3]
        if parts[3].p == NULL or not digits(without_blanks(parts[3]), 1, 6):
            return False
        m.cashier = filled(&w, without_blanks(parts[3]))
        if parts[2].p == NULL or parts[2].n % 2 or parts[2].n > 2 * SEALED_MAX:
            return False
        for i in range(<int> parts[2].n // 2):
            high, low = nibble(parts[2].p[2 * i]), nibble(parts[2].p[2 * i + 1])
            if high < 0 or low < 0:
                return False
            sealed[i] = <unsigned char> (high << 4 | low)
        token = w.at
        n = self._opener.open_text(sealed, parts[2].n // 2, m.operation.p, 12, token)
        m.token = text(token, n)
        return digits(m.token, 6, 8)

    cdef uint64_t _declared(self, const Index* index, const HoldAsk* m, Text cashier) noexcept:
        """Digest of what a repeat is compared in, as `IssuerDesk._declared`."""
        cdef unsigned char body[HASH_BODY]
        cdef Pen w = pen(body, HASH_BODY)
        cdef Py_ssize_t n = 0
        cdef const unsigned char* p
        cdef int number, i
        put_array(&w, 8)
        for number in (3, 4, 41, 42, 49):
            put_str(&w, element(index, number))
        put_array(&w, 8)
        for i in range(2):
            p = tag_at(self._layout.program, index, 48, TAGS[i], &n)
            put_str(&w, text(p, n if p != NULL else 0))
        put_str(&w, cashier)
        for i in range(5):
            put_u8(&w, 0xA0)
        put_str(&w, m.token)
        put_u8(&w, 0xA0)  # DE25, which a plain hold has not
        return siphash24(self._fingerprint, body, w.at - body)

    cdef Py_ssize_t _answer(
        self, const Index* index, const unsigned char* authorization, bint dated,
        unsigned char* out,
    ) except -1:
        """An approval, MACed.

        Args:
            authorization: six signs, or NULL: the answer has none.
            dated: it tells the request's business date.
        """
        cdef unsigned char tag[64]
        cdef Patch patches[3]
        cdef Py_ssize_t n
        cdef int count = 0
        if dated:
            patches[0].number, patches[0].value, patches[0].n = 15, element(index, 15).p, 4
            count = 1
        if authorization != NULL:
            patches[count].number, patches[count].value, patches[count].n = 38, authorization, 6
            count += 1
        patches[count].number, patches[count].value, patches[count].n = 39, b"00", 2
        n = splice(
            self._layout.program, index, True, patches, count + 1, True, out,
            ANSWER_MAX - MAC_BYTES,
        )
        assert n > 0, "what the dialect echoes fits"
        self._key.compute(self._key._cipher, NULL, 0, out, n, tag)
        memcpy(out + n, tag, MAC_BYTES)
        return n + MAC_BYTES
