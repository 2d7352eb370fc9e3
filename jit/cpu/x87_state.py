"""x87 control instructions: control and status words, the environment and the whole state in memory (SDM vol. 1, 8.1).

The environment has four formats: of 16 or 32 bits by operand size, with selectors in protected mode, with linear
addresses in real-address and virtual-8086 mode (figures 8-9 to 8-12).
"""

from .. import state as S
from ..build import Group, compiled
from ..mmu.group import READ_SLOW, WRITE_SLOW
from ..raw import load8, load16, load32, load64, memcpy, memset, store8, store16, store32, store64, zext32
from .access import call_slow, effective, read_mem
from .fpu_image import FCW_INIT, set_x87
from .operand import done, fault, leave_next
from .record import OSIZE, SRC
from .x87 import pending
from .x87_unit import reload

group = Group("x87_state", __name__)

MASKS, CLEARED, TOP = 0x3F, 0x7F00, 0x3800
VALID, ZERO, SPECIAL, EMPTY = range(4)  # tags


@compiled
def top(fsw):
    return fsw >> 11 & 7


@compiled
def set_status(s, fsw):
    """FSW with another TOP: the registers keep their places, so ST0 becomes another one."""
    turn = (top(fsw) - top(load16(s + S.FSW))) & 7
    if turn:
        copy = s + S.IMAGE + 512
        memcpy(copy, s + S.ST, 128)
        memcpy(copy + 128, s + S.ST, 128)
        memcpy(s + S.ST, copy + 16 * turn, 128)
    store16(s + S.FSW, fsw)


@compiled
def initialize(s):
    """FNINIT: the registers are marked empty, not cleared."""
    set_status(s, 0)
    store16(s + S.FCW, FCW_INIT)
    store8(s + S.FTW, 0)
    store64(s + S.FOP, 0)
    store64(s + S.FIP, 0)
    store64(s + S.FDP, 0)
    store64(s + S.FCS, 0)
    store64(s + S.FDS, 0)


@group.add
def x87_control(s, r):
    """DB E0 to E7: FNCLEX, FNINIT; FENI, FDISI and FSETPM of older units do nothing."""
    which = load64(r + SRC) & 7
    if which > 4:
        return fault(s, r, S.UD, 0, 0)
    if which == 2:
        store16(s + S.FSW, load16(s + S.FSW) & CLEARED)
    elif which == 3:
        initialize(s)
    return done(r)


@group.add
def fwait(s, r):
    if load64(s + S.CR0) & S.CR0_TS and load64(s + S.CR0) & S.CR0_MP:
        return fault(s, r, S.NM, 0, 0)
    return 0 if pending(s, r) else done(r)


@group.add
def fldcw(s, r):
    if pending(s, r):
        return 0
    la = effective(s, r, 2, 0)
    if load64(s + S.LEAVE) != 0 or read_mem(s, r, la, 2, s + S.T1) == 0:
        return 0
    store16(s + S.FCW, load16(s + S.T1))
    reload(s + S.FX, s + S.FX)
    return done(r)


@compiled
def store_word(s, r, value):
    la = effective(s, r, 2, 1)
    store16(s + S.T1, value)
    return leave_next(s, r) if load64(s + S.LEAVE) == 0 and call_slow(s, r, WRITE_SLOW, la, 2, s + S.T1) else 0


@group.add
def fnstcw(s, r):
    return store_word(s, r, load16(s + S.FCW))


@group.add
def fnstsw_mem(s, r):
    return store_word(s, r, load16(s + S.FSW))


@group.add
def fnstsw_ax(s, r):
    if load64(r + SRC) & 7:
        return fault(s, r, S.UD, 0, 0)
    store16(s + S.RAX, load16(s + S.FSW))
    return done(r)


# Tags -----


@compiled
def tag(register):
    """What a register holds; the leading bit of a number is explicit."""
    fraction, exponent = load64(register), load16(register + 8) & 0x7FFF
    if exponent == 0 and fraction == 0:
        return ZERO
    return VALID if exponent != 0 and exponent != 0x7FFF and fraction < 0 else SPECIAL


@compiled
def full_tags(s):
    """The 16-bit tag word: two bits for each physical register."""
    tags, used, first = 0, load8(s + S.FTW), top(load16(s + S.FSW))
    for i in range(8):
        kind = tag(s + S.ST + 16 * ((i - first) & 7)) if used >> i & 1 else EMPTY
        tags |= kind << 2 * i
    return tags


@compiled
def abridged(tags):
    used = 0
    for i in range(8):
        used |= (0 if tags >> 2 * i & 3 == EMPTY else 1) << i
    return used


# The environment -----


@compiled
def environment_size(r):
    return 14 if load8(r + OSIZE) == 2 else 28


@compiled
def has_selectors(s):
    return 1 if load64(s + S.HFLAGS) & S.MODE_PROTECTED else 0


