"""Interrupt instructions, system calls, RFLAGS as a whole, HLT."""

from .. import state as S
from ..build import Group, compiled
from ..raw import call4, load8, load64, lshr, store64, zext32
from .access import noncanonical, pop_value, push_value
from .debug import is_debuggers, leave_debug, trap
from .exception import SOFTWARE
from .exception import group as exception_group
from .flags import rflags, set_arithmetic
from .operand import fault, leave_next, leave_to, rip_here, rip_next
from .record import IMM, NEXT, OFFSET, OSIZE
from .segment import CHANGEABLE, not_here
from .supervisor import derive_mode

group = Group("flow", __name__)

DELIVER = exception_group.slot("deliver")


@compiled
def interrupt(s, r, vector, kind):
    """INT: delivered with RIP past it; what goes wrong then is reported at it."""
    store64(s + S.RIP, rip_next(s, r))
    deliver = load64(load64(s + S.FUNCTIONS) + 8 * DELIVER)
    if call4(deliver, s, vector, -1, kind) == 0:
        store64(s + S.RIP, rip_here(s, r))
    return 0


@group.add
def int3(s, r):
    """Or a breakpoint of the embedder's debugger."""
    if load64(s + S.DEBUGGER) & S.DEBUG_SOFTWARE:
        store64(s + S.RIP, rip_here(s, r))
        return leave_debug(s, S.BP, 0)
    return interrupt(s, r, S.BP, SOFTWARE)


@group.add
def int_n(s, r):
    return interrupt(s, r, load64(r + IMM) & 0xFF, SOFTWARE)


@group.add
def int1(s, r):
    """ICEBP: a #DB trap that no gate privilege stops, and that DR6 says nothing about."""
    if is_debuggers(s):
        store64(s + S.RIP, rip_here(s, r))
        return leave_debug(s, S.DB, 0)
    store64(s + S.STEP_TRAP, 0)
    leave_next(s, r)
    return trap(s, 0)


@group.add
def ud2(s, r):
    return fault(s, r, S.UD, 0, 0)


@compiled
def io_privileged(s):
    """Whether CPL <= IOPL."""
    return 1 if load64(s + S.CPL) <= (load64(s + S.RFLAGS) >> 12 & 3) else 0


@group.add
def cli(s, r):
    if not io_privileged(s):
        return fault(s, r, S.GP, 0, 1)
    store64(s + S.RFLAGS, load64(s + S.RFLAGS) & ~S.IF)
    return leave_next(s, r)


@group.add
def sti(s, r):
    """Interrupts are held off for one more instruction when IF was clear."""
    if not io_privileged(s):
        return fault(s, r, S.GP, 0, 1)
    if load64(s + S.RFLAGS) & S.IF == 0:
        store64(s + S.RFLAGS, load64(s + S.RFLAGS) | S.IF)
        store64(s + S.INTR_SHADOW, 1)
        store64(s + S.SHADOW_SET, 1)
        derive_mode(s)
    return leave_next(s, r)


@group.add
def pushf(s, r):
    if push_value(s, r, rflags(s) & ~(S.VM86 | S.RF), load8(r + OSIZE)) == 0:
        return 0
    return leave_next(s, r)


@group.add
def popf(s, r):
    """What may change depends on CPL and IOPL (SDM vol. 2, POPF)."""
    size = load8(r + OSIZE)
    if load64(s + S.HFLAGS) & S.MODE_V86:
        return not_here(s, r)
    if pop_value(s, r, size) == 0:
        return 0
    value = load64(s + S.T3)
    allowed = CHANGEABLE & ~(S.VIF | S.VIP | S.IOPL | S.IF | S.RF)
    if load64(s + S.CPL) == 0:
        allowed |= S.IOPL
    if io_privileged(s):
        allowed |= S.IF
    if size == 2:
        allowed &= 0xFFFF
    store64(s + S.RFLAGS, load64(s + S.RFLAGS) & ~(allowed | S.RF) | value & allowed)
    set_arithmetic(s, value)
    derive_mode(s)
    return leave_next(s, r)


@compiled
def flat_segment(seg, selector, attr):
    """CS or SS as SYSCALL, SYSENTER and their returns set them."""
    store64(seg + S.SEL, selector)
    store64(seg + S.BASE, 0)
    store64(seg + S.LIMIT, 0xFFFFFFFF)
    store64(seg + S.ATTR, attr)
    return 0


CODE64, CODE32, DATA = 0xA09B, 0xC09B, 0xC093  # accessed, present, DPL 0


