"""CPUID, MSRs, time stamps, XCR0, hypercalls, and the 0F 01 and 0F AE instructions that need no memory."""

from .. import state as S
from ..build import Group, compiled
from ..machine_code import machine_code
from ..mmu.group import TLB_FLUSH
from ..raw import call2, fence, load8, load16, load32, load64, lshr, rdtsc, shl, store64, umulh, zext32
from . import features
from .access import linear_rip, write_mem
from .cache_line import clear_line, move_line
from .canonical import keepable
from .flags import set_arithmetic
from .fpu_image import in_use
from .operand import PUT, done, dst, fault, leave_next, rip_here
from .record import AUX, FLAGS, NEXT, OFFSET, OSIZE, RECORD_REP, RECORD_REPNE
from .supervisor import derive_mode

group = Group("system", __name__)

host_lfence = machine_code("host_lfence", 0, ["lfence"], ())  # RDTSC waits for nothing else

CPUID_RECORD = 40
SIGNIFICANT_INDEX = 1
OSXSAVE, OSPKE = 1 << 27, 1 << 4


@compiled
def find_leaf(s, function, index):
    """The record of a CPUID leaf, or 0."""
    entry = load64(s + S.CPUID_ENTRIES)
    for _ in range(load64(s + S.CPUID_COUNT)):
        if load32(entry) == function and (load32(entry + 8) & SIGNIFICANT_INDEX == 0 or load32(entry + 4) == index):
            return entry
        entry += CPUID_RECORD
    return 0


@compiled
def leaf_out_of_range(s, function, index):
    """Intel answers the highest basic leaf (KVM's get_out_of_range_cpuid_entry)."""
    basic = find_leaf(s, 0, 0)
    if basic == 0:
        return 0
    if load64(s + S.IS_AMD):
        return 0
    base = 0
    if function >= 0x40000000 and function <= 0x4FFFFFFF:
        base = function & 0xFFFFFF00
    elif function >= 0x80000000:
        base = function & 0xFFFF0000 if function >= 0xC0000000 else 0x80000000
    limits = find_leaf(s, base, 0)
    if limits != 0 and function <= load32(limits + 12):
        return 0
    return find_leaf(s, load32(basic + 12), index)


@compiled
def set_four(s, a, b, c, d):
    store64(s + S.RAX, a)
    store64(s + S.RBX, b)
    store64(s + S.RCX, c)
    store64(s + S.RDX, d)
    return 0


XSAVE_HEADER_END = 576
XSAVEC, XSAVES = 2, 8  # of leaf 0xD.1 EAX


@compiled
def xsave_area(s, compacted):
    """Bytes of an XSAVE area for what XCR0 has, from the components' leaves (xstate_required_size)."""
    size, components = XSAVE_HEADER_END, load64(s + S.XCR0) >> 2
    for number in range(2, 63):
        if components == 0:
            break
        entry = find_leaf(s, 0xD, number) if components & 1 else 0
        components >>= 1
        if entry != 0:
            offset = load32(entry + 16)
            if compacted:
                offset = (size + 63) & -64 if load32(entry + 20) & 2 else size
            end = offset + load32(entry + 12)
            size = end if end > size else size
    return size


@group.add
def rdpmc(s, r):
    """No CPUID leaf announces a counter, and then KVM refuses any index (kvm_pmu_rdpmc)."""
    return fault(s, r, S.GP, 0, 1)


@group.add
def cpuid(s, r):
    """What the embedder's table says, as KVM's kvm_cpuid; OSXSAVE and OSPKE follow CR4, XSAVE areas XCR0."""
    function, index = zext32(load64(s + S.RAX)), zext32(load64(s + S.RCX))
    entry = find_leaf(s, function, index)
    if entry == 0:
        entry = leaf_out_of_range(s, function, index)
    if entry != 0:
        a, b, c, d = load32(entry + 12), load32(entry + 16), load32(entry + 20), load32(entry + 24)
        cr4 = load64(s + S.CR4)
        if function == 1:
            c = c & ~OSXSAVE | (OSXSAVE if cr4 & S.CR4_OSXSAVE else 0)
        elif function == 7 and index == 0:
            c = c & ~OSPKE | (OSPKE if cr4 & S.CR4_PKE else 0)
        elif function == 0xD and (index == 0 or (index == 1 and a & (XSAVEC | XSAVES) != 0)):
            b = xsave_area(s, index)
        set_four(s, a, b, c, d)
    else:
        set_four(s, 0, 0, 0, 0)
        if function == 0xB or function == 0x1F:
            first = find_leaf(s, function, 1)
            if first != 0:
                set_four(s, 0, 0, index & 0xFF, load32(first + 24))
    return leave_next(s, r)


