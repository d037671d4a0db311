"""Message authentication codes, one-time passwords and sealed seeds, over OpenSSL 3.

Every hash and cipher is OpenSSL's, but for SipHash. libcrypto is opened with dlopen at the first
use, and the prototypes below are written by hand, so a build needs no OpenSSL headers. Used are the
low-level SHA and DES functions and not EVP, since their state is plain memory: an HMAC key is
hashed once and its two states are copied for each message (a 200-byte frame: 230 ns against 370 ns
by EVP_MAC [measured]), and what depends on a key lies in memory we locked. AES goes through EVP,
the only way to its hardware instructions; there OpenSSL keeps the expanded key in its own heap and
wipes it when the key goes.

A key belongs to one thread at a time (the GIL sees to it); only the methods that say so work
without the GIL.

Sources: RFC 2104 (HMAC), RFC 4493 and NIST SP 800-38B (CMAC), ISO/IEC 9797-1 (algorithms 1 and 3),
RFC 4226 (HOTP), RFC 6238 (TOTP), RFC 6287 (OCRA), SipHash (Aumasson and Bernstein, 2012).
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset
from posix.dlfcn cimport RTLD_LOCAL, RTLD_NOW, dlclose, dlerror, dlopen, dlsym

from core_ext._cursor cimport (
    Cursor, Pen, cursor, left, pen, put_u8, put_u64be, take, take_u8, take_u32be,
)
from core_ext._siphash cimport sip_key, siphash24

import functools
import re


cdef extern from "<sys/mman.h>" nogil:
    void* mmap(void* address, size_t n, int protection, int flags, int fd, long offset)
    int mlock(const void* address, size_t n)
    int madvise(void* address, size_t n, int advice)
    int PROT_READ, PROT_WRITE, MAP_PRIVATE, MAP_ANONYMOUS, MADV_DONTDUMP
    void* MAP_FAILED


# ---------------------------------------------------------------------------- libcrypto by hand

ctypedef int (*hash_init_t)(void* state) noexcept nogil
ctypedef int (*hash_update_t)(void* state, const void* data, size_t n) noexcept nogil
ctypedef int (*hash_final_t)(unsigned char* digest, void* state) noexcept nogil
ctypedef void (*des_set_key_t)(const unsigned char* key, void* schedule) noexcept nogil
ctypedef void (*des_cbc_t)(
    const unsigned char* data, unsigned char* out, long n, void* schedule, unsigned char* chain,
    int encrypt,
) noexcept nogil
ctypedef void (*des_ede3_cbc_t)(
    const unsigned char* data, unsigned char* out, long n, void* first, void* second, void* third,
    unsigned char* chain, int encrypt,
) noexcept nogil
ctypedef void* (*context_new_t)() noexcept nogil
ctypedef void (*context_free_t)(void* context) noexcept nogil
ctypedef int (*context_copy_t)(void* to, const void* source) noexcept nogil
ctypedef int (*context_ctrl_t)(void* context, int command, int n, void* data) noexcept nogil
ctypedef int (*context_padding_t)(void* context, int pad) noexcept nogil
ctypedef void* (*cipher_fetch_t)(
    void* library, const char* name, const char* properties
) noexcept nogil
ctypedef int (*cipher_init_t)(
    void* context, const void* cipher, void* engine, const unsigned char* key,
    const unsigned char* iv,
) noexcept nogil
ctypedef int (*cipher_update_t)(
    void* context, unsigned char* out, int* out_bytes, const unsigned char* data, int n
) noexcept nogil
ctypedef int (*cipher_final_t)(
    void* context, unsigned char* out, int* out_bytes
) noexcept nogil
ctypedef int (*compare_t)(const void* a, const void* b, size_t n) noexcept nogil
ctypedef void (*cleanse_t)(void* p, size_t n) noexcept nogil
ctypedef int (*random_t)(unsigned char* out, int n) noexcept nogil
ctypedef unsigned int (*version_number_t)() noexcept nogil
ctypedef const char* (*version_text_t)(int what) noexcept nogil

cdef enum:
    SHA1 = 0
    SHA256 = 1
    SHA512 = 2
    DIGEST_BYTES_MAX = 64
    BLOCK_BYTES_MAX = 128        # of a hash
    DES_SCHEDULE_BYTES = 128     # DES_key_schedule: 16 rounds of two 32-bit words
    CTRL_GCM_GET_TAG = 0x10      # EVP_CTRL_AEAD_GET_TAG
    CTRL_GCM_SET_TAG = 0x11      # EVP_CTRL_AEAD_SET_TAG

# SHA_CTX, SHA256_CTX and SHA512_CTX are 96, 112 and 216 bytes: chaining values, bit count, block,
# two counters, as <openssl/sha.h> has declared them since 0.9.8 and for all of 3.x.
cdef struct Hash:
    int block_bytes
    int digest_bytes
    int state_bytes
    hash_init_t start
    hash_update_t update
    hash_final_t final

cdef struct HashState:           # room for any of the three, aligned for all
    uint64_t words[27]

cdef struct Library:
    Hash hashes[3]
    des_set_key_t des_set_key
    des_cbc_t des_cbc
    des_ede3_cbc_t des_ede3_cbc
    context_new_t context_new
    context_free_t context_free
    context_copy_t context_copy
    context_ctrl_t context_ctrl
    context_padding_t context_padding
    cipher_fetch_t cipher_fetch
    cipher_init_t encrypt_init
    cipher_update_t encrypt_update
    cipher_final_t encrypt_final
    cipher_init_t decrypt_init
    cipher_update_t decrypt_update
    cipher_final_t decrypt_final
    compare_t compare
    cleanse_t cleanse
    random_t random
    version_number_t version_major
    version_text_t version_text
    void* aes_cbc[3]             # EVP_CIPHER of 128, 192, 256 bits
    void* aes_256_gcm

cdef Library lib
cdef bint loaded = False


cdef void* _symbol(void* handle, str name) except NULL:
    cdef bytes raw = name.encode()
    cdef void* found = dlsym(handle, raw)
    if found == NULL:
        raise RuntimeError(f"libcrypto has no function {name}: Troncal needs a full OpenSSL 3")
    return found


cdef int _bind_hash(void* handle, Hash* h, str name, int block, int digest, int state) except -1:
    h.block_bytes = block
    h.digest_bytes = digest
    h.state_bytes = state
    h.start = <hash_init_t> _symbol(handle, f"{name}_Init")
    h.update = <hash_update_t> _symbol(handle, f"{name}_Update")
    h.final = <hash_final_t> _symbol(handle, f"{name}_Final")
    return 0


cdef int _bind(void* handle, Library* to) except -1:
    to.version_major = <version_number_t> _symbol(handle, "OPENSSL_version_major")
    if to.version_major() != 3:
        raise RuntimeError(f"Troncal needs OpenSSL 3, this is version {to.version_major()}")
    to.version_text = <version_text_t> _symbol(handle, "OpenSSL_version")
    _bind_hash(handle, &to.hashes[SHA1], "SHA1", 64, 20, 96)
    _bind_hash(handle, &to.hashes[SHA256], "SHA256", 64, 32, 112)
    _bind_hash(handle, &to.hashes[SHA512], "SHA512", 128, 64, 216)
    to.des_set_key = <des_set_key_t> _symbol(handle, "DES_set_key_unchecked")
    to.des_cbc = <des_cbc_t> _symbol(handle, "DES_ncbc_encrypt")
    to.des_ede3_cbc = <des_ede3_cbc_t> _symbol(handle, "DES_ede3_cbc_encrypt")
    to.context_new = <context_new_t> _symbol(handle, "EVP_CIPHER_CTX_new")
    to.context_free = <context_free_t> _symbol(handle, "EVP_CIPHER_CTX_free")
    to.context_copy = <context_copy_t> _symbol(handle, "EVP_CIPHER_CTX_copy")
    to.context_ctrl = <context_ctrl_t> _symbol(handle, "EVP_CIPHER_CTX_ctrl")
    to.context_padding = <context_padding_t> _symbol(handle, "EVP_CIPHER_CTX_set_padding")
    to.cipher_fetch = <cipher_fetch_t> _symbol(handle, "EVP_CIPHER_fetch")
    to.encrypt_init = <cipher_init_t> _symbol(handle, "EVP_EncryptInit_ex")
    to.encrypt_update = <cipher_update_t> _symbol(handle, "EVP_EncryptUpdate")
    to.encrypt_final = <cipher_final_t> _symbol(handle, "EVP_EncryptFinal_ex")
    to.decrypt_init = <cipher_init_t> _symbol(handle, "EVP_DecryptInit_ex")
    to.decrypt_update = <cipher_update_t> _symbol(handle, "EVP_DecryptUpdate")
    to.decrypt_final = <cipher_final_t> _symbol(handle, "EVP_DecryptFinal_ex")
    to.compare = <compare_t> _symbol(handle, "CRYPTO_memcmp")
    to.cleanse = <cleanse_t> _symbol(handle, "OPENSSL_cleanse")
    to.random = <random_t> _symbol(handle, "RAND_bytes")
    to.aes_cbc[0] = to.cipher_fetch(NULL, "AES-128-CBC", NULL)
    to.aes_cbc[1] = to.cipher_fetch(NULL, "AES-192-CBC", NULL)
    to.aes_cbc[2] = to.cipher_fetch(NULL, "AES-256-CBC", NULL)
    to.aes_256_gcm = to.cipher_fetch(NULL, "AES-256-GCM", NULL)
    if NULL in (to.aes_cbc[0], to.aes_cbc[1], to.aes_cbc[2], to.aes_256_gcm):
        raise RuntimeError("OpenSSL offers no AES: is its default provider configured?")
    return 0


def load_openssl(str name not None="libcrypto.so.3"):
    """Open libcrypto now, instead of at the first use, and return its version text.

    Once a library is in use it stays: a later call checks the named one and changes nothing.

    Raises:
        RuntimeError: there is no such library, it is not OpenSSL 3, or a function is missing.
    """
    global lib, loaded
    cdef Library found
    cdef bytes raw = name.encode()
    cdef void* handle = dlopen(raw, RTLD_NOW | RTLD_LOCAL)
    if handle == NULL:
        raise RuntimeError(
            f"Troncal needs OpenSSL 3 (package libssl3 or openssl-libs): {dlerror().decode()}"
        )
    try:
        _bind(handle, &found)
    except RuntimeError:
        dlclose(handle)
        raise
    if not loaded:
        lib = found
        loaded = True
    return found.version_text(0).decode()


cdef inline int need() except -1:
    if not loaded:
        load_openssl()
    return 0


cdef int refused() except -1 nogil:
    with gil:
        raise RuntimeError("OpenSSL refused an operation that cannot fail: stop and look")


# ------------------------------------------------------------------------------- locked memory

cdef enum:
    CHUNK_BYTES = 65536
    SMALL_BYTES = 256            # HMAC-SHA-1 and -256 states, AES subkeys, a vault's key
    LARGE_BYTES = 544            # HMAC-SHA-512 states; four DES schedules and two subkeys

cdef struct Slab:
    size_t slot_bytes
    void* unused                 # list of free slots, linked through their first word

cdef Slab small = [SMALL_BYTES, NULL]
cdef Slab large = [LARGE_BYTES, NULL]
cdef size_t bytes_locked = 0
cdef size_t bytes_not_locked = 0


cdef int _grow(Slab* slab) except -1:
    """One more chunk of slots; kept for good, so memory follows the most keys ever alive."""
    global bytes_locked, bytes_not_locked
    cdef void* chunk = mmap(
        NULL, CHUNK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0
    )
    cdef unsigned char* at = <unsigned char*> chunk
    cdef size_t offset = 0
    if chunk == MAP_FAILED:
        raise MemoryError
    if mlock(chunk, CHUNK_BYTES) == 0:
        bytes_locked += CHUNK_BYTES
    else:
        bytes_not_locked += CHUNK_BYTES  # RLIMIT_MEMLOCK: keys still work; `locked_memory` tells
    madvise(chunk, CHUNK_BYTES, MADV_DONTDUMP)  # fails harmlessly where cores are off
    while offset + slab.slot_bytes <= CHUNK_BYTES:
        (<void**> (at + offset))[0] = slab.unused
        slab.unused = at + offset
        offset += slab.slot_bytes
    return 0


cdef unsigned char* _slot(Slab* slab) except NULL:
    """A zeroed slot. Called with the GIL, as is `_give_back`: that is the slabs' lock."""
    cdef void* slot
    if slab.unused == NULL:
        _grow(slab)
    slot = slab.unused
    slab.unused = (<void**> slot)[0]
    (<void**> slot)[0] = NULL
    return <unsigned char*> slot


