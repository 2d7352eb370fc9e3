"""Seccomp filters: the little BPF they are written in, and how one is installed (seccomp(2), bpf_common.h, seccomp.h).

A filter sees a system call's number, architecture and argument words, never what they point to. It binds the thread
that installs it and all its children, for good. int arguments are taken from the low 32 bits of their word.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterable
from enum import IntFlag
from typing import Final

from kvmfs.syscalls import Sys, syscall

Instruction = tuple[int, int, int, int]
"""Code, jump if true, jump if false (both relative to the next one), k."""

LD, JEQ, JGE, AND, RSH, RET = 0x20, 0x15, 0x35, 0x54, 0x74, 0x06
NR, ARCH, ARGS = 0, 4, 16
"""Where LD finds the call's number, its architecture, and six arguments of 8 bytes."""
ALLOW, ERRNO, USER_NOTIF, KILL_PROCESS = 0x7FFF_0000, 0x0005_0000, 0x7FC0_0000, 0x8000_0000
X86_64, I386, X32_BIT = 0xC000_003E, 0x4000_0003, 0x4000_0000

_SET_MODE_FILTER: Final = 1


class Flag(IntFlag):
    """SECCOMP_FILTER_FLAG_*"""

    NONE = 0
    NEW_LISTENER = 1 << 3
    WAIT_KILLABLE_RECV = 1 << 5


class _SockFprog(ctypes.Structure):
    _fields_ = (("length", ctypes.c_uint16), ("filter", ctypes.c_char_p))


def assemble(code: Iterable[Instruction]) -> bytes:
    """An array of struct sock_filter."""
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in code)


def install(program: bytes, flags: Flag = Flag.NONE) -> int:
    """Bind the calling thread and its later children: 0, or with NEW_LISTENER that descriptor.

    no_new_privs must be set, or CAP_SYS_ADMIN there. OSError: EBUSY: it has a listener already.
    """
    return syscall(Sys.SECCOMP, _SET_MODE_FILTER, int(flags), ctypes.byref(_SockFprog(len(program) // 8, program)))
