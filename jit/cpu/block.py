"""The decoded-code cache: blocks found by RIP, believed only when the bytes in memory are still the ones decoded.

The client, a device or another vCPU may write code at any time and nobody tells us, so every entry into a block
compares its bytes with guest memory: a few 8-byte loads. Stores of the running block into its own page end it
(memory.py), so an instruction that modifies its successors is seen at the next boundary (SDM vol. 3, 8.1.3).

A block lies on one page, except a lone instruction that crosses into the next. The arena is a ring that is emptied when
it is full.
"""

from .. import state as S
from ..build import compiled
from ..mmu import layout as M
from ..mmu.group import TRANSLATE
from ..mmu.resolve import remote_copy
from ..raw import call3, load8, load16, load32, load64, memcpy, memset, store64, ult, zext32
from . import record as R
from .access import linear_rip, noncanonical, probe
from .decode import decode_one
from .emit import END_BLOCK, ENDS, OK, PRIVILEGED, SHORT, TOO_LONG, emit_trap, new_record
from .supervisor import raise_at

TABLE_ENTRIES = 32768
MAX_BLOCK = R.HEADER + R.RECORD * 4 * (R.MAX_INSTRUCTIONS + 2)


@compiled
def fetch_host(s, la, page):
    """Host address of code at linear `la`, or 0 with LEAVE set. Remote code is copied to scratch page 0 or 1."""
    host = probe(s, la, 1, M.TLB_FETCH)
    if host != 0:
        return host
    if noncanonical(s, la, 1):
        return raise_at(s, S.GP, 0, 1)
    host = call3(load64(load64(s + S.FUNCTIONS) + 8 * TRANSLATE), s, la, M.FETCH)
    if host != 0 or load64(s + S.LEAVE) != 0:
        return host
    if load64(s + S.XLAT_KIND) == M.TO_REMOTE:
        scratch = load64(s + S.REMOTE_CODE) + 4096 * page
        store64(s + S.XLAT_CLIENT, load64(s + S.XLAT_CLIENT) & -4096)
        return scratch + (la & 4095) if remote_copy(s, scratch, 4096, 0) else 0
    # Code in MMIO space: KVM's emulator cannot fetch it either.
    store64(s + S.INSN_LENGTH, 0)
    store64(s + S.EXIT, S.EXIT_EMULATION_FAILURE)
    store64(s + S.LEAVE, S.LEAVE_EXIT)
    return 0


@compiled
def same_bytes(a, b, n):
    """Whether n bytes are equal; never reads beyond them."""
    while n >= 8:
        if load64(a) != load64(b):
            return 0
        a, b, n = a + 8, b + 8, n - 8
    if n & 4:
        if load32(a) != load32(b):
            return 0
        a, b = a + 4, b + 4
    if n & 2:
        if load16(a) != load16(b):
            return 0
        a, b = a + 2, b + 2
    return 0 if n & 1 and load8(a) != load8(b) else 1


@compiled
def bucket(s, rip):
    """Address of the table word for RIP."""
    return load64(s + S.BLOCK_TABLE) + 8 * ((rip ^ (rip >> 12)) & (TABLE_ENTRIES - 1))


@compiled
def code_room(s, rip):
    """Bytes that the code segment has from RIP on; -1, the most there can be as unsigned, in 64-bit mode."""
    if load64(s + S.HFLAGS) & S.MODE_CODE64 != 0:
        return -1
    return load64(s + S.CS + S.LIMIT) - rip + 1