cdef void _give_back(Slab* slab, unsigned char* slot) noexcept:
    lib.cleanse(slot, slab.slot_bytes)
    (<void**> slot)[0] = slab.unused
    slab.unused = slot


def locked_memory():
    """Bytes of key memory that are locked against swapping, and bytes that could not be.

    The second is above zero when RLIMIT_MEMLOCK is too small; a key takes 256 to 544 bytes.
    """
    return bytes_locked, bytes_not_locked


# -------------------------------------------------------------------------------------- buffers

cdef struct View:
    const unsigned char* p
    Py_ssize_t n
    bint held
    Py_buffer buffer


cdef int see(object data, View* view) except -1:
    """Look into any contiguous buffer; `unsee` it afterwards. `bytes` needs no buffer protocol."""
    view.held = False
    if type(data) is bytes:
        view.p = <const unsigned char*> PyBytes_AS_STRING(data)
        view.n = PyBytes_GET_SIZE(data)
        return 0
    PyObject_GetBuffer(data, &view.buffer, PyBUF_SIMPLE)
    view.p = <const unsigned char*> view.buffer.buf
    view.n = view.buffer.len
    view.held = True
    return 0


cdef inline void unsee(View* view) noexcept:
    if view.held:
        PyBuffer_Release(&view.buffer)


cdef bytes _bytes(const unsigned char* p, Py_ssize_t n):
    return PyBytes_FromStringAndSize(<const char*> p, n)


# ----------------------------------------------------------------------------------------- HMAC