@compiled
def guest_tsc(s):
    """Host TSC * ratio >> 32, + offset."""
    host, ratio = rdtsc(), load64(s + S.TSC_RATIO)
    scaled = shl(umulh(host, ratio), 32) | lshr(host * ratio, 32)
    return scaled + load64(s + S.TSC_OFFSET)


@compiled
def set_edx_eax(s, value):
    store64(s + S.RAX, zext32(value))
    store64(s + S.RDX, lshr(value, 32))
    return 0


@compiled
def edx_eax(s):
    return shl(load64(s + S.RDX), 32) | zext32(load64(s + S.RAX))


@group.add
def read_tsc(s, r):
    """RDTSC."""
    if load64(s + S.CR4) & S.CR4_TSD and load64(s + S.CPL) != 0:
        return fault(s, r, S.GP, 0, 1)
    set_edx_eax(s, guest_tsc(s))
    return done(r)


@compiled
def word_of(s, number):
    """Address of the word that is MSR `number`, or 0: the three bases that guests write often."""
    if number == 0xC0000100:
        return s + S.FS + S.BASE
    if number == 0xC0000101:
        return s + S.GS + S.BASE
    return s + S.KERNEL_GS_BASE if number == 0xC0000102 else 0


@compiled
def leave_for(s, r, reason, first, second):
    """An exit that the embedder completes: it steps over the instruction by INSN_LENGTH, or raises a fault."""
    store64(s + S.RIP, rip_here(s, r))
    store64(s + S.INSN_LENGTH, load8(r + NEXT) - load8(r + OFFSET))
    store64(s + S.EXIT, reason)
    store64(s + S.EXIT_ARGS, first)
    store64(s + S.EXIT_ARGS + 8, second)
    store64(s + S.LEAVE, S.LEAVE_EXIT)
    return 0


@group.add
def rdmsr(s, r):
    number = zext32(load64(s + S.RCX))
    word = word_of(s, number) if load64(s + S.MSR_EXITS) == 0 else 0
    if word == 0:
        return leave_for(s, r, S.EXIT_RDMSR, number, 0)
    set_edx_eax(s, load64(word))
    return leave_next(s, r)


@group.add
def wrmsr(s, r):
    number, value = zext32(load64(s + S.RCX)), edx_eax(s)
    word = word_of(s, number) if load64(s + S.MSR_EXITS) == 0 else 0
    if word == 0:
        return leave_for(s, r, S.EXIT_WRMSR, number, value)
    if keepable(value) == 0:
        return fault(s, r, S.GP, 0, 1)
    store64(word, value)
    return leave_next(s, r)


# 0F 01 with a register form; AUX is the rm field


@compiled
def has(s, offset, mask):
    """Whether the embedder lets the guest use a feature."""
    return load64(s + S.FEATURES + offset) & mask != 0


MWAIT_WORD, MWAIT_BIT = features.word("MWAIT"), features.mask("MWAIT")
SMAP_WORD, SMAP_BIT = features.word("SMAP"), features.mask("SMAP")
RDTSCP_WORD, RDTSCP_BIT = features.word("RDTSCP"), features.mask("RDTSCP")
RDPID_WORD, RDPID_BIT = features.word("RDPID"), features.mask("RDPID")
SERIALIZE_WORD, SERIALIZE_BIT = features.word("SERIALIZE"), features.mask("SERIALIZE")
CLZERO_WORD, CLZERO_BIT = features.word("CLZERO"), features.mask("CLZERO")
PKU_WORD, PKU_BIT = features.word("PKU"), features.mask("PKU")
XGETBV1_WORD, XGETBV1_BIT = features.word("XGETBV1"), features.mask("XGETBV1")


