"""FPU and extended state: KVM_GET_FPU, KVM_GET_XSAVE(2), KVM_GET_XCRS and their setters.

x87 registers are in stack order (ST0 first), as FXSAVE has them. The XSAVE format is the standard one: legacy area,
header, components at fixed offsets (SDM vol. 1, 13.4).
"""

from __future__ import annotations

import errno
import struct
from ctypes import sizeof
from typing import TYPE_CHECKING, Final

from kvmfs.abi import ioctls
from kvmfs.abi.cpuid_basic import Leaf1Ecx
from kvmfs.abi.fpu import KVM_MAX_XCRS, Fpu, Xcr, Xcrs, Xsave
from kvmfs.abi.ioctls import Fd
from kvmfs.jit import state as S
from kvmfs.kvm import xstate
from kvmfs.kvm.caller import Caller
from kvmfs.kvm.cpuid import supported_cpuid
from kvmfs.kvm.dispatch import Table, fail

if TYPE_CHECKING:
    from kvmfs.kvm.cpu_state import CpuState
    from kvmfs.kvm.vcpu import Vcpu

table: Table[Vcpu] = Table(Fd.VCPU)

LEGACY: Final = struct.Struct("<HHBxHQQII")  # FCW FSW FTW FOP RIP RDP MXCSR MXCSR_MASK
MXCSR_MASK: Final = 0xFFFF
MXCSR_INIT: Final = 0x1F80
FCW_INIT: Final = 0x37F
MXCSR_AT: Final = 24
X87_INIT: Final = FCW_INIT.to_bytes(MXCSR_AT, "little")
WORDS: Final = struct.Struct("<HHB")
EXCEPTIONS: Final = 0x3F
SUMMARY: Final = 0x8080  # ES and B
ST_AT: Final = 32
XMM_AT: Final = 160
SOFTWARE_AT: Final = 464  # of the legacy area, Linux' own: feature mask and size
HEADER_AT: Final = 512
VECTOR_SIZE: Final = 64


def uabi_size() -> int:
    """Bytes of KVM_GET_XSAVE2 and KVM_SET_XSAVE (KVM_CAP_XSAVE2)."""
    return max(sizeof(Xsave), xstate.required_size(supported_cpuid().xcr0))


def get_words(state: CpuState) -> tuple[int, int, int]:
    """FCW, FSW, FTW."""
    return WORDS.unpack(state.read(S.FX, WORDS.size))


def set_words(state: CpuState, fcw: int, fsw: int, ftw: int) -> None:
    """FSW's summary of unmasked exceptions is what FXRSTOR makes it."""
    pending = fsw & ~fcw & EXCEPTIONS
    state.write(S.FX, WORDS.pack(fcw, fsw | SUMMARY if pending else fsw & ~SUMMARY, ftw))


def set_stack(state: CpuState, data: bytes) -> None:
    """ST0..ST7."""
    for at in range(0, 128, 16):
        state.write(S.ST + at, data[at : at + 10] + bytes(6))


def get_xmm(state: CpuState) -> bytes:
    return b"".join(state.read(S.VEC + VECTOR_SIZE * index, 16) for index in range(16))


def set_xmm(state: CpuState, data: bytes) -> None:
    for index in range(16):
        state.write(S.VEC + VECTOR_SIZE * index, data[16 * index : 16 * index + 16])


def reset(state: CpuState) -> None:
    """fpstate_init_user."""
    set_words(state, FCW_INIT, 0, 0)
    state[S.MXCSR] = MXCSR_INIT


def _pieces(number: int) -> list[tuple[int, int]]:
    """Where component `number` lies in the vCPU block: (offset, size) in order."""
    if number == 2:
        return [(S.VEC + VECTOR_SIZE * index + 16, 16) for index in range(16)]
    if number == 6:
        return [(S.VEC + VECTOR_SIZE * index + 32, 32) for index in range(16)]
    if number == 7:
        return [(S.VEC + VECTOR_SIZE * index, 64) for index in range(16, 32)]
    if number == 9:
        return [(S.PKRU, 8)]
    raise ValueError(f"component {number} is not kept")  # opmasks have no place in the block yet


def get_xsave(state: CpuState, features: int, size: int) -> bytes:
    """The area for these components; those with initial values are not in use."""
    area = bytearray(size)
    LEGACY.pack_into(area, 0, *get_words(state), state[S.FOP], state[S.FIP], state[S.FDP], state[S.MXCSR], MXCSR_MASK)
    area[ST_AT : ST_AT + 128], area[XMM_AT : XMM_AT + 256] = state.read(S.ST, 128), get_xmm(state)
    features |= xstate.FP | xstate.SSE
    in_use = xstate.FP if area[:MXCSR_AT] != X87_INIT or any(area[ST_AT:XMM_AT]) else 0
    in_use |= xstate.SSE if any(area[XMM_AT : XMM_AT + 256]) or state[S.MXCSR] != MXCSR_INIT else 0
    for number, component in xstate.COMPONENTS.items():
        if features >> number & 1:
            data = b"".join(state.read(at, length) for at, length in _pieces(number))
            area[component.offset : component.offset + component.size] = data
            in_use |= any(data) << number
    struct.pack_into("<QQ", area, SOFTWARE_AT, features, size)
    struct.pack_into("<Q", area, HEADER_AT, in_use)
    return bytes(area)