@compiled
def make_environment(s, r, image):
    wide, control, status = load8(r + OSIZE) != 2, load16(s + S.FCW), load16(s + S.FSW)
    ip, dp, opcode = load64(s + S.FIP), load64(s + S.FDP), load64(s + S.FOP)
    ip_high, dp_high = load64(s + S.FCS) & 0xFFFF, load64(s + S.FDS) & 0xFFFF
    if has_selectors(s):
        ip_high |= opcode << 16 if wide else 0
        dp_high |= 0xFFFF0000
    else:
        ip, dp = zext32((ip_high << 4) + ip), zext32((dp_high << 4) + dp)
        keep = 0x0FFFF000 if wide else 0xF000
        ip_high, dp_high = (ip >> 16 << 12) & keep | opcode, (dp >> 16 << 12) & keep
        ip, dp = ip & 0xFFFF | (0xFFFF0000 if wide else 0), dp & 0xFFFF | (0xFFFF0000 if wide else 0)
    if wide:
        store32(image, control | 0xFFFF0000)
        store32(image + 4, status | 0xFFFF0000)
        store32(image + 8, full_tags(s) | 0xFFFF0000)
        store32(image + 12, ip)
        store32(image + 16, ip_high)
        store32(image + 20, dp)
        store32(image + 24, dp_high)
    else:
        store16(image, control)
        store16(image + 2, status)
        store16(image + 4, full_tags(s))
        store16(image + 6, ip)
        store16(image + 8, ip_high)
        store16(image + 10, dp)
        store16(image + 12, dp_high)


@compiled
def load_environment(s, r, image):
    """Everything but the registers, which keep their places."""
    if load8(r + OSIZE) != 2:
        control, status, tags = load16(image), load16(image + 4), load16(image + 8)
        ip, ip_high, dp, dp_high = load32(image + 12), load32(image + 16), load32(image + 20), load32(image + 24)
        opcode = ip_high >> 16 if has_selectors(s) else ip_high
        high = 0x0FFFF000
    else:
        control, status, tags = load16(image), load16(image + 2), load16(image + 4)
        ip, ip_high, dp, dp_high = load16(image + 6), load16(image + 8), load16(image + 10), load16(image + 12)
        opcode = load64(s + S.FOP) if has_selectors(s) else ip_high
        high = 0xF000
    if has_selectors(s) == 0:
        ip, dp = ip & 0xFFFF | (ip_high & high) << 4, dp & 0xFFFF | (dp_high & high) << 4
        ip_high = dp_high = 0
    set_status(s, status)
    store16(s + S.FCW, control)
    store8(s + S.FTW, abridged(tags))
    store64(s + S.FOP, opcode & 0x7FF)
    store64(s + S.FIP, ip)
    store64(s + S.FDP, dp)
    store64(s + S.FCS, ip_high & 0xFFFF)
    store64(s + S.FDS, dp_high & 0xFFFF)


@group.add
def fnstenv(s, r):
    """Afterwards all exceptions are masked."""
    size = environment_size(r)
    la = effective(s, r, size, 1)
    if load64(s + S.LEAVE) != 0:
        return 0
    make_environment(s, r, s + S.IMAGE)
    if call_slow(s, r, WRITE_SLOW, la, size, s + S.IMAGE) == 0:
        return 0
    store16(s + S.FCW, load16(s + S.FCW) | MASKS)
    reload(s + S.FX, s + S.FX)
    return leave_next(s, r)


@group.add
def fldenv(s, r):
    size = environment_size(r)
    if pending(s, r):
        return 0
    la = effective(s, r, size, 0)
    if load64(s + S.LEAVE) != 0 or call_slow(s, r, READ_SLOW, la, size, s + S.IMAGE) == 0:
        return 0
    load_environment(s, r, s + S.IMAGE)
    reload(s + S.FX, s + S.FX)
    return done(r)


@group.add
def fnsave(s, r):
    """The environment, ST0 to ST7 of 10 bytes each, then as FNINIT."""
    size = environment_size(r)
    la = effective(s, r, size + 80, 1)
    if load64(s + S.LEAVE) != 0:
        return 0
    make_environment(s, r, s + S.IMAGE)
    for i in range(8):
        memcpy(s + S.IMAGE + size + 10 * i, s + S.ST + 16 * i, 10)
    if call_slow(s, r, WRITE_SLOW, la, size + 80, s + S.IMAGE) == 0:
        return 0
    initialize(s)
    return leave_next(s, r)


@group.add
def frstor(s, r):
    size = environment_size(r)
    if pending(s, r):
        return 0
    la = effective(s, r, size + 80, 0)
    if load64(s + S.LEAVE) != 0 or call_slow(s, r, READ_SLOW, la, size + 80, s + S.IMAGE) == 0:
        return 0
    load_environment(s, r, s + S.IMAGE)
    memset(s + S.ST, 0, 128)
    for i in range(8):
        memcpy(s + S.ST + 16 * i, s + S.IMAGE + size + 10 * i, 10)
    set_x87(s)
    return done(r)
