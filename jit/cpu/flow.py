"""Interrupt instructions, system calls, RFLAGS as a whole, HLT."""

from .. import state as S
from ..build import Group, compiled
from ..raw import call4, load8, load16, load64, lshr, store64, zext32
from .access import noncanonical, pop_value, push_value
from .debug import is_debuggers, leave_debug, trap
from .descriptor import load_real
from .exception import SOFTWARE
from .exception import group as exception_group
from .far_return import CHANGEABLE, refused_in_v86, refuses_flags, restricted_v86, set_flags, set_virtual_if
from .flags import of, rflags, set_arithmetic
from .operand import fault, leave_next, leave_to, rip_here, rip_next
from .record import IMM, NEXT, OFFSET, OSIZE
from .supervisor import derive_mode, read_system

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


@compiled
def redirected(s, r, vector):
    """Whether VME's bitmap, below the I/O bitmap in the TSS, leaves an interrupt to the 8086 program; check LEAVE."""
    base, limit = load64(s + S.TR + S.BASE), load64(s + S.TR + S.LIMIT)
    if load64(s + S.CR4) & S.CR4_VME == 0:
        return 0
    store64(s + S.T3, 0)
    if limit < 103:
        return fault(s, r, S.GP, 0, 1)
    if read_system(s, base + 102, 2, s + S.T3) == 0:
        return 0
    at = load16(s + S.T3) - 32 + (vector >> 3)
    if at < 0 or at > limit:
        return fault(s, r, S.GP, 0, 1)
    if read_system(s, base + at, 1, s + S.T3) == 0:
        return 0
    return 0 if load8(s + S.T3) >> (vector & 7) & 1 else 1


@compiled
def interrupt_8086(s, r, vector):
    """INT n within virtual-8086 mode, through the vector table at 0 (SDM vol. 3, 21.3.3)."""
    flags, virtual, old = rflags(s), load64(s + S.RFLAGS) & S.IOPL != S.IOPL, load64(s + S.RSP)
    if virtual:
        flags = flags & ~S.IF | S.IOPL | (S.IF if flags & S.VIF else 0)
    if read_system(s, vector * 4, 4, s + S.T0) == 0:
        return 0
    pushed = push_value(s, r, flags, 2) and push_value(s, r, load64(s + S.CS + S.SEL), 2)
    if not pushed or push_value(s, r, rip_next(s, r), 2) == 0:
        store64(s + S.RSP, old)
        return 0
    load_real(s, s + S.CS, load16(s + S.T0 + 2))
    clear = S.TF | S.RF | (S.VIF if virtual else S.IF)
    store64(s + S.RFLAGS, load64(s + S.RFLAGS) & ~clear)
    derive_mode(s)
    return leave_to(s, load16(s + S.T0))


@group.add
def int_n(s, r):
    """In virtual-8086 mode it needs IOPL 3, or VME's leave."""
    vector = load64(r + IMM) & 0xFF
    if load64(s + S.HFLAGS) & S.MODE_V86:
        store64(s + S.RIP, rip_here(s, r))
        if redirected(s, r, vector):
            return interrupt_8086(s, r, vector)
        if load64(s + S.LEAVE) != 0:
            return 0
        if load64(s + S.RFLAGS) & S.IOPL != S.IOPL:
            return fault(s, r, S.GP, 0, 1)
    return interrupt(s, r, vector, SOFTWARE)


@group.add
def into(s, r):
    return interrupt(s, r, S.OF_TRAP, SOFTWARE) if of(s) else leave_next(s, r)


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


@compiled
def has_virtual_if(s):
    """Whether CLI and STI mean VIF where IF is out of reach: VME in virtual-8086 mode, PVI at CPL 3."""
    cr4 = load64(s + S.CR4)
    if load64(s + S.HFLAGS) & S.MODE_V86:
        return cr4 & S.CR4_VME
    return cr4 & S.CR4_PVI if load64(s + S.CPL) == 3 else 0


@group.add
def cli(s, r):
    if io_privileged(s):
        store64(s + S.RFLAGS, load64(s + S.RFLAGS) & ~S.IF)
    elif has_virtual_if(s):
        store64(s + S.RFLAGS, load64(s + S.RFLAGS) & ~S.VIF)
    else:
        return fault(s, r, S.GP, 0, 1)
    return leave_next(s, r)


@group.add
def sti(s, r):
    """Interrupts are held off for one more instruction when IF was clear."""
    flags = load64(s + S.RFLAGS)
    if io_privileged(s):
        if flags & S.IF == 0:
            store64(s + S.RFLAGS, flags | S.IF)
            store64(s + S.INTR_SHADOW, 1)
            store64(s + S.SHADOW_SET, 1)
            derive_mode(s)
    elif has_virtual_if(s) and flags & S.VIP == 0:
        store64(s + S.RFLAGS, flags | S.VIF)
    else:
        return fault(s, r, S.GP, 0, 1)
    return leave_next(s, r)


