"""Single instructions executed by the host CPU: the reference that handlers are compared with.

A thunk in an executable page walks an array of contexts: it loads vector registers, MXCSR, flags and general registers,
runs the instruction bytes, and stores everything back (the second word of `mxcsr` keeps the host's meanwhile). A signal
handler, machine code as well, turns a fault of the instruction into a word of the context, so that #DE, #UD and #GP are
results like any other and Python never sees the signal. RSP is neither loaded nor stored.
"""

from __future__ import annotations

import ctypes
import mmap
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

FIELDS: dict[str, object] = {
    "gpr": ("<u8", 16),
    "flags": "<u8",
    "signal": "<u8",
    "mxcsr": ("<u4", 2),
    "vector": ("<u8", (16, 2)),
    "upper": ("<u8", (16, 2)),  # bits 128 to 255 of the vector registers
    "memory": ("<u8", 16),  # 64-byte aligned in arrays that `blank` makes; the first half for aligned operands
}
OFFSETS = {"gpr": 0, "flags": 128, "signal": 136, "mxcsr": 144, "vector": 160, "upper": 416, "memory": 704}
CONTEXT = np.dtype(
    {"names": list(FIELDS), "formats": list(FIELDS.values()), "offsets": list(OFFSETS.values()), "itemsize": 832}
)
FX = CONTEXT.itemsize
X87_CONTEXT = np.dtype(
    {
        "names": [*FIELDS, "fx"],
        "formats": [*(FIELDS | {"memory": ("u1", 128)}).values(), ("u1", 512)],
        "offsets": [*OFFSETS.values(), FX],
        "itemsize": FX + 512,
    }
)
FLAGS, SIGNAL, VECTOR, MXCSR = (OFFSETS[name] for name in ("flags", "signal", "vector", "mxcsr"))
FXSAVE, FXRSTOR, LDMXCSR, STMXCSR = range(4)
RSP, RDI = 4, 7
HAS_AVX = " avx " in Path("/proc/cpuinfo").read_text()
VEXTRACTF128, VINSERTF128, VZEROUPPER = 0x19, 0x18, b"\xc5\xf8\x77"
RESERVED_FLAG = 2
SA_SIGINFO, SA_NODEFER = 4, 0x40000000
FAULTS = (signal.SIGFPE, signal.SIGILL, signal.SIGSEGV, signal.SIGBUS)


def _modrm(opcode: bytes, reg: int, base: int, disp: int, prefix: bytes = b"", wide: bool = True) -> bytes:
    """`opcode reg, [base + disp32]`; base is RDI, RDX or RAX."""
    rex = 0x40 | (8 if wide else 0) | (4 if reg > 7 else 0)
    return prefix + bytes([rex]) + opcode + bytes([0x80 | (reg & 7) << 3 | base]) + disp.to_bytes(4, "little")


def _upper_halves(opcode: int) -> bytes:
    """VINSERTF128 or VEXTRACTF128 of every register, from or to the context at RDI."""
    code = b""
    for n in range(16 if HAS_AVX else 0):
        inverted = 0x63 if n > 7 else 0xE3
        third = (n ^ 15) << 3 | 5 if opcode == VINSERTF128 else 0x7D
        at = (OFFSETS["upper"] + 16 * n).to_bytes(4, "little")
        code += bytes([0xC4, inverted, third, opcode, 0x80 | (n & 7) << 3 | RDI]) + at + b"\x01"
    return code


def blank(count: int) -> np.ndarray:
    """Zeroed contexts, 64-byte aligned."""
    space = np.zeros(count * CONTEXT.itemsize + 64, np.uint8)
    skip = -space.ctypes.data % 64
    return space[skip : skip + count * CONTEXT.itemsize].view(CONTEXT)