cdef bint hmac_start(
    const Hash* h, const unsigned char* key, Py_ssize_t n, unsigned char* states
) noexcept nogil:
    """Hash the padded key once: the inner state goes to `states`, the outer one right after."""
    cdef unsigned char pad[BLOCK_BYTES_MAX]
    cdef HashState state
    cdef unsigned char* outer = states + h.state_bytes
    cdef bint ok = True
    cdef int i
    memset(pad, 0, sizeof(pad))
    if n > h.block_bytes:
        ok = h.start(&state) and h.update(&state, key, n) and h.final(pad, &state)
    elif n > 0:
        memcpy(pad, key, n)
    for i in range(h.block_bytes):
        pad[i] ^= 0x36
    ok = ok and h.start(states) and h.update(states, pad, h.block_bytes)
    for i in range(h.block_bytes):
        pad[i] ^= 0x36 ^ 0x5C
    ok = ok and h.start(outer) and h.update(outer, pad, h.block_bytes)
    lib.cleanse(pad, sizeof(pad))
    lib.cleanse(&state, sizeof(state))
    return ok


cdef bint hmac_sum(
    const Hash* h, const unsigned char* states, const unsigned char* prefix,
    Py_ssize_t prefix_bytes, const unsigned char* p, Py_ssize_t n, unsigned char* out,
) noexcept nogil:
    """HMAC of prefix and data to `out`, digest_bytes long. Reads `states` only: any thread may."""
    cdef HashState state
    cdef bint ok = True
    memcpy(&state, states, h.state_bytes)
    if prefix_bytes:
        ok = h.update(&state, prefix, prefix_bytes)
    if n:
        ok = ok and h.update(&state, p, n)
    ok = ok and h.final(out, &state)
    memcpy(&state, states + h.state_bytes, h.state_bytes)
    ok = ok and h.update(&state, out, h.digest_bytes) and h.final(out, &state)
    lib.cleanse(&state, h.state_bytes)
    return ok


# -------------------------------------------------------------------------- CMAC and CBC-MACs

cdef enum:
    HMAC_LAST = SHA512           # kinds 0..2 are the three HMACs, by the number of their hash
    AES_CMAC = 3
    TDES_CMAC = 4
    RETAIL_1 = 5
    RETAIL_2 = 6
    X99_1 = 7
    X99_2 = 8
    TDES_MAC_1 = 9
    TDES_MAC_2 = 10
    DES_SUBKEYS_AT = 4 * DES_SCHEDULE_BYTES
    SCRATCH_BYTES = 512          # a multiple of both block sizes

_ALGORITHMS = {
    # name: (kind, shortest key, longest key, step between, bytes of the tag)
    "hmac-sha1": (SHA1, 1, 4096, 1, 20),
    "hmac-sha256": (SHA256, 1, 4096, 1, 32),
    "hmac-sha512": (SHA512, 1, 4096, 1, 64),
    "aes-cmac": (AES_CMAC, 16, 32, 8, 16),
    "tdes-cmac": (TDES_CMAC, 16, 24, 8, 8),
    "retail-1": (RETAIL_1, 16, 32, 16, 8),
    "retail-2": (RETAIL_2, 16, 32, 16, 8),
    "x9.9-1": (X99_1, 8, 8, 1, 8),
    "x9.9-2": (X99_2, 8, 8, 1, 8),
    "tdes-mac-1": (TDES_MAC_1, 16, 24, 8, 8),
    "tdes-mac-2": (TDES_MAC_2, 16, 24, 8, 8),
}

cdef struct Chain:
    # A CBC chain over a stream of pieces. One block is always held back, since the last block of
    # a CMAC is treated apart and no one knows it is the last before the end.
    int block_bytes
    int held
    unsigned char block[16]
    unsigned char last[16]       # the newest cipher block; for DES also the chaining value


cdef Slab* slab_of(MacKey key) noexcept:
    if key._kind == SHA512 or key._kind > AES_CMAC:
        return &large
    return &small


