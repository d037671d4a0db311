"""Framers: a byte stream into frames, whatever pieces the network made of it.

`LengthPrefixed` knows the length-headed framings that payment networks use, described by data.
`Channel` is one connection of the session protocol: frames, counters and MACs of both directions.

    session frame:  length, 2 bytes big-endian | payload | MAC, 8 bytes

The length counts payload and MAC, 9 to `frame_bytes_max`. The MAC covers direction (1 byte: 1 from
the side that connected, 2 from the side that accepted), counter (8 bytes big-endian, from 0, each
direction its own, not sent) and payload.

Objects belong to one thread at a time; none gives the GIL away.
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint16_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy, memmove

from core_ext._cursor cimport (
    Cursor, Pen, cursor, left, pen, put, put_u16be, reserve, room, take, take_exactly, take_u16be,
)
from core_ext._mac cimport MacKey

from core_ext._mac import MacKey as _MacKey


cdef enum:
    SMALLEST_BYTES = 512

# --------------------------------------------------------------------------------------- buffer

cdef inline Py_ssize_t held(const Buffer* b) noexcept:
    return b.stop - b.start


cdef int append(Buffer* b, const unsigned char* p, Py_ssize_t n) except -1:
    """Add n bytes behind what is held: in place, after moving it down, or in a larger buffer."""
    cdef Py_ssize_t capacity = max(b.capacity, SMALLEST_BYTES)
    cdef Py_ssize_t kept = b.stop - b.start
    cdef unsigned char* data = b.data
    if n == 0:
        return 0
    if n > b.capacity - b.stop:
        while capacity - kept < n:
            capacity *= 2
        if capacity > b.capacity:
            data = <unsigned char*> malloc(capacity)
            if data == NULL:
                raise MemoryError
        if kept:
            memmove(data, b.data + b.start, kept)
        if data != b.data:
            free(b.data)
            b.data = data
            b.capacity = capacity
        b.start = 0
        b.stop = kept
    memcpy(b.data + b.stop, p, n)
    b.stop += n
    return 0


cdef void consume_to(Buffer* b, const Cursor* c) noexcept:
    """Forget what the cursor has passed; a connection with nothing held keeps no buffer.

    Of thousands most are idle; the next read finds the same memory again.
    """
    b.start = c.at - b.data if b.data != NULL else 0
    if b.start == b.stop:
        clear(b)


cdef void clear(Buffer* b) noexcept:
    free(b.data)
    b.data = NULL
    b.start = b.stop = b.capacity = 0


cdef inline Cursor over(const Buffer* b) noexcept:
    return cursor(b.data + b.start, b.stop - b.start)


cdef Py_ssize_t push_into(Buffer* b, object data, Py_ssize_t limit) except -1:
    """Append any contiguous buffer; OverflowError where more than `limit` bytes would be held."""
    cdef Py_buffer view
    cdef bint plain = type(data) is bytes
    cdef const unsigned char* p
    cdef Py_ssize_t n
    if plain:
        p = <const unsigned char*> PyBytes_AS_STRING(data)
        n = PyBytes_GET_SIZE(data)
    else:
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        p = <const unsigned char*> view.buf
        n = view.len
    try:
        if limit - held(b) < n:
            raise OverflowError("more bytes pushed than the channel has room for")
        append(b, p, n)
    finally:
        if not plain:
            PyBuffer_Release(&view)
    return n


cdef inline bytes _bytes(const unsigned char* p, Py_ssize_t n):
    return PyBytes_FromStringAndSize(<const char*> p, n)


# -------------------------------------------------------------------------------- generic framer

cdef enum:
    NONE = 0
    BINARY = 1
    BCD = 2
    ASCII = 3
    HEX = 4

_KINDS = {
    # name: (kind, shortest length field, longest)
    "none": (NONE, 0, 0), "bin": (BINARY, 1, 4), "bcd": (BCD, 1, 4), "ascii": (ASCII, 1, 8),
    "hex": (HEX, 1, 8),
}


cdef inline int digit_of(int kind, unsigned char byte) noexcept:
    """Value of one ASCII digit, or -1."""
    if 48 <= byte <= 57:
        return byte - 48
    if kind == HEX:
        byte |= 32
        if 97 <= byte <= 102:
            return byte - 87
    return -1


cdef Py_ssize_t length_of(int kind, bint little_endian, const unsigned char* p, int n) noexcept:
    """Read a length field of n bytes; -1 where it holds something else than digits."""
    cdef Py_ssize_t value = 0
    cdef int i, digit
    cdef unsigned char byte
    for i in range(n):
        byte = p[n - 1 - i if little_endian else i]
        if kind == BINARY:
            value = value << 8 | byte
        elif kind == BCD:
            if byte >> 4 > 9 or byte & 15 > 9:
                return -1
            value = value * 100 + (byte >> 4) * 10 + (byte & 15)
        else:
            digit = digit_of(kind, byte)
            if digit < 0:
                return -1
            value = value * (16 if kind == HEX else 10) + digit
    return value


@cython.final
cdef class LengthPrefixed:
    """Split a byte stream into the frames of one of many framings; and build such frames.

        before | length | after | header | message | trailer

    A frame as given out and taken in is header and message. The length counts these, and itself
    or the trailer where so said. A length of 0 is a keep-alive, given out as b"" where
    `frame_bytes_min` is 0 (one that does not count itself comes without header; where the trailer
    is counted, also without trailer).

    Args:
        frame_bytes_max, frame_bytes_min: bounds of header and message together; the largest is
            at most 2**24.
        length_bytes: size of the length field on the wire.
        length: "bin", "bcd" (two digits a byte), "ascii" (decimal), "hex" (ASCII hex), or "none":
            the trailer ends the frame.
        little_endian: the length's low byte comes first ("bin" only).
        counts_self, counts_trailer: the length counts its own bytes; those of the trailer.
        before, after: fixed bytes around the length, not counted.
        header_bytes: opaque bytes in front of the message, counted (a TPDU has 5).
        trailer: fixed bytes after the message.
    """

    def __cinit__(
        self, Py_ssize_t frame_bytes_max=8192, Py_ssize_t frame_bytes_min=0, int length_bytes=2, *,
        str length not None="bin", bint little_endian=False, bint counts_self=False,
        bint counts_trailer=False, bytes before not None=b"", bytes after not None=b"",
        Py_ssize_t header_bytes=0, bytes trailer not None=b"",
    ):
        cdef int shortest, longest
        if length not in _KINDS:
            raise ValueError(f"length must be one of {', '.join(_KINDS)}")
        self._kind, shortest, longest = _KINDS[length]
        if self._kind == NONE:
            length_bytes = 0
            if not trailer or before or after or counts_self or counts_trailer:
                raise ValueError("without a length, a trailer and nothing else frames a message")
        if not shortest <= length_bytes <= longest:
            raise ValueError(f"a {length} length has {shortest} to {longest} bytes")
        if not 0 <= frame_bytes_min <= frame_bytes_max <= 1 << 24 or frame_bytes_max == 0:
            raise ValueError("frame bounds must be 0 <= min <= max <= 2**24, max above 0")
        if not 0 <= header_bytes <= min(64, frame_bytes_max):
            raise ValueError("header_bytes must be in 0..64, within frame_bytes_max")
        if max(len(before), len(after), len(trailer)) > 16:
            raise ValueError("before, after and trailer have at most 16 bytes")
        if little_endian and self._kind != BINARY:
            raise ValueError("only a binary length can be little-endian")
        self.frame_bytes_max = frame_bytes_max
        self.frame_bytes_min = frame_bytes_min
        self._length_bytes = length_bytes
        self._little_endian = little_endian
        self._counts_self = counts_self
        self._counts_trailer = counts_trailer
        self._header_bytes = header_bytes
        self._before = before
        self._after = after
        self._trailer = trailer
        base = {NONE: 2, BINARY: 256, BCD: 100, ASCII: 10, HEX: 16}[self._kind]
        if length_bytes and self.wire_length(frame_bytes_max) >= base**length_bytes:
            raise ValueError("frame_bytes_max does not fit the length field")

    def __dealloc__(self):
        clear(&self._buffer)

    cdef Py_ssize_t wire_length(self, Py_ssize_t n) noexcept:
        """What the length field says of a frame of n bytes."""
        if self._counts_trailer:
            if n == 0 and not self._counts_self:
                return 0
            n += PyBytes_GET_SIZE(self._trailer)
        if self._counts_self:
            n += self._length_bytes
        return n

    @property
    def pending_bytes(self):
        """Bytes of the frame that is not whole yet; never more than one frame."""
        return held(&self._buffer)

    cdef bytes fail(self, str reason):
        self.broken = reason
        return None

    cdef bint expect(self, Cursor* c, bytes wanted, str reason) except -1:
        """Pass over fixed bytes; False where they are not all here yet, or wrong (`broken`)."""
        cdef Py_ssize_t n = PyBytes_GET_SIZE(wanted)
        if n == 0:                # an empty buffer has no address that `take` could give
            return True
        if left(c) < n:
            return False
        if not take_exactly(c, PyBytes_AS_STRING(wanted), n):
            self.fail(reason)
            return False
        return True

    def feed(self, data):
        """Take bytes in whatever pieces they come; return the frames now whole, in order.

        Once the stream makes no sense, `broken` says why, the good frames before that are still
        returned, and from then on nothing is: framing is lost for good.
        """
        cdef list frames = []
        cdef bytes frame
        cdef Cursor c
        if self.broken is not None:
            return frames
        push_into(&self._buffer, data, 1 << 40)
        c = over(&self._buffer)
        while True:
            if self._kind == NONE:
                frame = self.next_trailed(&c)
            else:
                frame = self.next_prefixed(&c)
            if frame is None:
                break
            frames.append(frame)
        if self.broken is not None:
            clear(&self._buffer)
        else:
            consume_to(&self._buffer, &c)
        return frames

    cdef bytes next_prefixed(self, Cursor* c):
        """The next frame, or None: not whole (cursor unmoved), or broken."""
        cdef Cursor d = c[0]
        cdef const unsigned char* p
        cdef Py_ssize_t n, trailer = PyBytes_GET_SIZE(self._trailer)
        if not self.expect(&d, self._before, "the bytes before the length are wrong"):
            return None
        p = take(&d, self._length_bytes)
        if p == NULL:
            return None
        n = length_of(self._kind, self._little_endian, p, self._length_bytes)
        if n < 0:
            return self.fail("the length is not a number")
        if n == 0 and self._counts_trailer and not self._counts_self:
            trailer = 0
        elif self._counts_trailer:
            n -= trailer
        if self._counts_self:
            n -= self._length_bytes
        if n < self.frame_bytes_min or 0 < n < self._header_bytes or n < 0:
            return self.fail("the length is below the least")
        if n > self.frame_bytes_max:
            return self.fail("the frame is too long")
        if not self.expect(&d, self._after, "the bytes after the length are wrong"):
            return None
        p = take(&d, n)
        if p == NULL:
            return None
        if trailer and not self.expect(&d, self._trailer, "the trailer is wrong"):
            return None
        c[0] = d
        return _bytes(p, n)

    cdef bytes next_trailed(self, Cursor* c):
        """The next frame of a framing that only its trailer ends, or None, as above."""
        cdef const unsigned char* mark = <const unsigned char*> PyBytes_AS_STRING(self._trailer)
        cdef Py_ssize_t mark_bytes = PyBytes_GET_SIZE(self._trailer)
        cdef Py_ssize_t n = max(self._searched, self._header_bytes)  # a header may hold anything
        cdef Py_ssize_t last = min(left(c) - mark_bytes, self.frame_bytes_max)
        cdef const unsigned char* p
        while n <= last and memcmp(c.at + n, mark, mark_bytes) != 0:
            n += 1
        if n > last:
            self._searched = n
            if last == self.frame_bytes_max:
                return self.fail("the frame is too long")
            return None
        self._searched = 0
        if n < self.frame_bytes_min:
            return self.fail("the frame is below the least")
        p = take(c, n)
        take(c, mark_bytes)
        return _bytes(p, n)

    def wrap(self, bytes frame not None):
        """The bytes that carry a frame (header and message).

        Raises:
            ValueError: a frame out of bounds, or one that holds the trailer that would end it.
        """
        cdef Py_ssize_t n = len(frame)
        cdef bytes trailer = self._trailer
        if not self.frame_bytes_min <= n <= self.frame_bytes_max or 0 < n < self._header_bytes:
            raise ValueError(f"a frame of {n} bytes is out of bounds")
        if self._kind == NONE:
            if n < self._header_bytes or (frame + trailer).find(trailer, self._header_bytes) != n:
                raise ValueError("the frame holds the trailer that would end it")
            return frame + trailer
        cdef Py_ssize_t length = self.wire_length(n)
        if length == 0:
            trailer = trailer if not self._counts_trailer else b""
        return b"".join((self._before, self.length_field(length), self._after, frame, trailer))

    cdef bytes length_field(self, object length):
        cdef int n = self._length_bytes
        if self._kind == BINARY:
            return length.to_bytes(n, "little" if self._little_endian else "big")
        if self._kind == BCD:
            return bytes.fromhex(f"{length:0{2 * n}d}")
        if self._kind == ASCII:
            return f"{length:0{n}d}".encode()
        return f"{length:0{n}X}".encode()


# --------------------------------------------------------------------------------- session frames

cdef enum:
    LENGTH_BYTES = 2
    MAC_BYTES = 8
    FRAME_BYTES_LEAST = MAC_BYTES + 1
    WAIT = -1                     # what `look` says of a frame that is not whole
    WHOLE = 0
    TOO_LONG = 1                  # from here on these are the values of `fault`
    TOO_SHORT = 2
    BAD_MAC = 3


@cython.final
cdef class Channel:
    """One connection of the session protocol: received bytes to verified payloads, and back.

    Args:
        direction: 1 where we connected, 2 where we accepted; it is the one our frames are sent in.
        frame_bytes_max: largest length taken or sent, payload and MAC, 9 to 65535; may be changed
            later, for what is not taken yet.

    Attributes:
        fault: 0 none, 1 frame too long, 2 length below 9, 3 bad MAC. Set when `take`, `first` or
            `accept_first` meets the bad frame, after all good ones before it were handed out;
            final: what is pushed later is dropped.
        sent, received: frames of each direction so far, which is the next one's counter.
        buffer_bytes_max: most bytes held: two largest frames and one read of 64 KiB.
    """

    def __cinit__(self, int direction, Py_ssize_t frame_bytes_max=8192):
        if direction not in (1, 2):
            raise ValueError("direction must be 1 (we connected) or 2 (we accepted)")
        self.direction = direction
        self.frame_bytes_max = frame_bytes_max

    def __dealloc__(self):
        clear(&self._buffer)

    @property
    def frame_bytes_max(self):
        return self._frame_bytes_max

    @frame_bytes_max.setter
    def frame_bytes_max(self, Py_ssize_t value):
        if not FRAME_BYTES_LEAST <= value <= 65535:
            raise ValueError("frame_bytes_max must be in 9..65535")
        self._frame_bytes_max = value
        self.buffer_bytes_max = 2 * (LENGTH_BYTES + value) + 65536

    @property
    def room(self):
        """Bytes that `push` takes now: 64 KiB or more after a `take` that left no `more`."""
        return max(0, self.buffer_bytes_max - held(&self._buffer))

    @property
    def more(self):
        """True where the next `take` would hand out a frame, or meet a fault."""
        cdef Cursor c
        if self.fault:
            return False
        c = over(&self._buffer)
        return self.look(&c) != WAIT

    cdef int look(self, Cursor* c) noexcept:
        """Read the length; WHOLE where the frame is all there, with the cursor on its payload."""
        cdef Py_ssize_t n
        if left(c) < LENGTH_BYTES:
            return WAIT
        n = take_u16be(c)
        if n > self._frame_bytes_max:
            return TOO_LONG
        if n < FRAME_BYTES_LEAST:
            return TOO_SHORT
        if left(c) < n:
            return WAIT
        c.end = c.at + n
        return WHOLE

    def push(self, data):
        """Take bytes from the network (any contiguous buffer).

        Raises:
            OverflowError: more than `room`; nothing was taken. The caller reads too fast.
        """
        if self.fault == 0:
            push_into(&self._buffer, data, self.buffer_bytes_max)

    cdef void stop(self, int fault) noexcept:
        """The stream is of no use from here on: drop what is held."""
        self.fault = fault
        clear(&self._buffer)

    def first(self):
        """The first whole frame, payload and MAC, neither verified nor counted; None: none yet.

        It stays where it is. Its payload may tell whose key to try, and nothing more.
        """
        cdef Cursor c
        cdef int state
        if self.fault:
            return None
        c = over(&self._buffer)
        state = self.look(&c)
        if state > WHOLE:
            self.stop(state)
        return _bytes(c.at, left(&c)) if state == WHOLE else None

    def accept_first(self, MacKey key not None):
        """Verify the frame that `first` showed under `key` and consume it.

        Returns its payload, or None where the MAC is bad (`fault` is 3 then) or no frame is whole.
        """
        cdef Cursor c
        cdef int state
        if self.fault:
            return None
        c = over(&self._buffer)
        state = self.look(&c)
        if state > WHOLE:
            self.stop(state)
        return self.verified(&c, key) if state == WHOLE else None

    cdef bytes verified(self, Cursor* c, MacKey key):
        """Verify and consume the frame under the cursor; None and fault 3 where it is not ours."""
        cdef Py_ssize_t n = left(c) - MAC_BYTES
        cdef const unsigned char* payload = take(c, n)
        cdef const unsigned char* mac = take(c, MAC_BYTES)
        cdef bytes out
        assert payload != NULL and mac != NULL
        if not key.verify8(3 - self.direction, self.received, payload, n, mac):
            self.stop(BAD_MAC)
            return None
        out = _bytes(payload, n)
        self.received += 1
        consume_to(&self._buffer, c)
        return out

    def rekey(self, MacKey key not None):
        """The key of both directions from the next frame on."""
        self._key = key

    def take(self, int limit=64):
        """The next verified payloads in order, at most `limit`.

        It stops before the first bad frame, so what it returns is good, whatever `fault` says
        afterwards.

        Raises:
            RuntimeError: no key yet; `rekey` comes first.
        """
        cdef list payloads = []
        cdef bytes payload
        cdef Cursor c
        cdef int state
        if self._key is None:
            raise RuntimeError("no session key yet")
        while limit > 0 and self.fault == 0:
            limit -= 1
            c = over(&self._buffer)
            state = self.look(&c)
            if state == WAIT:
                break
            if state > WHOLE:
                self.stop(state)
                break
            payload = self.verified(&c, self._key)
            if payload is not None:
                payloads.append(payload)
        return payloads

    # For native code: the same on raw bytes, a frame at a time.

    cdef bint take_in(self, const unsigned char* p, Py_ssize_t n) except -1:
        """`push`; False, and nothing taken, where there is no room."""
        if self.fault or self.buffer_bytes_max - held(&self._buffer) < n:
            return False
        append(&self._buffer, p, n)
        return True

    cdef bint peek(self, const unsigned char** payload, Py_ssize_t* n) except -1:
        """The payload of the next frame, verified and left where it is; good until the next call.

        False: there is none, or it is for `take` to say what is wrong with it.
        """
        cdef Cursor c
        if self.fault or self._key is None:
            return False
        c = over(&self._buffer)
        if self.look(&c) != WHOLE:
            return False
        n[0] = left(&c) - MAC_BYTES
        payload[0] = take(&c, n[0])
        return self._key.verify8(
            3 - self.direction, self.received, payload[0], n[0], take(&c, MAC_BYTES)
        )

    cdef void skip(self) noexcept:
        """Consume the frame that `peek` showed."""
        cdef Cursor c = over(&self._buffer)
        take(&c, take_u16be(&c))
        self.received += 1
        consume_to(&self._buffer, &c)

    cdef int write_payload(self, Pen* w, const unsigned char* p, Py_ssize_t n) except -1:
        """One frame into a buffer with room for the payload and 10 bytes more."""
        cdef unsigned char* mac
        put_u16be(w, <uint16_t> (n + MAC_BYTES))
        put(w, p, n)
        mac = reserve(w, MAC_BYTES)
        assert mac != NULL and n <= self._frame_bytes_max - MAC_BYTES
        self._key.mac8(<unsigned char> self.direction, self.sent, p, n, mac)
        self.sent += 1
        return 0

    cdef Py_ssize_t checked(self, object payload) except -1:
        """Length of a payload that we may send."""
        cdef Py_ssize_t n
        if type(payload) is not bytes:
            raise TypeError("a payload must be bytes")
        n = PyBytes_GET_SIZE(payload)
        if not 0 < n <= self._frame_bytes_max - MAC_BYTES:
            raise ValueError(f"a payload of {n} bytes does not fit a frame")
        return n

    cdef int write(self, Pen* w, MacKey key, bytes payload) except -1:
        cdef Py_ssize_t n = PyBytes_GET_SIZE(payload)
        cdef const unsigned char* p = <const unsigned char*> PyBytes_AS_STRING(payload)
        cdef unsigned char* mac
        put_u16be(w, <uint16_t> (n + MAC_BYTES))
        put(w, p, n)
        mac = reserve(w, MAC_BYTES)
        assert mac != NULL
        key.mac8(<unsigned char> self.direction, self.sent, p, n, mac)
        self.sent += 1
        return 0

    cdef bytes sealed(self, MacKey key, tuple payloads):
        cdef Py_ssize_t total = 0
        cdef bytes out
        cdef Pen w
        for payload in payloads:
            total += self.checked(payload) + LENGTH_BYTES + MAC_BYTES
        out = PyBytes_FromStringAndSize(NULL, total)
        w = pen(PyBytes_AS_STRING(out), total)
        for payload in payloads:
            self.write(&w, key, payload)
        assert room(&w) == 0 and not w.short
        return out

    def seal(self, list payloads not None):
        """The frames of all payloads, in one buffer, each with our next counter.

        Raises:
            ValueError: a payload is empty or too long; nothing was counted.
            RuntimeError: no key yet.
        """
        if self._key is None:
            raise RuntimeError("no session key yet")
        return self.sealed(self._key, tuple(payloads))

    def seal_with(self, MacKey key not None, bytes payload not None):
        """One frame under another key, with our next counter: a sign-on, or its refusal."""
        return self.sealed(key, (payload,))


def session_key(bytes K not None, bytes client_nonce not None, bytes server_nonce not None):
    """HMAC-SHA-256(K, "troncal/1" || client nonce || server nonce): the key from counter 1 on.

    Raises:
        ValueError: a nonce does not have its 16 bytes.
    """
    if len(client_nonce) != 16 or len(server_nonce) != 16:
        raise ValueError("a nonce has 16 bytes")
    return _MacKey("hmac-sha256", K).mac(b"troncal/1" + client_nonce + server_nonce)