def _thunk(instruction: bytes, dtype: np.dtype) -> tuple[bytes, int]:
    """The code for `int f(contexts in rdi, count in rsi)`, and the offset of its fault handler."""
    x87 = dtype == X87_CONTEXT
    saved = (3, 5, 12, 13, 14, 15)
    others = [n for n in range(16) if n not in (RSP, RDI)]
    push = b"".join(bytes([0x41, 0x50 | n & 7] if n > 7 else [0x50 | n]) for n in saved)
    pop = b"".join(bytes([0x41, 0x58 | n & 7] if n > 7 else [0x58 | n]) for n in reversed(saved))

    entry = push + b"\x56"  # push rsi
    step = b"\x57"  # push rdi
    if x87:
        step += _modrm(b"\x0f\xae", FXRSTOR, RDI, FX)
    for n in range(16):
        step += _modrm(b"\x0f\x10", n, RDI, VECTOR + 16 * n, wide=False)  # movups xmm, [rdi + ...]
    step += _upper_halves(VINSERTF128)
    step += _modrm(b"\x0f\xae", STMXCSR, RDI, MXCSR + 4, wide=False)
    step += _modrm(b"\x0f\xae", LDMXCSR, RDI, MXCSR, wide=False)
    step += b"\xff\xb7" + FLAGS.to_bytes(4, "little") + b"\x9d"  # push [rdi + flags]; popfq
    for n in others:
        step += _modrm(b"\x8b", n, RDI, 8 * n)
    step += _modrm(b"\x8b", RDI, RDI, 8 * RDI) + instruction
    step += b"\x48\x87\x3c\x24"  # xchg [rsp], rdi
    for n in others:
        step += _modrm(b"\x89", n, RDI, 8 * n)
    for n in range(16):
        step += _modrm(b"\x0f\x11", n, RDI, VECTOR + 16 * n, wide=False)
    step += _upper_halves(VEXTRACTF128)
    step += b"\x8f\x47" + bytes([8 * RDI])  # pop [rdi + ...]
    step += b"\x9c\x8f\x87" + FLAGS.to_bytes(4, "little")  # pushfq; pop [rdi + flags]
    step += b"\xeb\x01"  # over the next instruction
    recover = len(entry) + len(step)
    step += b"\x5f"  # pop rdi: a fault comes back here
    step += _modrm(b"\x0f\xae", STMXCSR, RDI, MXCSR, wide=False)
    step += _modrm(b"\x0f\xae", LDMXCSR, RDI, MXCSR + 4, wide=False)
    if x87:
        step += _modrm(b"\x0f\xae", FXSAVE, RDI, FX) + b"\xdb\xe3"  # fninit
    step += b"\xfc\x48\x81\xc7" + dtype.itemsize.to_bytes(4, "little")  # cld; add rdi, size
    step += b"\x48\xff\x0c\x24"  # dec qword [rsp]
    back = -(len(step) + 6)
    code = (
        entry
        + step
        + b"\x0f\x85"
        + back.to_bytes(4, "little", signed=True)
        + b"\x5e"
        + pop
        + (VZEROUPPER if HAS_AVX else b"")
        + b"\xc3"
    )

    # void handler(rdi = signal, rsi, rdx = ucontext): registers are at ucontext + 40, RSP the 16th and RIP the 17th
    handler = _modrm(b"\x8b", 0, 2, 40 + 15 * 8) + b"\x48\x8b\x00"  # rax = context
    handler += _modrm(b"\x89", RDI, 0, SIGNAL)
    distance = recover - (len(code) + len(handler) + 7)
    handler += b"\x48\x8d\x05" + distance.to_bytes(4, "little", signed=True)  # lea rax, [rip + distance]
    handler += _modrm(b"\x89", 0, 2, 40 + 16 * 8) + b"\xc3"
    return code + handler, len(code)


class _Action(ctypes.Structure):
    """glibc's struct sigaction on x86-64."""

    _fields_ = (
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_ulong * 16),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    )


_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def _caught(handler: int) -> Iterator[None]:
    """Faults go to the machine code at `handler` meanwhile."""
    action = _Action(handler=handler, flags=SA_SIGINFO | SA_NODEFER)
    before = {number: _Action() for number in FAULTS}
    try:
        for number, old in before.items():
            assert _libc.sigaction(number, ctypes.byref(action), ctypes.byref(old)) == 0
        yield
    finally:
        for number, old in before.items():
            _libc.sigaction(number, ctypes.byref(old), None)


def execute(instruction: bytes, contexts: np.ndarray) -> None:
    """Run one instruction on each context of an array, in place. A fault leaves its signal number.

    With X87_CONTEXT, x87 state goes in and out as an FXSAVE image; `memory` is for the instruction's own use.
    """
    assert contexts.dtype in (CONTEXT, X87_CONTEXT)
    assert contexts.flags.c_contiguous
    contexts["flags"] |= RESERVED_FLAG
    code, handler = _thunk(instruction, contexts.dtype)
    page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(code)
    anchor = ctypes.c_char.from_buffer(page)
    address = ctypes.addressof(anchor)
    function = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_size_t)(address)
    with _caught(address + handler):
        function(contexts.ctypes.data, len(contexts))
    del anchor
    page.close()