@group.add
def pushf(s, r):
    size, flags = load8(r + OSIZE), rflags(s) & ~(S.VM86 | S.RF)
    if refused_in_v86(s, size):
        return fault(s, r, S.GP, 0, 1)
    if restricted_v86(s):
        flags = flags & ~S.IF | S.IOPL | (S.IF if flags & S.VIF else 0)
    return leave_next(s, r) if push_value(s, r, flags, size) else 0


@group.add
def popf(s, r):
    """What may change depends on CPL and IOPL (SDM vol. 2, POPF)."""
    size, old, restricted = load8(r + OSIZE), load64(s + S.RSP), restricted_v86(s)
    if refused_in_v86(s, size):
        return fault(s, r, S.GP, 0, 1)
    if pop_value(s, r, size) == 0:
        return 0
    value = load64(s + S.T3)
    allowed = CHANGEABLE & ~(S.VIF | S.VIP | S.IOPL | S.IF | S.RF)
    if load64(s + S.CPL) == 0:
        allowed |= S.IOPL
    if restricted:
        if refuses_flags(s, value):
            store64(s + S.RSP, old)
            return fault(s, r, S.GP, 0, 1)
        set_virtual_if(s, value)
    elif io_privileged(s):
        allowed |= S.IF
    store64(s + S.RFLAGS, load64(s + S.RFLAGS) & ~S.RF)
    set_flags(s, value, allowed, size)
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


@compiled
def enter_by_star(s, r, attr):
    selector = load64(s + S.STAR) >> 32 & 0xFFFC
    store64(s + S.RCX, rip_next(s, r))
    flat_segment(s + S.CS, selector, attr)
    flat_segment(s + S.SS, selector + 8, DATA)


@group.add
def syscall(s, r):
    """Outside 64-bit mode only AMD's processors have it (em_syscall_is_enabled)."""
    long_code = load64(s + S.HFLAGS) & S.MODE_CODE64
    protected = load64(s + S.HFLAGS) & S.MODE_PROTECTED
    if load64(s + S.EFER) & S.EFER_SCE == 0 or protected == 0 or (long_code == 0 and load64(s + S.IS_AMD) == 0):
        return fault(s, r, S.UD, 0, 0)
    if load64(s + S.HFLAGS) & S.MODE_LONG == 0:
        enter_by_star(s, r, CODE32)
        store64(s + S.RFLAGS, load64(s + S.RFLAGS) & ~(S.VM86 | S.IF | S.RF))
        derive_mode(s)
        return leave_to(s, zext32(load64(s + S.STAR)))
    flags = rflags(s)
    enter_by_star(s, r, CODE64)
    store64(s + S.GPR + 8 * 11, flags & ~S.RF)
    flags &= ~(load64(s + S.SFMASK) | S.RF)
    store64(s + S.RFLAGS, flags & ~S.ARITHMETIC | 2)
    set_arithmetic(s, flags)
    store64(s + S.STEP_TRAP, load64(s + S.STEP_TRAP) & flags)  # SFMASK's TF counts (em_syscall)
    derive_mode(s)
    return leave_to(s, load64(s + S.LSTAR) if long_code else load64(s + S.CSTAR))


@group.add
def sysret(s, r):
    """Outside 64-bit mode AMD's alone; without long mode it sets IF and leaves the other flags."""
    long_code, hflags = load64(s + S.HFLAGS) & S.MODE_CODE64, load64(s + S.HFLAGS)
    if load64(s + S.EFER) & S.EFER_SCE == 0 or (long_code == 0 and load64(s + S.IS_AMD) == 0):
        return fault(s, r, S.UD, 0, 0)
    target, to64 = load64(s + S.RCX), load8(r + OSIZE) == 8
    if hflags & S.MODE_PROTECTED == 0 or load64(s + S.CPL) != 0 or (to64 and noncanonical(s, target, 1)):
        return fault(s, r, S.GP, 0, 1)
    selector = lshr(load64(s + S.STAR), 48)
    flat_segment(s + S.CS, (selector + (16 if to64 else 0)) & 0xFFFF | 3, (CODE64 if to64 else CODE32) | 3 << 5)
    flat_segment(s + S.SS, (selector + 8) & 0xFFFF | 3, DATA | 3 << 5)
    if hflags & S.MODE_LONG:
        flags = load64(s + S.GPR + 8 * 11) & (0x3C7FD7 & ~S.RF)
        store64(s + S.RFLAGS, flags & ~(S.ARITHMETIC | S.VM86) | 2)
        set_arithmetic(s, flags)
    else:
        store64(s + S.RFLAGS, load64(s + S.RFLAGS) | S.IF)
    derive_mode(s)
    return leave_to(s, target if to64 else zext32(target))


@group.add
def sysenter(s, r):
    """In long mode Intel's alone (em_sysenter)."""
    if load64(s + S.EFER) & S.EFER_LMA and load64(s + S.IS_AMD):
        return fault(s, r, S.UD, 0, 0)
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