@group.add
def syscall(s, r):
    if load64(s + S.EFER) & S.EFER_SCE == 0 or load64(s + S.CR0) & S.CR0_PE == 0:
        return fault(s, r, S.UD, 0, 0)
    if load64(s + S.HFLAGS) & S.MODE_LONG == 0:
        return not_here(s, r)
    flags, long_code = rflags(s), load64(s + S.HFLAGS) & S.MODE_CODE64
    store64(s + S.RCX, rip_next(s, r))
    store64(s + S.GPR + 8 * 11, flags & ~S.RF)
    selector = load64(s + S.STAR) >> 32 & 0xFFFC
    flat_segment(s + S.CS, selector, CODE64)
    flat_segment(s + S.SS, selector + 8, DATA)
    flags &= ~(load64(s + S.SFMASK) | S.RF)
    store64(s + S.RFLAGS, flags & ~S.ARITHMETIC | 2)
    set_arithmetic(s, flags)
    store64(s + S.STEP_TRAP, load64(s + S.STEP_TRAP) & flags)  # SFMASK's TF counts (em_syscall)
    derive_mode(s)
    return leave_to(s, load64(s + S.LSTAR) if long_code else load64(s + S.CSTAR))


@group.add
def sysret(s, r):
    if load64(s + S.EFER) & S.EFER_SCE == 0 or load64(s + S.CR0) & S.CR0_PE == 0:
        return fault(s, r, S.UD, 0, 0)
    if load64(s + S.HFLAGS) & S.MODE_LONG == 0:
        return not_here(s, r)
    target, to64 = load64(s + S.RCX), load8(r + OSIZE) == 8
    if to64 and noncanonical(s, target, 1):
        return fault(s, r, S.GP, 0, 1)
    selector = lshr(load64(s + S.STAR), 48)
    flat_segment(s + S.CS, (selector + (16 if to64 else 0)) & 0xFFFF | 3, (CODE64 if to64 else CODE32) | 3 << 5)
    flat_segment(s + S.SS, (selector + 8) & 0xFFFF | 3, DATA | 3 << 5)
    flags = load64(s + S.GPR + 8 * 11) & (0x3C7FD7 & ~S.RF)
    store64(s + S.RFLAGS, flags & ~(S.ARITHMETIC | S.VM86) | 2)
    set_arithmetic(s, flags)
    derive_mode(s)
    return leave_to(s, target if to64 else zext32(target))


@group.add
def sysenter(s, r):
    """Intel's, also in long mode (AMD raises #UD there; KVM emulates it for Intel guests on either)."""
    selector = load64(s + S.SYSENTER_CS) & 0xFFFC
    if load64(s + S.CR0) & S.CR0_PE == 0 or selector == 0:
        return fault(s, r, S.GP, 0, 1)
    long_mode = load64(s + S.EFER) & S.EFER_LMA
    store64(s + S.RFLAGS, load64(s + S.RFLAGS) & ~(S.VM86 | S.IF | S.RF))
    flat_segment(s + S.CS, selector, CODE64 if long_mode else CODE32)
    flat_segment(s + S.SS, selector + 8, DATA)
    esp, eip = load64(s + S.SYSENTER_ESP), load64(s + S.SYSENTER_EIP)
    store64(s + S.RSP, esp if long_mode else zext32(esp))
    derive_mode(s)
    return leave_to(s, eip if long_mode else zext32(eip))


@group.add
def sysexit(s, r):
    base, to64 = load64(s + S.SYSENTER_CS) & 0xFFFC, load8(r + OSIZE) == 8
    if load64(s + S.CR0) & S.CR0_PE == 0 or base == 0:
        return fault(s, r, S.GP, 0, 1)
    target, stack = load64(s + S.RDX), load64(s + S.RCX)
    if to64 and (noncanonical(s, target, 1) or noncanonical(s, stack, 1)):
        return fault(s, r, S.GP, 0, 1)
    flat_segment(s + S.CS, (base + (32 if to64 else 16)) | 3, (CODE64 if to64 else CODE32) | 3 << 5)
    flat_segment(s + S.SS, (base + (40 if to64 else 24)) | 3, DATA | 3 << 5)
    store64(s + S.RSP, stack if to64 else zext32(stack))
    derive_mode(s)
    return leave_to(s, target if to64 else zext32(target))


@group.add
def hlt(s, r):
    """RIP is past it; the embedder decides what waiting means."""
    store64(s + S.HALTS, load64(s + S.HALTS) + 1)
    leave_next(s, r)
    store64(s + S.INSN_LENGTH, load8(r + NEXT) - load8(r + OFFSET))
    store64(s + S.INTR_SHADOW, 0)
    store64(s + S.EXIT, S.EXIT_HLT)
    store64(s + S.LEAVE, S.LEAVE_EXIT)
    return 0