@compiled
def find_block(s):
    """The valid block at RIP, decoding it if need be; 0 with LEAVE set when the code cannot be fetched."""
    rip, hflags = load64(s + S.RIP), load64(s + S.HFLAGS)
    if hflags & S.MODE_CODE64 == 0:
        rip = zext32(rip)
        store64(s + S.RIP, rip)
        if code_room(s, rip) <= 0:
            return raise_at(s, S.GP, 0, 1)
    la = linear_rip(s, rip)
    host = fetch_host(s, la, 0)
    if host == 0:
        return 0
    b = load64(bucket(s, rip))
    if b != 0 and load64(b + R.BLOCK_KEY_RIP) == rip and load64(b + R.BLOCK_KEY_MODE) == hflags:
        length, split = load64(b + R.BLOCK_LENGTH), load64(b + R.BLOCK_SPLIT)
        if hflags & S.MODE_CODE64 == 0 and length > code_room(s, rip):
            return decode_block(s, rip, la, host)
        if split == 0:
            if same_bytes(b + R.BLOCK_BYTES, host, length):
                store64(s + S.CODE_PAGE, host & -4096)
                store64(s + S.CODE_PAGE2, host & -4096)
                return b
        else:
            host2 = fetch_host(s, (la + split), 1)
            if host2 == 0:
                return 0
            rest = b + R.BLOCK_BYTES + split
            if same_bytes(b + R.BLOCK_BYTES, host, split) and same_bytes(rest, host2, length - split):
                store64(s + S.CODE_PAGE, host & -4096)
                store64(s + S.CODE_PAGE2, host2 & -4096)
                return b
    return decode_block(s, rip, la, host)


@compiled
def lesser(a, b):
    return a if ult(a, b) else b


@compiled
def empty_cache(s):
    """Forget all blocks."""
    memset(load64(s + S.BLOCK_TABLE), 0, 8 * TABLE_ENTRIES)
    store64(s + S.BLOCK_NEXT, load64(s + S.BLOCK_ARENA))


@compiled
def decode_block(s, rip, la, host):
    """Decode the code at `host` into a new block; 0 with LEAVE set if it needs a second page that faults.

    An instruction that is not all within the code segment is #GP.
    """
    room = code_room(s, rip)
    if load64(s + S.BLOCK_NEXT) + MAX_BLOCK > load64(s + S.BLOCK_END):
        empty_cache(s)
    b = load64(s + S.BLOCK_NEXT)
    on_page = 4096 - (la & 4095)
    available = lesser(on_page, lesser(R.BLOCK_MAX_BYTES, room))
    memcpy(b + R.BLOCK_BYTES, host, available)
    store64(s + S.D_BYTES, b + R.BLOCK_BYTES)
    store64(s + S.D_CURSOR, 0)
    store64(s + S.D_LIMIT, available)
    store64(s + S.D_RECORD, b + R.HEADER)
    store64(s + S.CODE_PAGE, host & -4096)
    store64(s + S.CODE_PAGE2, host & -4096)
    most = 1 if load64(s + S.HFLAGS) & S.MODE_STEP else R.MAX_INSTRUCTIONS
    count, split, result = 0, 0, OK
    while result == OK and count < most:
        start, before = load64(s + S.D_CURSOR), load64(s + S.D_RECORD)
        result = decode_one(s)
        if result == SHORT:
            store64(s + S.D_CURSOR, start)
            store64(s + S.D_RECORD, before)
            if count != 0:
                break
            if available == room:
                store64(s + S.D_CURSOR, room)
                result = emit_trap(s, PRIVILEGED)
                count = 1
                break
            # The first instruction crosses the page.
            host2 = fetch_host(s, la + on_page, 1)
            if host2 == 0:
                return 0
            split = on_page
            memcpy(b + R.BLOCK_BYTES + on_page, host2, 15)
            store64(s + S.D_LIMIT, lesser(on_page + 15, room))
            store64(s + S.CODE_PAGE2, host2 & -4096)
            most = 1
            result = decode_one(s)
            if result == SHORT:
                store64(s + S.D_CURSOR, room)
                result = emit_trap(s, PRIVILEGED)
        if result == TOO_LONG:
            store64(s + S.D_CURSOR, start + 15)
            result = emit_trap(s, PRIVILEGED)
        count += 1
    if result != ENDS:
        store64(s + S.D_START, load64(s + S.D_CURSOR))
        new_record(s, END_BLOCK)
    store64(b + R.BLOCK_KEY_RIP, rip)
    store64(b + R.BLOCK_KEY_MODE, load64(s + S.HFLAGS))
    store64(b + R.BLOCK_LENGTH, load64(s + S.D_CURSOR))
    store64(b + R.BLOCK_SPLIT, split)
    store64(b + R.BLOCK_INSTRUCTIONS, count)
    store64(s + S.BLOCK_NEXT, load64(s + S.D_RECORD))
    store64(bucket(s, rip), b)
    store64(s + S.BLOCKS_DECODED, load64(s + S.BLOCKS_DECODED) + 1)
    return b