VMCALL, VMMCALL = 0xC1010F, 0xD9010F


@compiled
def hypercall(s, r, kind):
    """VMCALL or VMMCALL. The one that is not the embedder's is overwritten and executed again, or undefined."""
    personality = load64(s + S.PERSONALITY)
    native = personality & S.PERSONALITY_VMMCALL
    if kind == native:
        return leave_for(s, r, S.EXIT_HYPERCALL, 0, 0)
    if load64(s + S.CPL) != 0:  # as in KVM's emulator
        return fault(s, r, S.GP, 0, 1)
    if personality & S.PERSONALITY_PATCHES == 0:
        return fault(s, r, S.UD, 0, 0)
    store64(s + S.RIP, rip_here(s, r))
    store64(s + S.T0, VMMCALL if native else VMCALL)
    la = linear_rip(s, load64(s + S.RIP) + load8(r + NEXT) - load8(r + OFFSET) - 3)
    write_mem(s, r, la, 3, s + S.T0)
    return 0


@group.add
def vmx_group(s, r):
    """VMCALL; the rest of VMX is not there."""
    if load8(r + AUX) == 1:
        return hypercall(s, r, 0)
    return fault(s, r, S.UD, 0, 0)


@group.add
def svm_group(s, r):
    """VMMCALL; the rest of SVM is not there."""
    if load8(r + AUX) == 1:
        return hypercall(s, r, S.PERSONALITY_VMMCALL)
    return fault(s, r, S.UD, 0, 0)


@group.add
def monitor_group(s, r):
    """MONITOR and MWAIT do nothing, as in KVM, if they are there; CLAC, STAC."""
    number = load8(r + AUX)
    if number <= 1:
        there = load64(s + S.PERSONALITY) & S.PERSONALITY_MWAIT != 0 or has(s, MWAIT_WORD, MWAIT_BIT)
        if load64(s + S.CPL) != 0 or not there:
            return fault(s, r, S.UD, 0, 0)
        if number == 0 and zext32(load64(s + S.RCX)) != 0:  # extensions
            return fault(s, r, S.GP, 0, 1)
        return leave_next(s, r)
    if (number == 2 or number == 3) and has(s, SMAP_WORD, SMAP_BIT) and load64(s + S.CPL) == 0:
        flags = load64(s + S.RFLAGS)
        store64(s + S.RFLAGS, flags | S.AC if number == 3 else flags & ~S.AC)
        derive_mode(s)
        return leave_next(s, r)
    return fault(s, r, S.UD, 0, 0)


@group.add
def xgetbv_group(s, r):
    """XGETBV, XSETBV (SDM vol. 1, 13.3; the checks of kvm's __kvm_set_xcr)."""
    number, index = load8(r + AUX), zext32(load64(s + S.RCX))
    if number > 1 or load64(s + S.CR4) & S.CR4_OSXSAVE == 0:
        return fault(s, r, S.UD, 0, 0)
    if number == 0:
        if index > 1 or (index == 1 and not has(s, XGETBV1_WORD, XGETBV1_BIT)):
            return fault(s, r, S.GP, 0, 1)
        set_edx_eax(s, load64(s + S.XCR0) & (in_use(s) if index == 1 else -1))
        return leave_next(s, r)
    value = edx_eax(s)
    refused = index != 0 or load64(s + S.CPL) != 0 or value & 1 == 0 or value & ~load64(s + S.XCR0_SUPPORTED)
    if refused or (value & 4 and value & 2 == 0):
        return fault(s, r, S.GP, 0, 1)
    store64(s + S.XCR0, value)
    derive_mode(s)
    return leave_next(s, r)