cdef int start_aes(MacKey key, const unsigned char* raw) except -1:
    cdef unsigned char zero[16]
    cdef Chain chain
    key._cipher = lib.context_new()
    if key._cipher == NULL:
        raise MemoryError
    memset(zero, 0, sizeof(zero))
    if not lib.encrypt_init(
        key._cipher, lib.aes_cbc[(key._key_bytes - 16) // 8], NULL, raw, zero
    ) or not lib.context_padding(key._cipher, 0):
        refused()
    start_chain(key, key._cipher, &chain)
    run(key, key._cipher, &chain, zero, 16)
    derive_subkeys(key._secret, chain.last, 16)
    lib.cleanse(&chain, sizeof(chain))
    return 0


cdef int start_des(MacKey key, const unsigned char* raw) except -1:
    cdef unsigned char zero[8]
    cdef Chain chain
    cdef int i
    for i in range(key._key_bytes // 8):
        lib.des_set_key(raw + 8 * i, schedule(key, i))
    if key._kind == TDES_CMAC:
        memset(zero, 0, sizeof(zero))
        start_chain(key, NULL, &chain)
        run(key, NULL, &chain, zero, 8)
        derive_subkeys(key._secret + DES_SUBKEYS_AT, chain.last, 8)
        lib.cleanse(&chain, sizeof(chain))
    return 0


cdef void derive_subkeys(unsigned char* to, const unsigned char* l, int n) noexcept:
    """K1 and K2 of SP 800-38B §6.1: the cipher of a zero block doubled once, and twice."""
    cdef unsigned char carry
    cdef unsigned char polynomial = 0x87 if n == 16 else 0x1B
    cdef const unsigned char* source = l
    cdef int k, i
    for k in range(2):
        carry = source[0] >> 7
        for i in range(n - 1):
            to[i] = <unsigned char> ((source[i] << 1) | (source[i + 1] >> 7))
        to[n - 1] = <unsigned char> ((source[n - 1] << 1) ^ (polynomial & -carry))
        source = to
        to += n


cdef void* schedule(MacKey key, int i) noexcept nogil:
    return key._secret + i * DES_SCHEDULE_BYTES


cdef int start_chain(MacKey key, void* cipher, Chain* chain) except -1 nogil:
    memset(chain, 0, sizeof(Chain))
    chain.block_bytes = 8
    if key._kind == AES_CMAC:
        chain.block_bytes = 16
        if not lib.encrypt_init(cipher, NULL, NULL, NULL, chain.last):
            return refused()
    return 0


cdef int run(
    MacKey key, void* cipher, Chain* chain, const unsigned char* p, Py_ssize_t n
) except -1 nogil:
    """Send whole blocks through the chain; only the newest cipher block is kept."""
    cdef unsigned char scratch[SCRATCH_BYTES]
    cdef int piece, done
    while n > 0:
        piece = <int> min(n, SCRATCH_BYTES)
        if key._kind == AES_CMAC:
            if not lib.encrypt_update(cipher, scratch, &done, p, piece) or done != piece:
                return refused()
            memcpy(chain.last, scratch + piece - 16, 16)
        elif key._kind <= X99_2 and key._kind != TDES_CMAC and key._key_bytes <= 16:
            lib.des_cbc(p, scratch, piece, schedule(key, 0), chain.last, 1)
        else:
            lib.des_ede3_cbc(
                p, scratch, piece, schedule(key, 0), schedule(key, 1),
                schedule(key, 2 if key._key_bytes == 24 else 0), chain.last, 1,
            )
        p += piece
        n -= piece
    return 0


cdef int absorb(
    MacKey key, void* cipher, Chain* chain, const unsigned char* p, Py_ssize_t n
) except -1 nogil:
    cdef Py_ssize_t part
    if n <= 0:
        return 0
    part = min(n, chain.block_bytes - chain.held)
    memcpy(chain.block + chain.held, p, part)
    chain.held += <int> part
    if part == n:
        return 0
    run(key, cipher, chain, chain.block, chain.block_bytes)
    p += part
    n -= part
    part = (n - 1) // chain.block_bytes * chain.block_bytes
    run(key, cipher, chain, p, part)
    chain.held = <int> (n - part)
    memcpy(chain.block, p + part, chain.held)
    return 0


cdef int finish_cmac(MacKey key, void* cipher, Chain* chain) except -1 nogil:
    cdef const unsigned char* subkey = key._secret
    cdef int i
    if key._kind == TDES_CMAC:
        subkey += DES_SUBKEYS_AT
    if chain.held < chain.block_bytes:
        chain.block[chain.held] = 0x80
        memset(chain.block + chain.held + 1, 0, chain.block_bytes - chain.held - 1)
        subkey += chain.block_bytes
    for i in range(chain.block_bytes):
        chain.block[i] ^= subkey[i]
    return run(key, cipher, chain, chain.block, chain.block_bytes)


cdef int finish_cbc(MacKey key, Chain* chain) except -1 nogil:
    """Padding method 1 or 2 of ISO/IEC 9797-1, then the output transformation."""
    if key._kind in (RETAIL_2, X99_2, TDES_MAC_2):
        if chain.held == 8:
            run(key, NULL, chain, chain.block, 8)
            chain.held = 0
        chain.block[chain.held] = 0x80
        chain.held += 1
    memset(chain.block + chain.held, 0, 8 - chain.held)  # no data at all: one block of zeros
    run(key, NULL, chain, chain.block, 8)
    if key._kind in (RETAIL_1, RETAIL_2):
        finish_retail(key, chain)
    return 0


cdef void finish_retail(MacKey key, Chain* chain) noexcept nogil:
    """Algorithm 3: decrypt the last block with the second half, encrypt it with the first."""
    cdef unsigned char zero[8]
    memset(zero, 0, 8)
    if key._key_bytes == 16:
        lib.des_cbc(chain.last, chain.last, 8, schedule(key, 1), zero, 0)
        memset(zero, 0, 8)
        lib.des_cbc(chain.last, chain.last, 8, schedule(key, 0), zero, 1)
        return
    lib.des_ede3_cbc(
        chain.last, chain.last, 8, schedule(key, 2), schedule(key, 3), schedule(key, 2),
        zero, 0,
    )
    memset(zero, 0, 8)
    lib.des_ede3_cbc(
        chain.last, chain.last, 8, schedule(key, 0), schedule(key, 1), schedule(key, 0),
        zero, 1,
    )


@cython.final
cdef class MacKey:
    """A key with its algorithm, ready for use; its bytes cannot be read back.

    Args:
        algorithm: "hmac-sha256", "hmac-sha512", "hmac-sha1" (1 to 4096 bytes of key); "aes-cmac"
            (16, 24 or 32; the session protocol uses the first 16 of its 32 bytes); "tdes-cmac",
            "tdes-mac-1", "tdes-mac-2" (16 or 24); "retail-1", "retail-2" (ISO/IEC 9797-1 algorithm
            3, ANSI X9.19: 16, or 32 whose halves are double-length keys); "x9.9-1", "x9.9-2"
            (single DES, 8). The last digit is the padding method of ISO/IEC 9797-1.
        key: the key's bytes; the caller's copy stays the caller's to forget. Parity is ignored.

    Raises:
        ValueError: unknown algorithm, or a key of the wrong length.
        RuntimeError: libcrypto cannot be used.
    """

    def __cinit__(self, str algorithm not None, bytes key not None):
        cdef int shortest, longest, step
        cdef int n = <int> min(len(key), 1 << 20)
        cdef const unsigned char* p = <const unsigned char*> PyBytes_AS_STRING(key)
        if algorithm not in _ALGORITHMS:
            raise ValueError(f"unknown MAC algorithm {algorithm!r}")
        need()
        self._kind, shortest, longest, step, self.mac_bytes = _ALGORITHMS[algorithm]
        if not shortest <= n <= longest or (n - shortest) % step != 0:
            raise ValueError(f"a key of {algorithm} has no {n} bytes")
        self.algorithm = algorithm
        self._key_bytes = n
        self._secret = _slot(slab_of(self))
        if self._kind <= HMAC_LAST:
            if not hmac_start(&lib.hashes[self._kind], p, n, self._secret):
                refused()
        elif self._kind == AES_CMAC:
            start_aes(self, p)
        else:
            start_des(self, p)

    def __dealloc__(self):
        if self._cipher != NULL:
            lib.context_free(self._cipher)  # OpenSSL wipes what the context held
        if self._secret != NULL:
            _give_back(slab_of(self), self._secret)

    cdef int compute(
        self, void* cipher, const unsigned char* prefix, Py_ssize_t prefix_bytes,
        const unsigned char* p, Py_ssize_t n, unsigned char* out,
    ) except -1 nogil:
        """The full tag of prefix and data, to 64 bytes of room at `out`.

        `cipher` is the EVP context to use for AES: the key's own, or a copy by who holds no GIL.
        """
        cdef Chain chain
        if self._kind <= HMAC_LAST:
            if not hmac_sum(
                &lib.hashes[self._kind], self._secret, prefix, prefix_bytes, p, n, out
            ):
                return refused()
            return 0
        start_chain(self, cipher, &chain)
        absorb(self, cipher, &chain, prefix, prefix_bytes)
        absorb(self, cipher, &chain, p, n)
        if self._kind <= TDES_CMAC:
            finish_cmac(self, cipher, &chain)
        else:
            finish_cbc(self, &chain)
        memcpy(out, chain.last, chain.block_bytes)
        lib.cleanse(&chain, sizeof(chain))
        return 0

    cdef int mac8(
        self, unsigned char direction, uint64_t counter,
        const unsigned char* p, Py_ssize_t n, unsigned char* out8,
    ) except -1 nogil:
        """First 8 bytes of the MAC of direction, counter and payload: a session frame's MAC.

        Not for two threads at once with one key: AES uses the key's own context.
        """
        cdef unsigned char prefix[9]
        cdef unsigned char tag[DIGEST_BYTES_MAX]
        cdef Pen w = pen(prefix, sizeof(prefix))
        put_u8(&w, direction)
        put_u64be(&w, counter)
        self.compute(self._cipher, prefix, sizeof(prefix), p, n, tag)
        memcpy(out8, tag, 8)
        return 0

    cdef bint verify8(
        self, unsigned char direction, uint64_t counter,
        const unsigned char* p, Py_ssize_t n, const unsigned char* mac8,
    ) except -1 nogil:
        """True where `mac8` (8 bytes) is the frame's MAC; compared in constant time."""
        cdef unsigned char right[8]
        self.mac8(direction, counter, p, n, right)
        return lib.compare(right, mac8, 8) == 0

    def mac(self, data):
        """The full tag of `data` (any contiguous buffer)."""
        cdef View view
        cdef unsigned char tag[DIGEST_BYTES_MAX]
        see(data, &view)
        try:
            self.compute(self._cipher, NULL, 0, view.p, view.n, tag)
        finally:
            unsee(&view)
        return _bytes(tag, self.mac_bytes)

    def verify(self, data, mac):
        """True where `mac` is the tag of `data`, or its first 4 or more bytes; constant time.

        A MAC shorter than 4 bytes or longer than the tag is simply wrong.
        """
        cdef View view, given
        cdef unsigned char tag[DIGEST_BYTES_MAX]
        cdef bint good = False
        see(data, &view)
        try:
            self.compute(self._cipher, NULL, 0, view.p, view.n, tag)
        finally:
            unsee(&view)
        see(mac, &given)
        if 4 <= given.n <= self.mac_bytes:
            good = lib.compare(tag, given.p, given.n) == 0
        unsee(&given)
        return good

    def mac_many(self, list messages not None, int length=8):
        """The tags of many messages, each cut to `length` bytes (4 to the whole tag).

        Works without the GIL; other threads may use the key meanwhile.
        """
        if not 4 <= length <= self.mac_bytes:
            raise ValueError(f"a tag of {self.algorithm} has 4 to {self.mac_bytes} bytes")
        cdef tuple kept = tuple(messages)  # the list may change while the GIL is away
        cdef Py_ssize_t i, n = len(kept)
        cdef bytes tags = self.tags(kept)
        return [tags[i * self.mac_bytes : i * self.mac_bytes + length] for i in range(n)]

    def verify_many(self, list messages not None, list macs not None):
        """For each message whether its MAC is good, by the rules of `verify`. Without the GIL."""
        cdef tuple kept = tuple(messages)
        cdef tuple given = tuple(macs)
        cdef Py_ssize_t i, n = len(kept)
        cdef bytes mac, tags
        cdef const unsigned char* tag
        cdef list good = []
        if len(given) != n:
            raise ValueError("as many MACs as messages are needed")
        tags = self.tags(kept)
        tag = <const unsigned char*> PyBytes_AS_STRING(tags)
        for i in range(n):
            mac = given[i]
            if mac is None:
                raise TypeError("a MAC must be bytes")
            good.append(
                4 <= len(mac) <= self.mac_bytes
                and lib.compare(tag + i * self.mac_bytes, PyBytes_AS_STRING(mac), len(mac)) == 0
            )
        return good

    cdef bytes tags(self, tuple messages):
        """The full tags of all messages, end to end; computed without the GIL."""
        cdef Py_ssize_t i, n = len(messages)
        cdef bytes out = PyBytes_FromStringAndSize(NULL, n * self.mac_bytes)
        cdef unsigned char* at = <unsigned char*> PyBytes_AS_STRING(out)
        cdef unsigned char tag[DIGEST_BYTES_MAX]
        cdef const unsigned char** data = <const unsigned char**> malloc(
            n * (sizeof(void*) + sizeof(Py_ssize_t)) + 1
        )
        cdef Py_ssize_t* sizes = <Py_ssize_t*> (data + n)
        cdef void* cipher = NULL
        if data == NULL:
            raise MemoryError
        try:
            for i in range(n):
                message = messages[i]
                if type(message) is not bytes:
                    raise TypeError("a message must be bytes")
                data[i] = <const unsigned char*> PyBytes_AS_STRING(message)
                sizes[i] = PyBytes_GET_SIZE(message)
            if self._cipher != NULL:
                cipher = lib.context_new()
                if cipher == NULL or not lib.context_copy(cipher, self._cipher):
                    refused()
            with nogil:
                for i in range(n):
                    self.compute(cipher, NULL, 0, data[i], sizes[i], tag)
                    memcpy(at + i * self.mac_bytes, tag, self.mac_bytes)
        finally:
            free(data)
            if cipher != NULL:
                lib.context_free(cipher)
        return out


def siphash(bytes key not None, bytes data not None):
    """SipHash-2-4 of `data` under a key of 16 bytes, as a number below 2**64."""
    if len(key) != 16:
        raise ValueError("the key of a SipHash has 16 bytes")
    return siphash24(
        sip_key(<const unsigned char*> PyBytes_AS_STRING(key)),
        <const unsigned char*> PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data),
    )


def equal(a, b):
    """True where two buffers hold the same bytes; the time taken tells their lengths only."""
    cdef View one, other
    cdef bint same
    need()
    see(a, &one)
    try:
        see(b, &other)
        same = one.n == other.n and lib.compare(one.p, other.p, one.n) == 0
        unsee(&other)
    finally:
        unsee(&one)
    return same


# ------------------------------------------------------------------------- one-time passwords

cdef enum:
    QUESTION_BYTES = 128         # RFC 6287 §5.1: the question field, zero-filled
    OCRA_BYTES_MAX = 320         # suite (at most 46), 0, counter 8, question, PIN 64, time 8

_HASHES = {"sha1": SHA1, "sha256": SHA256, "sha512": SHA512}

cdef struct Digits:
    # value mod 10^n as a multiplication and a shift: a division takes a time that depends on
    # its operands on many processors. Exact for all 31-bit values (Granlund and Montgomery 1994).
    uint64_t divisor
    uint64_t multiplier
    int shift


cdef Digits decimal_digits(int n) noexcept:
    cdef Digits d
    cdef int i, bits = 0
    d.divisor = 1
    for i in range(n):
        d.divisor *= 10
    while bits < 31 and (<uint64_t> 1 << bits) < d.divisor:
        bits += 1
    d.shift = 31 + bits
    # Ten digits hold every 31-bit value, so there the quotient must be 0.
    d.multiplier = 0 if n >= 10 else ((<uint64_t> 1 << d.shift) + d.divisor - 1) // d.divisor
    return d


cdef inline uint64_t mask_equal(uint64_t a, uint64_t b) noexcept nogil:
    """All ones where a == b, else 0, without a branch."""
    cdef uint64_t x = a ^ b
    return ((x | (<uint64_t> 0 - x)) >> 63) - 1


cdef uint64_t truncated(const unsigned char* mac, int n, const Digits* digits) noexcept nogil:
    """RFC 4226 §5.3, reading all 16 offsets alike, so that caches learn nothing of the MAC."""
    cdef uint64_t offset = mac[n - 1] & 15
    cdef uint64_t value = 0
    cdef Cursor c
    cdef int i
    for i in range(16):
        c = cursor(mac + i, 4)
        value |= take_u32be(&c) & mask_equal(i, offset)
    value &= 0x7FFFFFFF
    return value - ((value * digits.multiplier) >> digits.shift) * digits.divisor


cdef int _hash_number(str name) except -1:
    number = _HASHES.get(name)
    if number is None:
        raise ValueError(f"unknown hash {name!r}; known: sha1, sha256, sha512")
    return number


cdef str _code(const Hash* h, bytes key, const unsigned char* message, Py_ssize_t n, int digits):
    cdef HashState states[2]
    cdef unsigned char mac[DIGEST_BYTES_MAX]
    cdef Digits decimal = decimal_digits(digits)
    cdef uint64_t value
    if not 1 <= len(key) <= 4096:
        raise ValueError("the key must have 1 to 4096 bytes")
    if not (
        hmac_start(h, <const unsigned char*> PyBytes_AS_STRING(key), len(key),
                   <unsigned char*> states)
        and hmac_sum(h, <const unsigned char*> states, NULL, 0, message, n, mac)
    ):
        refused()
    value = truncated(mac, h.digest_bytes, &decimal)
    lib.cleanse(states, sizeof(states))
    lib.cleanse(mac, sizeof(mac))
    return f"{value:0{digits}d}"


def hotp(bytes key not None, object counter, *, int digits=6, str algorithm not None="sha1"):
    """The HOTP code of a counter (0 to 2**64 - 1), RFC 4226; 6 to 10 digits.

    Raises:
        ValueError: unknown hash, empty key, or digits or counter out of range.
    """
    cdef unsigned char message[8]
    cdef Pen w = pen(message, sizeof(message))
    cdef int number = _hash_number(algorithm)
    if not 6 <= digits <= 10:
        raise ValueError("digits must be in 6..10")
    if not 0 <= counter < 1 << 64:
        raise ValueError("the counter must fit into 64 bits")
    need()
    put_u64be(&w, counter)
    return _code(&lib.hashes[number], key, message, sizeof(message), digits)


def totp(
    bytes key not None, object time_s, *, object step_s=60, int digits=6,
    str algorithm not None="sha256", object t0=0,
):
    """The TOTP code at a Unix time in whole seconds, RFC 6238. Raises as `hotp`."""
    if step_s < 1:
        raise ValueError("step_s must be positive")
    return hotp(key, (time_s - t0) // step_s, digits=digits, algorithm=algorithm)


_SUITE = re.compile(
    r"OCRA-1:HOTP-(?P<hash>SHA1|SHA256|SHA512)-(?P<digits>[4-9]|10):"
    r"(?P<counter>C-)?Q(?P<format>[ANH])(?P<length>0[4-9]|[1-5][0-9]|6[0-4])"
    r"(?:-P(?P<pin>SHA1|SHA256|SHA512))?"
    r"(?:-T(?P<step>[1-9]|[1-5][0-9])(?P<unit>[SMH]))?",
    re.ASCII,
)


@functools.lru_cache(maxsize=32)
def _suite(str suite not None):
    """Read a suite: (hash, digits, counter?, format, question length, PIN hash or "", step_s)."""
    match = _SUITE.fullmatch(suite)
    if match is None:
        raise ValueError("not an OCRA suite of RFC 6287, or one with session data or no digits")
    step_s = int(match["step"] or 0) * {"S": 1, "M": 60, "H": 3600, None: 0}[match["unit"]]
    if step_s > 48 * 3600:
        raise ValueError("an OCRA time step has at most 48 hours")
    return (
        match["hash"].lower(), int(match["digits"]), match["counter"] is not None,
        match["format"], int(match["length"]), (match["pin"] or "").lower(), step_s,
    )


cdef bytes _question(str question, str kind, int length):
    """The question as its 128-byte field. Up to twice the length: mutual challenges are joined."""
    if not 1 <= len(question) <= min(2 * length, QUESTION_BYTES) or not question.isascii():
        raise ValueError("the question does not fit its OCRA suite")
    if kind == "A":
        return question.encode().ljust(QUESTION_BYTES, b"\0")
    if kind == "N":
        if not question.isdigit():
            raise ValueError("the question must be digits")
        question = f"{int(question):X}"
    # Numbers and hex strings fill the field from the left by half-bytes (RFC 6287, appendix A).
    try:
        return bytes.fromhex(question.ljust(2 * QUESTION_BYTES, "0"))
    except ValueError:
        raise ValueError("the question must be hexadecimal") from None


cdef bytes _pin_hash(str pin, str name):
    cdef const Hash* h = &lib.hashes[_hash_number(name)]
    cdef HashState state
    cdef unsigned char digest[DIGEST_BYTES_MAX]
    cdef bytes raw = pin.encode()
    cdef bint ok = (
        h.start(&state) and h.update(&state, PyBytes_AS_STRING(raw), len(raw))
        and h.final(digest, &state)
    )
    lib.cleanse(&state, sizeof(state))
    if not ok:
        refused()
    return _bytes(digest, h.digest_bytes)


cdef bytes _ocra_message(
    str suite, tuple parsed, str question, object counter, str pin, object timestep
):
    """RFC 6287 §5.1: suite, a zero byte, then the inputs that the suite names, and no others."""
    wanted = (parsed[2], bool(parsed[5]), bool(parsed[6]))
    if wanted != (counter is not None, pin is not None, timestep is not None):
        raise ValueError("counter, pin and timestep must be given as the OCRA suite says")
    parts = [suite.encode(), b"\0"]
    if counter is not None:
        if not 0 <= counter < 1 << 64:
            raise ValueError("the counter must fit into 64 bits")
        parts.append(int(counter).to_bytes(8, "big"))
    parts.append(_question(question, parsed[3], parsed[4]))
    if pin is not None:
        parts.append(_pin_hash(pin, parsed[5]))
    if timestep is not None:
        if not 0 <= timestep < 1 << 63:
            raise ValueError("the time step must fit into 63 bits")
        parts.append(int(timestep).to_bytes(8, "big"))
    return b"".join(parts)


def ocra(
    str suite not None, bytes key not None, *, str question not None, object counter=None,
    str pin=None, object timestep=None,
):
    """The OCRA code of RFC 6287 for a suite without session data, with 4 to 10 digits.

    Args:
        suite: such as "OCRA-1:HOTP-SHA256-8:QN10-T1M".
        question: the challenge as text: digits (QN), ASCII (QA) or hex digits (QH); a mutual
            challenge is the two joined, so up to twice the suite's length.
        counter, pin, timestep: exactly those that the suite names; `timestep` in its own steps.

    Raises:
        ValueError: the suite or an input does not fit; the message never repeats an input.
    """
    cdef bytes message
    cdef tuple parsed = _suite(suite)
    need()
    message = _ocra_message(suite, parsed, question, counter, pin, timestep)
    return _code(
        &lib.hashes[_hash_number(parsed[0])], key,
        <const unsigned char*> PyBytes_AS_STRING(message), len(message), parsed[1],
    )


# ------------------------------------------------------------------------------- sealed seeds

cdef enum:
    NONCE_BYTES = 12
    TAG_BYTES = 16
    SEED_BYTES_MAX = 128
    SEEDS_MAX = 64               # of one person at one till
    STEPS_MAX = 1000             # back, forward and probe: far above any sane window

cdef struct Guess:
    # What a typed code is tried against: the message of each step ends in the step's 8 bytes.
    const Hash* h
    Digits digits
    uint64_t code
    int message_bytes
    unsigned char message[OCRA_BYTES_MAX]


cdef int open_sealed(
    void* context, const unsigned char* kek, const Sealed* sealed, unsigned char* seed
) noexcept nogil:
    """Decrypt to `seed` (SEED_BYTES_MAX); 1 good, 0 does not verify (seed zeroed), -1 refused.

    `kek` may be NULL where the context has the key already.
    """
    cdef Cursor c = cursor(sealed.p, sealed.n)
    cdef const unsigned char* nonce = take(&c, NONCE_BYTES)
    cdef Py_ssize_t n = left(&c) - TAG_BYTES
    cdef const unsigned char* text = take(&c, n)
    cdef const unsigned char* tag = take(&c, TAG_BYTES)
    cdef int done = 0
    cdef int aad_bytes = <int> sealed.aad_bytes
    if c.short or not 0 < n <= SEED_BYTES_MAX:
        return -1  # the callers have checked the length
    if not (
        lib.decrypt_init(context, NULL if kek == NULL else lib.aes_256_gcm, NULL, kek, nonce)
        and (aad_bytes == 0 or lib.decrypt_update(context, NULL, &done, sealed.aad, aad_bytes))
        and lib.decrypt_update(context, seed, &done, text, <int> n)
        and lib.context_ctrl(context, CTRL_GCM_SET_TAG, TAG_BYTES, <void*> tag)
    ):
        return -1
    if lib.decrypt_final(context, seed + n, &done) > 0:
        return 1
    lib.cleanse(seed, SEED_BYTES_MAX)
    return 0


cdef int try_seed(
    void* context, const unsigned char* kek, const Sealed* sealed, Guess* guess,
    int64_t low, int64_t high, int64_t skip_low, int64_t skip_high, int64_t* found,
) noexcept nogil:
    """Compare the code with every step in low..high but skip_low..skip_high, all of them.

    `found` gets the highest step that fits, or -1. Returns as `open_sealed`; a seed that does not
    verify is still tried, as zeros, so that it takes the same time.
    """
    cdef unsigned char seed[SEED_BYTES_MAX]
    cdef unsigned char mac[DIGEST_BYTES_MAX]
    cdef HashState states[2]
    cdef Pen w
    cdef int64_t step, best = -1
    cdef uint64_t hit
    cdef int opened = open_sealed(context, kek, sealed, seed)
    cdef bint ok = opened >= 0 and hmac_start(
        guess.h, seed, sealed.n - NONCE_BYTES - TAG_BYTES, <unsigned char*> states
    )
    step = low
    while ok and step <= high:
        if step == skip_low:
            step = skip_high + 1
            continue
        w = pen(guess.message + guess.message_bytes - 8, 8)
        put_u64be(&w, <uint64_t> step)
        ok = hmac_sum(
            guess.h, <const unsigned char*> states, NULL, 0, guess.message, guess.message_bytes, mac
        )
        hit = mask_equal(truncated(mac, guess.h.digest_bytes, &guess.digits), guess.code)
        hit &= <uint64_t> (opened == 1) * <uint64_t> 0xFFFFFFFFFFFFFFFF
        best = <int64_t> ((<uint64_t> step & hit) | (<uint64_t> best & ~hit))
        step += 1
    lib.cleanse(seed, sizeof(seed))
    lib.cleanse(mac, sizeof(mac))
    lib.cleanse(states, sizeof(states))
    found[0] = best
    return opened if ok else -1


@cython.final
cdef class SeedVault:
    """Seals the seeds of soft tokens under a key-encryption key, and tries codes against them.

    AES-256-GCM (NIST SP 800-38D) with random 96-bit nonces: at most 2**32 seals under one key.

    Args:
        kek: 32 bytes; kept in locked memory.
    """

    def __cinit__(self, bytes kek not None):
        cdef unsigned char noise[32]
        if len(kek) != 32:
            raise ValueError("a key-encryption key has 32 bytes")
        need()
        self._kek = _slot(&small)
        memcpy(self._kek, PyBytes_AS_STRING(kek), 32)
        self._context = lib.context_new()
        if self._context == NULL:
            raise MemoryError
        if not lib.decrypt_init(self._context, lib.aes_256_gcm, NULL, self._kek, NULL):
            refused()
        if lib.random(noise, sizeof(noise)) != 1:
            refused()
        self._dummy = self.seal(_bytes(noise, sizeof(noise)), b"")

    def __dealloc__(self):
        if self._context != NULL:
            lib.context_free(self._context)
        if self._kek != NULL:
            _give_back(&small, self._kek)

    def seal(self, bytes seed not None, bytes aad not None):
        """Encrypt a seed of 1 to 128 bytes: nonce (12), ciphertext, tag (16).

        `aad` ties it to its place, such as the card's id: the same is needed to open it.
        """
        cdef int n = <int> min(len(seed), 1 << 20), aad_bytes = <int> min(len(aad), 1 << 20)
        cdef int done = 0
        cdef bytes out
        cdef unsigned char* p
        cdef void* context
        if not 1 <= n <= SEED_BYTES_MAX or aad_bytes > 1024:
            raise ValueError("a seed has 1 to 128 bytes, its additional data at most 1024")
        out = PyBytes_FromStringAndSize(NULL, NONCE_BYTES + n + TAG_BYTES)
        p = <unsigned char*> PyBytes_AS_STRING(out)
        context = lib.context_new()
        if context == NULL:
            raise MemoryError
        try:
            if not (
                lib.random(p, NONCE_BYTES) == 1
                and lib.encrypt_init(context, lib.aes_256_gcm, NULL, self._kek, p)
                and (aad_bytes == 0 or lib.encrypt_update(
                    context, NULL, &done, <const unsigned char*> PyBytes_AS_STRING(aad), aad_bytes))
                and lib.encrypt_update(
                    context, p + NONCE_BYTES, &done,
                    <const unsigned char*> PyBytes_AS_STRING(seed), n)
                and lib.encrypt_final(context, p + NONCE_BYTES + n, &done)
                and lib.context_ctrl(context, CTRL_GCM_GET_TAG, TAG_BYTES, p + NONCE_BYTES + n)
            ):
                refused()
        finally:
            lib.context_free(context)
        return out

    cdef Sealed _sealed(self, bytes sealed, bytes aad) except *:
        cdef Sealed s
        if sealed is None or aad is None:
            raise TypeError("sealed seeds and additional data must be bytes")
        if not NONCE_BYTES + TAG_BYTES < len(sealed) <= NONCE_BYTES + SEED_BYTES_MAX + TAG_BYTES:
            raise ValueError("a sealed seed has 29 to 156 bytes")
        if len(aad) > 1024:
            raise ValueError("additional data has at most 1024 bytes")
        s.p = <const unsigned char*> PyBytes_AS_STRING(sealed)
        s.n = len(sealed)
        s.aad = <const unsigned char*> PyBytes_AS_STRING(aad)
        s.aad_bytes = len(aad)
        return s

    def unseal(self, bytes sealed not None, bytes aad not None):
        """The seed. ValueError where it does not verify under this key and additional data."""
        cdef Sealed s = self._sealed(sealed, aad)
        cdef unsigned char seed[SEED_BYTES_MAX]
        cdef void* context = lib.context_new()
        cdef int opened
        if context == NULL:
            raise MemoryError
        opened = open_sealed(context, self._kek, &s, seed)
        lib.context_free(context)
        if opened < 0:
            refused()
        if opened == 0:
            raise ValueError("the sealed seed does not verify")
        out = _bytes(seed, s.n - NONCE_BYTES - TAG_BYTES)
        lib.cleanse(seed, sizeof(seed))
        return out

    def match(
        self, list sealed not None, list aads not None, str code not None, *, str mode not None,
        object now_s, int digits=6, str algorithm not None="sha256", object step_s=60,
        str question not None="", str suite not None="", int back=2, int forward=1,
        int probe=15, int pad_to=4,
    ):
        """Try a code against the seeds of one person; for each seed (kind, step).

        kind 1: right at a step of the window now - back .. now + forward (the highest such step);
        2: right only further away, up to `probe` steps: expired, or not yet valid; 0: not right,
        with step 0. Every candidate of the window is computed and compared in constant time,
        whatever matched before. Only where no seed matched in the window are the other steps
        tried, and then a dummy seed fills up to `pad_to` seeds, also for no seed at all: so an
        unknown person takes the time of a known one. Without the GIL.

        Args:
            sealed, aads: at most 64 seeds as `seal` made them, with their additional data.
            code: ASCII digits, as many as `digits` (or the suite) says.
            mode: "totp", by `digits`, `algorithm` and `step_s`; or "ocra", by `suite` (with a time
                step, without counter and PIN) and `question`.
            now_s: Unix time in whole seconds.

        Raises:
            ValueError: bad arguments, or a seed that does not verify (told after all were tried).
        """
        cdef Guess guess
        cdef Sealed seeds[SEEDS_MAX]
        cdef int64_t found[SEEDS_MAX]
        cdef int kinds[SEEDS_MAX]
        cdef tuple kept = (tuple(sealed), tuple(aads))
        cdef Py_ssize_t i, n = len(kept[0])
        cdef Py_ssize_t tried = max(n, pad_to)
        cdef int64_t now
        cdef int state
        if len(kept[1]) != n:
            raise ValueError("as many additional data as seeds are needed")
        if not 0 <= n <= SEEDS_MAX or not 0 <= pad_to <= SEEDS_MAX:
            raise ValueError("at most 64 seeds are tried at once")
        if not (0 <= back <= STEPS_MAX and 0 <= forward <= STEPS_MAX and 0 <= probe <= STEPS_MAX):
            raise ValueError("back, forward and probe must be in 0..1000")
        if mode == "ocra":
            digits, step_s = guess_ocra(&guess, suite, question)
        elif mode == "totp":
            guess_totp(&guess, digits, algorithm)
        else:
            raise ValueError("mode must be totp or ocra")
        if step_s < 1 or not 0 <= now_s < 1 << 53:
            raise ValueError("now_s or step_s out of range")
        now = now_s // step_s
        guess.digits = decimal_digits(digits)
        guess.code = _typed(code, digits)
        for i in range(n):
            seeds[i] = self._sealed(kept[0][i], kept[1][i])
        for i in range(n, tried):
            seeds[i] = self._sealed(self._dummy, b"")
        cdef void* context = lib.context_new()
        if context == NULL:
            raise MemoryError
        with nogil:
            state = match_all(
                context, self._kek, &guess, seeds, n, tried, now, back, forward, probe, kinds, found
            )
            lib.context_free(context)
            lib.cleanse(&guess, sizeof(guess))
        if state == 0:
            raise ValueError("a sealed seed does not verify")
        if state < 0:
            refused()
        return [(kinds[i], found[i]) for i in range(n)]

    cdef Py_ssize_t open_text(
        self, const unsigned char* sealed, Py_ssize_t n, const unsigned char* aad,
        Py_ssize_t aad_bytes, unsigned char* out,
    ) except -1:
        """Decrypt what `seal` makes, for other native modules, to 128 bytes of room; its length,
        or 0 where it does not verify or cannot be one. Keeps the GIL, as `window`."""
        cdef Sealed s
        cdef int opened
        if not NONCE_BYTES + TAG_BYTES < n <= NONCE_BYTES + SEED_BYTES_MAX + TAG_BYTES:
            return 0
        s.p, s.n, s.aad, s.aad_bytes = sealed, n, aad, aad_bytes
        opened = open_sealed(self._context, NULL, &s, out)
        if opened < 0:
            refused()
        return n - NONCE_BYTES - TAG_BYTES if opened else 0

    cdef int window(
        self, const TotpRule* rule, uint64_t code, int64_t now_s, const Sealed* seeds,
        Py_ssize_t n, Py_ssize_t tried, int64_t* found,
    ) except -2:
        """The first pass of `match`, for other native modules: the window and nothing beyond it.

        `found` gets for each of the n seeds the highest step that fits, or -1. Where none fits,
        dummies fill up to `tried`, so a miss takes one time whoever is meant. Sealed seeds have 29
        to 156 bytes, as the caller has checked. Keeps the GIL, as it uses the vault's own context.

        Returns 1, or 0 where a seed did not verify.
        """
        cdef Guess guess
        cdef Sealed dummy = self._sealed(self._dummy, b"")
        cdef int64_t now = now_s // rule.step_s
        cdef int64_t low = max(0, now - rule.back), step
        cdef int state = 1
        cdef bint inside = False
        cdef Py_ssize_t i
        guess.h = &lib.hashes[rule.hash]
        guess.message_bytes = 8
        guess.digits = decimal_digits(rule.digits)
        guess.code = code
        for i in range(n):
            state = min(state, try_seed(
                self._context, NULL, &seeds[i], &guess, low, now + rule.forward, -1, -1, &found[i]
            ))
            inside |= found[i] >= 0
        if not inside:
            for i in range(n, tried):
                state = min(state, try_seed(
                    self._context, NULL, &dummy, &guess, low, now + rule.forward, -1, -1, &step
                ))
        lib.cleanse(&guess, sizeof(guess))
        if state < 0:
            refused()
        return state


cdef int guess_totp(Guess* guess, int digits, str algorithm) except -1:
    if not 6 <= digits <= 10:
        raise ValueError("digits must be in 6..10")
    guess.h = &lib.hashes[_hash_number(algorithm)]
    guess.message_bytes = 8
    return 0


cdef tuple guess_ocra(Guess* guess, str suite, str question):
    cdef tuple parsed = _suite(suite)
    cdef bytes message
    if not parsed[6]:
        raise ValueError("matching needs an OCRA suite with a time step")
    message = _ocra_message(suite, parsed, question, None, None, 0)
    if len(message) > OCRA_BYTES_MAX:
        raise ValueError("the OCRA suite is too long")
    guess.h = &lib.hashes[_hash_number(parsed[0])]
    guess.message_bytes = <int> len(message)
    memcpy(guess.message, PyBytes_AS_STRING(message), len(message))
    return parsed[1], parsed[6]


cdef uint64_t _typed(str code, int digits) except? 0xFFFFFFFFFFFFFFFF:
    """The number a code stands for; the error does not repeat the code."""
    cdef uint64_t value = 0
    cdef bytes raw
    cdef Cursor c
    cdef uint8_t digit
    if len(code) != digits or not code.isascii() or not code.isdigit():
        raise ValueError(f"the code must be {digits} digits")
    raw = code.encode()
    c = cursor(PyBytes_AS_STRING(raw), len(raw))
    while left(&c):
        digit = take_u8(&c)
        value = value * 10 + (digit - 48)
    return value


cdef int match_all(
    void* context, const unsigned char* kek, Guess* guess, const Sealed* seeds, Py_ssize_t n,
    Py_ssize_t tried, int64_t now, int back, int forward, int probe, int* kinds, int64_t* found,
) noexcept nogil:
    """Two passes: the window, with the real seeds; then, if nothing matched, all that is left.

    Returns 1, or 0 where a seed did not verify, or -1 where OpenSSL refused.
    """
    cdef int64_t low = max(0, now - back), high = now + forward, step
    cdef int64_t first = max(0, now - probe), last = now + probe
    cdef int state = 1, opened
    cdef bint inside = False
    cdef Py_ssize_t i
    for i in range(n):
        opened = try_seed(context, kek, &seeds[i], guess, low, high, -1, -1, &found[i])
        state = min(state, opened)
        kinds[i] = found[i] >= 0
        inside |= found[i] >= 0
        found[i] = max(0, found[i])
    if inside or state < 0:
        return state
    for i in range(n, tried):
        state = min(state, try_seed(context, kek, &seeds[i], guess, low, high, -1, -1, &step))
    for i in range(tried):
        opened = try_seed(
            context, kek, &seeds[i], guess, min(first, low), max(last, high), low, high, &step
        )
        state = min(state, opened)
        if i < n and step >= 0:
            kinds[i] = 2
            found[i] = step
    return state
