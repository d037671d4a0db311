"""Checking, dumping and loading the state of a ledger; nobody waits for any of it.

A chunk of a dump: section u32, first reference u32, count u32, then that many entries as they are
in memory. References stay what they are, so a loaded ledger goes on exactly as the dumped one; the
indexes, the sums of ledgers and the expiry heap are made anew. Section 0 is the head, and the only
place where a layout version stands.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memcpy, memset

from core_ext._ledger_state cimport *
from core_ext._table cimport (
    Arena, arena_filled, arena_free, arena_relink, arena_wipe, index_add, index_reserve, index_wipe,
)

cdef enum:
    S_HEAD = 0
    S_BOOK = 1
    S_PROFILE = 2
    S_ACCOUNTS = 3
    S_COLDS = 4
    S_USAGES = 5
    S_HOLDS = 6
    S_KEYS = 7
    S_ATTEMPTS = 8
    S_FORCED = 9
    ARENAS = 7
    CHUNK_BYTES = 1 << 20


cdef struct Head:
    char magic[8]
    uint64_t digest
    int64_t horizon_ns
    uint32_t closed_first
    uint32_t closed_last
    uint32_t key_first
    uint32_t key_last
    uint32_t attempt_first
    uint32_t attempt_last
    uint32_t books
    uint32_t top[7]
    uint32_t free[7]
    uint32_t live[7]
    uint32_t spare


cdef bytes chunk(uint32_t section, uint32_t first, uint32_t count, const char* data, size_t n):
    """One piece of a dump."""
    cdef uint32_t word[3]
    word[0] = section
    word[1] = first
    word[2] = count
    return (<const char*> word)[:12] + data[:n]


# --- Checking everything --------------------------------------------------------------------------

cdef list check_all(Core* core):
    found = []
    if core.stopped:
        found.append("the ledger stopped at a broken invariant")
    check_sums(core, found)
    check_pending(core, found)
    check_holds(core, found)
    check_lists(core, found)
    check_indexes(core, found)
    if digest_anew(core) != core.digest:
        found.append("the digest differs from the state")
    return found


cdef uint64_t digest_anew(Core* core) noexcept nogil:
    """The digest, computed from the whole state."""
    cdef uint64_t s = tr_mix(<uint64_t> core.horizon_ns, M5) - tr_mix(0, M5)
    cdef uint32_t ref
    cdef uint64_t base
    cdef int side, window
    cdef UsageSide* u
    for ref in range(1, core.profile_top):
        s += profile_digest(ref, &core.profiles[ref])
    for ref in range(1, core.accounts.top):
        s += account_fixed(core, ref) + account_moving(core, ref)
        for side in range(2 if cold_at(core, ref).usage else 0):
            u = &usage_at(core, cold_at(core, ref).usage).side[side]
            base = usage_base(&account_at(core, ref).id, side)
            for window in range(WINDOWS):
                s += bucket_digest(base, window, &u.current[window])
                s += bucket_digest(base, window, &u.previous[window])
    for ref in range(1, core.holds.top):
        if hold_at(core, ref).state != FREE:
            s += hold_fixed(core, hold_at(core, ref)) + hold_moving(hold_at(core, ref))
    ref = core.key_first
    while ref:
        s += key_digest(key_at(core, ref))
        ref = key_at(core, ref).next
    ref = core.attempt_first
    while ref:
        s += attempt_digest(attempt_at(core, ref))
        ref = attempt_at(core, ref).next
    for ref in range(1, core.forced.top):
        s += forced_digest(<Forced*> core.forced.base + ref)
    return s


cdef int check_sums(Core* core, list found) except -1:
    cdef Book* sums = <Book*> calloc(core.book_count + 1, sizeof(Book))
    cdef uint32_t ref, i
    cdef Account* a
    cdef Book* b
    if sums == NULL:
        raise MemoryError
    try:
        for ref in range(1, core.accounts.top):
            a = account_at(core, ref)
            if a.book >= core.book_count:
                found.append(f"account {id_bytes(&a.id).hex()}: no such ledger")
                continue
            b = &sums[a.book]
            b.debits_pending = b.debits_pending + a.debits_pending
            b.debits_posted = b.debits_posted + a.debits_posted
            b.credits_pending = b.credits_pending + a.credits_pending
            b.credits_posted = b.credits_posted + a.credits_posted
            if (a.debits_pending < 0 or a.debits_posted < 0 or a.credits_pending < 0
                    or a.credits_posted < 0):
                found.append(f"account {id_bytes(&a.id).hex()}: a balance below zero")
            if (a.flags & (A_DEBITS | A_EXPOSED)) == A_DEBITS and available_of(a) < 0:
                found.append(f"account {id_bytes(&a.id).hex()}: available below zero")
        for i in range(core.book_count):
            b = &core.books[i]
            if memcmp(b, &sums[i], 4 * sizeof(tr_i128)):
                found.append(f"ledger {b.ledger}: sums differ from its accounts")
            if b.debits_pending != b.credits_pending or b.debits_posted != b.credits_posted:
                found.append(f"ledger {b.ledger}: debits and credits differ")
    finally:
        free(sums)
    return 0


cdef int check_pending(Core* core, list found) except -1:
    """Pending amounts of every account against its open holds, wrapping alike on both sides."""
    cdef uint64_t* pending = <uint64_t*> calloc(core.accounts.top, 16)
    cdef uint32_t ref
    cdef uint64_t rest
    cdef Hold* h
    cdef Account* a
    if pending == NULL:
        raise MemoryError
    try:
        for ref in range(1, core.holds.top):
            h = hold_at(core, ref)
            if h.state != OPEN:
                continue
            if (h.debit == 0 or h.credit == 0 or h.debit >= core.accounts.top
                    or h.credit >= core.accounts.top):
                found.append(f"hold {id_bytes(&h.id).hex()}: no such account")
                continue
            rest = h.amount - h.captured if h.amount > h.captured else 0
            pending[h.debit * 2] += rest
            pending[h.credit * 2 + 1] += rest
        for ref in range(1, core.accounts.top):
            a = account_at(core, ref)
            if (<uint64_t> a.debits_pending != pending[ref * 2]
                    or <uint64_t> a.credits_pending != pending[ref * 2 + 1]):
                found.append(
                    f"account {id_bytes(&a.id).hex()}: pending differs from its open holds"
                )
    finally:
        free(pending)
    return 0


cdef int check_holds(Core* core, list found) except -1:
    cdef uint32_t ref, i, member
    cdef uint32_t live = 0
    cdef uint32_t timed = 0
    cdef Hold* h
    cdef bint open_
    for ref in range(1, core.holds.top):
        h = hold_at(core, ref)
        if h.state == FREE:
            continue
        live += 1
        open_ = h.state == OPEN
        name = f"hold {id_bytes(&h.id).hex()}"
        if h.state > ANNULLED or h.amount < 0 or h.captured < 0 or h.released < 0:
            found.append(f"{name}: a state or amount that cannot be")
        if open_ == bool(h.flags & H_QUEUED) or (open_ and h.closed_ns):
            found.append(f"{name}: open and closed at once")
        if not open_ and h.amount != h.released + (
            h.captured if h.captured < h.amount else h.amount
        ):
            found.append(f"{name}: captured and released do not make up its amount")
        if hold_at(core, h.head).state == FREE or (
            open_ != (hold_at(core, h.head).state == OPEN)
        ):
            found.append(f"{name}: out of step with its chain")
        member = h.next
        i = 1
        while h.head == ref and member and i <= CHAIN_MAX:
            i += hold_at(core, member).head == ref
            member = hold_at(core, member).next if hold_at(core, member).head == ref else 0
        if i > CHAIN_MAX or (h.head == ref and h.next and i == 1):
            found.append(f"{name}: its chain is broken")
        if (h.heap_at != 0) != (open_ and h.head == ref and h.policy == POLICY_AUTO):
            found.append(f"{name}: wrongly in or out of the expiry heap")
        if h.heap_at:
            timed += 1
            if h.heap_at > core.heap_count or core.heap[h.heap_at] != ref:
                found.append(f"{name}: lost in the expiry heap")
        if h.key and key_at(core, h.key).hold != ref:
            found.append(f"{name}: its key belongs to another hold")
    if live != core.holds.live or timed != core.heap_count:
        found.append("holds: the number in use differs")
    for i in range(2, core.heap_count + 1):
        if heap_before(core, core.heap[i], core.heap[i >> 1]):
            found.append("holds: the expiry heap is out of order")
    return 0


cdef int check_lists(Core* core, list found) except -1:
    """Walk the queues; a walk longer than the table is a cycle."""
    cdef uint32_t ref = core.closed_first
    cdef uint32_t last = 0
    cdef uint32_t n = 0
    cdef uint32_t closed = 0
    cdef uint32_t i
    for i in range(1, core.holds.top):
        closed += hold_at(core, i).state > OPEN
    while ref and n <= core.holds.top:
        n += 1
        last = ref
        ref = hold_at(core, ref).queue_next
    if n != closed or n != core.closed_count or last != core.closed_last:
        found.append("holds: the queue of closed holds is broken")
    n = last = 0
    ref = core.key_first
    while ref and n <= core.keys.top:
        n += 1
        last = ref
        ref = key_at(core, ref).next
    if n != core.keys.live or last != core.key_last:
        found.append("keys: their queue is broken")
    n = last = 0
    ref = core.attempt_first
    while ref and n <= core.attempts.top:
        n += 1
        if attempt_at(core, ref).prev != last:
            found.append("attempts: a link back is broken")
        last = ref
        ref = attempt_at(core, ref).next
    if n != core.attempts.live or last != core.attempt_last:
        found.append("attempts: their queue is broken")
    return 0


cdef int check_indexes(Core* core, list found) except -1:
    cdef uint32_t ref
    for ref in range(1, core.accounts.top):
        if find_account(core, &account_at(core, ref).id) != ref:
            found.append(f"account {id_bytes(&account_at(core, ref).id).hex()}: not in the index")
    for ref in range(1, core.holds.top):
        if hold_at(core, ref).state and find_hold(core, &hold_at(core, ref).id) != ref:
            found.append(f"hold {id_bytes(&hold_at(core, ref).id).hex()}: not in the index")
    ref = core.key_first
    while ref:
        if index_find(&core.key_index, &core.keys, &key_at(core, ref).id,
                      id_mix(&key_at(core, ref).id)) != ref:
            found.append("keys: one is not in the index")
        ref = key_at(core, ref).next
    ref = core.attempt_first
    while ref:
        if index_find(&core.attempt_index, &core.attempts, &attempt_at(core, ref).id,
                      id_mix(&attempt_at(core, ref).id)) != ref:
            found.append("attempts: one is not in the index")
        ref = attempt_at(core, ref).next
    if (core.account_index.used != core.accounts.live
            or core.hold_index.used != core.holds.live
            or core.key_index.used != core.keys.live
            or core.attempt_index.used != core.attempts.live):
        found.append("an index holds more or less than its table")
    return 0


# --- Dumping --------------------------------------------------------------------------------------

cdef Arena* arena_of(Core* core, int section) noexcept:
    if section == S_ACCOUNTS:
        return &core.accounts
    if section == S_COLDS:
        return &core.colds
    if section == S_USAGES:
        return &core.usages
    if section == S_HOLDS:
        return &core.holds
    if section == S_KEYS:
        return &core.keys
    if section == S_ATTEMPTS:
        return &core.attempts
    return &core.forced


cdef bytes dump_next(Core* core, Place* place):
    """Return the chunk at `place` and move that on; None at the end."""
    cdef uint32_t ref, count
    if place.section == S_HEAD:
        place.section = S_BOOK
        return dump_head(core)
    if place.section == S_BOOK:
        ref = place.ref
        if ref < core.book_count:
            place.ref += 1
            return chunk(S_BOOK, ref, 1, <const char*> &core.books[ref].ledger, 4)
        place.section = S_PROFILE
        place.ref = 1
    if place.section == S_PROFILE:
        while place.ref < core.profile_top:
            ref = place.ref
            place.ref += 1
            if core.profiles[ref].known:
                return chunk(
                    S_PROFILE, ref, 1, <const char*> &core.profiles[ref], sizeof(Profile)
                )
        place.section = S_ACCOUNTS
        place.ref = 1
    while place.section <= S_FORCED:
        ref = place.ref
        if ref < arena_of(core, place.section).top:
            count = chunk_count(core, place.section, ref)
            place.ref += count
            return dump_part(core, place.section, ref, count)
        place.section += 1
        place.ref = 1
    return None


cdef uint32_t chunk_count(Core* core, int section, uint32_t ref):
    cdef Arena* a = arena_of(core, section)
    cdef uint32_t most = <uint32_t> ((CHUNK_BYTES - 12) // a.stride)
    return a.top - ref if a.top - ref < most else most


cdef bytes dump_part(Core* core, int section, uint32_t ref, uint32_t count):
    cdef Arena* a = arena_of(core, section)
    cdef bytes data = chunk(section, ref, count, a.base + ref * a.stride, count * a.stride)
    cdef Hold* h = hold_at(core, 0)
    cdef char* heap_at = <char*> <const char*> data + 12 + (<char*> &h.heap_at - <char*> h)
    cdef uint32_t in_heap, i
    if section == S_HOLDS:  # how the heap happens to lie is not state: only who is in it
        for i in range(count):
            in_heap = hold_at(core, ref + i).heap_at != 0
            memcpy(heap_at + i * sizeof(Hold), &in_heap, 4)  # in our own fresh copy
    return data


cdef bytes dump_head(Core* core):
    cdef Head head
    cdef int i
    cdef Arena* a
    memset(&head, 0, sizeof(head))
    memcpy(head.magic, <const char*> b"TRLEDGR1", 8)
    head.digest = core.digest
    head.horizon_ns = core.horizon_ns
    head.closed_first = core.closed_first
    head.closed_last = core.closed_last
    head.key_first = core.key_first
    head.key_last = core.key_last
    head.attempt_first = core.attempt_first
    head.attempt_last = core.attempt_last
    head.books = core.book_count
    for i in range(ARENAS):
        a = arena_of(core, S_ACCOUNTS + i)
        head.top[i] = a.top
        head.free[i] = arena_free(a)
        head.live[i] = a.live
    return chunk(S_HEAD, 0, 1, <const char*> &head, sizeof(head))


# --- Loading --------------------------------------------------------------------------------------

cdef int load_all(Core* core, chunks) except -1:
    """Take a dump into an empty state; ValueError, and empty again, where it is not sound."""
    try:
        load_chunks(core, chunks)
        wrong = links_wrong(core)
        if wrong is None:
            load_rebuild(core)
            if digest_anew(core) != core.digest:
                wrong = "its digest differs"
            else:
                wrong = next(iter(check_all(core)), None)
        if wrong is not None:
            raise ValueError(f"ledger snapshot: {wrong}")
    except BaseException:
        wipe(core)
        raise
    return 0


cdef int load_chunks(Core* core, chunks) except -1:
    cdef Head head
    cdef bytes data = next(chunks, b"")
    cdef int i
    cdef Arena* a
    if len(data) != 12 + sizeof(Head):
        raise ValueError("ledger snapshot: no head")
    memcpy(&head, <const char*> data + 12, sizeof(head))
    if memcmp(head.magic, <const char*> b"TRLEDGR1", 8):
        raise ValueError("ledger snapshot: not one of this version")
    core.digest = head.digest
    core.horizon_ns = head.horizon_ns
    core.closed_first = head.closed_first
    core.closed_last = head.closed_last
    core.key_first = head.key_first
    core.key_last = head.key_last
    core.attempt_first = head.attempt_first
    core.attempt_last = head.attempt_last
    for data in chunks:
        load_chunk(core, data)
    for i in range(ARENAS):
        a = arena_of(core, S_ACCOUNTS + i)
        if a.top != head.top[i] or not arena_relink(a, head.free[i], head.live[i]):
            raise ValueError("ledger snapshot: cut short")
    if core.book_count != head.books or core.accounts.top != core.colds.top:
        raise ValueError("ledger snapshot: cut short")
    return 0


cdef int load_chunk(Core* core, bytes data) except -1:
    cdef uint32_t word[3]
    cdef const char* p = <const char*> data
    cdef Arena* a
    if len(data) < 12:
        raise ValueError("ledger snapshot: a chunk is cut short")
    memcpy(word, p, 12)
    p += 12
    if word[0] == S_BOOK and len(data) == 16 and word[1] == core.book_count < BOOKS_MAX:
        memcpy(&core.books[core.book_count].ledger, p, 4)
        core.book_count += 1
        return 0
    if word[0] == S_PROFILE and len(data) == 12 + sizeof(Profile) and (
        0 < word[1] < PROFILES_MAX and word[1] >= core.profile_top
    ):
        memcpy(&core.profiles[word[1]], p, sizeof(Profile))
        core.profile_top = word[1] + 1
        return 0
    if not S_ACCOUNTS <= word[0] <= S_FORCED:
        raise ValueError("ledger snapshot: an unknown chunk")
    a = arena_of(core, word[0])
    if (word[1] != a.top or word[2] > a.most - (a.top - 1)
            or <size_t> len(data) != 12 + word[2] * a.stride):
        raise ValueError("ledger snapshot: a chunk out of order, or too much for this ledger")
    memcpy(a.base + a.top * a.stride, p, word[2] * a.stride)
    a.top += word[2]
    arena_filled(a)
    return 0


cdef object links_wrong(Core* core):
    """Return what makes the loaded references unsafe to follow, or None."""
    cdef uint32_t ref, i
    cdef Account* a
    cdef Hold* h
    if (core.closed_first >= core.holds.top or core.closed_last >= core.holds.top
            or core.key_first >= core.keys.top or core.key_last >= core.keys.top
            or core.attempt_first >= core.attempts.top
            or core.attempt_last >= core.attempts.top):
        return "a list begins nowhere"
    for ref in range(1, core.accounts.top):
        a = account_at(core, ref)
        if a.book >= core.book_count or cold_at(core, ref).usage >= core.usages.top:
            return "an account points nowhere"
        if a.profile and (not core.profiles[a.profile].known or not cold_at(core, ref).usage):
            return "an account has no such profile"
    for ref in range(1, core.holds.top):
        h = hold_at(core, ref)
        if h.state == FREE:
            continue
        if (h.debit >= core.accounts.top or h.credit >= core.accounts.top
                or h.next >= core.holds.top or h.head == 0 or h.head >= core.holds.top
                or h.queue_next >= core.holds.top or h.key >= core.keys.top
                or h.meter_count > 4 or h.state > ANNULLED):
            return "a hold points nowhere"
        if (h.debit == 0 or h.credit == 0) and h.state != TOMBSTONE:
            return "a hold has no accounts"
        for i in range(h.meter_count):
            if h.meters[i] == 0 or h.meters[i] >= core.accounts.top:
                return "a hold has no such meter"
    return lists_wrong(core)


cdef object lists_wrong(Core* core):
    """Walk the queues of keys and attempts, whose entries nothing else names."""
    cdef uint32_t ref = core.key_first
    cdef uint32_t n = 0
    while ref:
        n += 1
        if (n > core.keys.live or key_at(core, ref).hold >= core.holds.top
                or key_at(core, ref).next >= core.keys.top):
            return "a key points nowhere"
        ref = key_at(core, ref).next
    if n != core.keys.live:
        return "keys are missing"
    n = 0
    ref = core.attempt_first
    while ref:
        n += 1
        if (n > core.attempts.live or attempt_at(core, ref).prev >= core.attempts.top
                or attempt_at(core, ref).next >= core.attempts.top):
            return "an attempt counter points nowhere"
        ref = attempt_at(core, ref).next
    return None if n == core.attempts.live else "attempt counters are missing"


cdef int load_rebuild(Core* core) except -1:
    """Make what is not dumped: indexes, sums of ledgers, expiry heap."""
    cdef uint32_t ref
    cdef Account* a
    cdef Book* b
    cdef Hold* h
    index_reserve(&core.account_index, core.accounts.live)
    index_reserve(&core.hold_index, core.holds.live)
    index_reserve(&core.key_index, core.keys.live)
    index_reserve(&core.attempt_index, core.attempts.live)
    for ref in range(1, core.accounts.top):
        a = account_at(core, ref)
        b = &core.books[a.book]
        b.debits_pending = b.debits_pending + a.debits_pending
        b.debits_posted = b.debits_posted + a.debits_posted
        b.credits_pending = b.credits_pending + a.credits_pending
        b.credits_posted = b.credits_posted + a.credits_posted
        index_add(&core.account_index, tag_of(id_mix(&a.id)), ref)
    core.heap_count = 0
    for ref in range(1, core.holds.top):
        h = hold_at(core, ref)
        if h.state == FREE:
            continue
        if core.hold_index.used == core.holds.live:
            raise ValueError("ledger snapshot: more holds than it says")
        index_add(&core.hold_index, tag_of(id_mix(&h.id)), ref)
        core.closed_count += h.state != OPEN
        if h.heap_at:
            heap_add(core, ref)
    ref = core.key_first
    while ref:
        index_add(&core.key_index, tag_of(id_mix(&key_at(core, ref).id)), ref)
        ref = key_at(core, ref).next
    ref = core.attempt_first
    while ref:
        index_add(&core.attempt_index, tag_of(id_mix(&attempt_at(core, ref).id)), ref)
        ref = attempt_at(core, ref).next
    return 0


cdef int wipe(Core* core) except -1:
    """Make the ledger empty."""
    cdef int i
    cdef Arena* a
    for i in range(ARENAS):
        a = arena_of(core, S_ACCOUNTS + i)
        arena_wipe(a)
    memset(core.profiles, 0, core.profile_top * sizeof(Profile))
    memset(core.books, 0, core.book_count * sizeof(Book))
    core.profile_top = 0
    index_wipe(&core.account_index)
    index_wipe(&core.hold_index)
    index_wipe(&core.key_index)
    index_wipe(&core.attempt_index)
    core.book_count = core.heap_count = 0
    core.closed_first = core.closed_last = core.closed_count = 0
    core.key_first = core.key_last = 0
    core.attempt_first = core.attempt_last = 0
    core.horizon_ns = 0
    core.digest = 0
    return 0