def set_xsave(state: CpuState, area: bytes, supported: int) -> None:
    """Load an area (fpu_copy_uabi_to_guest_fpstate). OSError(EINVAL)."""
    in_use, compaction = struct.unpack_from("<QQ", area, HEADER_AT)
    supported |= xstate.FP | xstate.SSE
    if in_use & ~supported or compaction or any(area[HEADER_AT + 16 : HEADER_AT + 64]):
        fail(errno.EINVAL)
    fcw, fsw, ftw, fop, fip, fdp, mxcsr, _ = LEGACY.unpack_from(area)
    if in_use & (xstate.FP | xstate.SSE | xstate.YMM) and mxcsr & ~MXCSR_MASK:
        fail(errno.EINVAL)
    if in_use & xstate.FP:
        set_words(state, fcw, fsw, ftw)
        state[S.FOP], state[S.FIP], state[S.FDP] = fop, fip, fdp
        set_stack(state, area[ST_AT : ST_AT + 128])
    else:
        set_words(state, FCW_INIT, 0, 0)
        state[S.FOP], state[S.FIP], state[S.FDP] = 0, 0, 0
        set_stack(state, bytes(128))
    state[S.MXCSR] = mxcsr if in_use & (xstate.SSE | xstate.YMM) else MXCSR_INIT
    set_xmm(state, area[XMM_AT : XMM_AT + 256] if in_use & xstate.SSE else bytes(256))
    for number, component in xstate.COMPONENTS.items():
        if supported >> number & 1:
            present = in_use >> number & 1
            data = area[component.offset : component.offset + component.size] if present else bytes(component.size)
            for at, length in _pieces(number):
                state.write(at, data[:length])
                data = data[length:]


@table.ioctl(ioctls.KVM_GET_FPU)
def _get_fpu(vcpu: Vcpu, caller: Caller, arg: int) -> Fpu:
    state = vcpu.state
    fcw, fsw, ftw = get_words(state)
    fpu = Fpu(fcw=fcw, fsw=fsw, ftwx=ftw, last_opcode=state[S.FOP], last_ip=state[S.FIP], last_dp=state[S.FDP])
    # KVM leaves mxcsr 0, and ignores it in KVM_SET_FPU.
    fpu.fpr = type(fpu.fpr).from_buffer_copy(state.read(S.ST, 128))
    fpu.xmm = type(fpu.xmm).from_buffer_copy(get_xmm(state))
    return fpu


@table.ioctl(ioctls.KVM_SET_FPU)
def _set_fpu(vcpu: Vcpu, caller: Caller, arg: Fpu) -> None:
    state = vcpu.state
    set_words(state, arg.fcw, arg.fsw, arg.ftwx)
    state[S.FOP], state[S.FIP], state[S.FDP] = arg.last_opcode, arg.last_ip, arg.last_dp
    set_stack(state, bytes(arg.fpr))
    set_xmm(state, bytes(arg.xmm))


@table.ioctl(ioctls.KVM_GET_XSAVE, raw=True)
def _get_xsave(vcpu: Vcpu, caller: Caller, arg: int) -> None:
    if uabi_size() > sizeof(Xsave):
        fail(errno.EINVAL)
    caller.write(arg, get_xsave(vcpu.state, vcpu.cpuid.supported_xcr0, sizeof(Xsave)))


@table.ioctl(ioctls.KVM_GET_XSAVE2, raw=True)
def _get_xsave2(vcpu: Vcpu, caller: Caller, arg: int) -> None:
    caller.write(arg, get_xsave(vcpu.state, vcpu.cpuid.supported_xcr0, uabi_size()))


@table.ioctl(ioctls.KVM_SET_XSAVE, raw=True)
def _set_xsave(vcpu: Vcpu, caller: Caller, arg: int) -> None:
    set_xsave(vcpu.state, caller.read(arg, uabi_size()), supported_cpuid().xcr0)


@table.ioctl(ioctls.KVM_GET_XCRS)
def _get_xcrs(vcpu: Vcpu, caller: Caller, arg: int) -> Xcrs:
    xcrs = Xcrs()
    if supported_cpuid().has(Leaf1Ecx.XSAVE):
        xcrs.nr_xcrs = 1
        xcrs.xcrs[0] = Xcr(xcr=0, value=vcpu.state[S.XCR0])
    return xcrs


@table.ioctl(ioctls.KVM_SET_XCRS)
def _set_xcrs(vcpu: Vcpu, caller: Caller, arg: Xcrs) -> None:
    if not supported_cpuid().has(Leaf1Ecx.XSAVE) or arg.nr_xcrs > KVM_MAX_XCRS or arg.flags:
        fail(errno.EINVAL)
    for entry in arg.xcrs[: arg.nr_xcrs]:
        if entry.xcr == 0:
            if not xstate.is_valid_xcr0(entry.value, vcpu.cpuid.supported_xcr0):
                fail(errno.EINVAL)
            vcpu.state[S.XCR0] = entry.value
            vcpu.state.derive()
            vcpu.update_cpuid_runtime()
            break