@group.add
def pkru_group(s, r):
    """RDPKRU, WRPKRU, SERIALIZE."""
    number = load8(r + AUX)
    prefixed = load16(r + FLAGS) & (RECORD_REP | RECORD_REPNE)
    if number == 0 and prefixed == 0 and has(s, SERIALIZE_WORD, SERIALIZE_BIT):
        return leave_next(s, r)
    if (number != 6 and number != 7) or load64(s + S.CR4) & S.CR4_PKE == 0 or not has(s, PKU_WORD, PKU_BIT):
        return fault(s, r, S.UD, 0, 0)
    if zext32(load64(s + S.RCX)) != 0 or (number == 7 and zext32(load64(s + S.RDX)) != 0):
        return fault(s, r, S.GP, 0, 1)
    if number == 6:
        set_edx_eax(s, load64(s + S.PKRU))
    else:
        store64(s + S.PKRU, zext32(load64(s + S.RAX)))
        call2(load64(load64(s + S.FUNCTIONS) + 8 * TLB_FLUSH), s, 0)
    return leave_next(s, r)


@group.add
def swapgs_group(s, r):
    """SWAPGS, RDTSCP, CLZERO."""
    number = load8(r + AUX)
    if number == 0 and load64(s + S.HFLAGS) & S.MODE_CODE64:
        if load64(s + S.CPL) != 0:
            return fault(s, r, S.GP, 0, 1)
        base = load64(s + S.GS + S.BASE)
        store64(s + S.GS + S.BASE, load64(s + S.KERNEL_GS_BASE))
        store64(s + S.KERNEL_GS_BASE, base)
        return leave_next(s, r)
    if number == 1 and has(s, RDTSCP_WORD, RDTSCP_BIT):
        if load64(s + S.CR4) & S.CR4_TSD and load64(s + S.CPL) != 0:
            return fault(s, r, S.GP, 0, 1)
        host_lfence()
        set_edx_eax(s, guest_tsc(s))
        store64(s + S.RCX, zext32(load64(s + S.TSC_AUX)))
        return leave_next(s, r)
    if number == 4 and has(s, CLZERO_WORD, CLZERO_BIT):
        return clear_line(s, r)
    return fault(s, r, S.UD, 0, 0)


@group.add
def rdpid(s, r):
    if not has(s, RDPID_WORD, RDPID_BIT):
        return fault(s, r, S.UD, 0, 0)
    store64(dst(r), zext32(load64(s + S.TSC_AUX)))
    return leave_next(s, r)


def _base_register(seg, write):
    """RDFSBASE and kin."""

    def handler(s, r):
        if load64(s + S.CR4) & S.CR4_FSGSBASE == 0 or load64(s + S.HFLAGS) & S.MODE_CODE64 == 0:
            return fault(s, r, S.UD, 0, 0)
        wide = load8(r + OSIZE) == 8
        if write:
            value = load64(dst(r)) if wide else zext32(load64(dst(r)))
            if keepable(value) == 0:
                return fault(s, r, S.GP, 0, 1)
            store64(s + seg + S.BASE, value)
            return leave_next(s, r)
        value = load64(s + seg + S.BASE)
        store64(dst(r), value if wide else zext32(value))
        return done(r)

    return handler


for _name, _seg in (("fs", S.FS), ("gs", S.GS)):
    group.add(_base_register(_seg, False), f"rd{_name}base")
    group.add(_base_register(_seg, True), f"wr{_name}base")


@group.add
def barrier(s, r):
    """Fences, WBINVD, INVD: the host's memory order is the guest's, and there is no cache to write back."""
    fence()
    host_lfence()
    return leave_next(s, r)


def _random(width, source):
    """RDRAND, RDSEED by the host's: CF tells whether there was a number; else the destination is 0."""
    put = PUT[width]

    def handler(s, r):
        store64(s + S.T1, 0)
        source(s + S.T0, s + S.T1)
        put(dst(r), load64(s + S.T0))
        set_arithmetic(s, load64(s + S.T1))
        return done(r)

    return handler


for _name in ("rdrand", "rdseed"):
    _source = machine_code(f"host_{_name}", 2, (f"{_name} %rax", "movq %rax, ($0)", "setc ($1)"), ("rax",))
    for _width in (16, 32, 64):
        group.add(_random(_width, _source), f"{_name}{_width}")


group.add(move_line, "movdir64b")
