"""The filter of a command: which of its system calls come to us.

Opens, as a filter cannot see what path they mean; ioctls of KVM's type, as it cannot see what file they are of; and
fallocate, which is how guest_memfd gives memory back. mmap is not among them: what there is to map is a memfd.

Programs of the other ABIs (i386, x32) see the system as it is; their KVM ioctls fail, with all transports.
"""

from __future__ import annotations

import errno
from contextlib import suppress
from typing import Final

from kvmfs import seccomp
from kvmfs.seccomp import (
    ALLOW,
    AND,
    ARCH,
    ARGS,
    ERRNO,
    I386,
    JEQ,
    LD,
    NR,
    RET,
    RSH,
    USER_NOTIF,
    X32_BIT,
    X86_64,
    Flag,
    Instruction,
)
from kvmfs.syscalls import Sys, syscall

OPEN, IOCTL, OPENAT, FALLOCATE, OPENAT2 = 2, 16, 257, 285, 437
_IOCTL_I386, _IOCTL_X32 = 54, X32_BIT | 514
KVMIO: Final = 0xAE

_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_SET_PTRACER: Final = 0x59616D61
_PR_SET_PTRACER_ANY: Final = -1


def program() -> bytes:
    """An array of struct sock_filter."""
    refuse, notify = _kvm_ioctl(ERRNO | errno.ENOTTY), _kvm_ioctl(USER_NOTIF)
    ours: list[Instruction] = [(LD, 0, 0, NR)]
    for number in (OPEN, OPENAT, OPENAT2, FALLOCATE):
        ours += [(JEQ, 0, 1, number), (RET, 0, 0, USER_NOTIF)]
    ours += [(JEQ, 0, len(notify), IOCTL), *notify]
    ours += [(JEQ, 0, len(refuse), _IOCTL_X32), *refuse]
    other: list[Instruction] = [(LD, 0, 0, NR), (JEQ, 0, len(refuse), _IOCTL_I386), *refuse]
    return seccomp.assemble(
        [
            (LD, 0, 0, ARCH),
            (JEQ, 0, len(ours) + 1, X86_64),
            *ours,
            (RET, 0, 0, ALLOW),
            (JEQ, 0, len(other), I386),
            *other,
            (RET, 0, 0, ALLOW),
        ]
    )


def _kvm_ioctl(verdict: int) -> list[Instruction]:
    """An ioctl: the verdict if it is of KVM's type, else it is allowed."""
    return [
        (LD, 0, 0, ARGS + 8),
        (RSH, 0, 0, 8),
        (AND, 0, 0, 0xFF),
        (JEQ, 0, 1, KVMIO),
        (RET, 0, 0, verdict),
        (RET, 0, 0, ALLOW),
    ]


def install() -> int:
    """Bind this process and its later children: the listener's descriptor. Set-user-ID programs gain nothing any more.

    OSError: EBUSY: there is such a filter already; EINVAL: Linux before 5.19; what a container's filter says.
    """
    syscall(Sys.PRCTL, _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    allow_tracing()
    return seccomp.install(program(), Flag.NEW_LISTENER | Flag.WAIT_KILLABLE_RECV)


def allow_tracing() -> None:
    """Under Yama (ptrace_scope 1) only ancestors may, and the broker and its workers are none. This is for the calling
    process and what it executes; children of a command need ptrace_scope 0, or CAP_SYS_PTRACE for the broker."""
    with suppress(OSError):  # no Yama
        syscall(Sys.PRCTL, _PR_SET_PTRACER, _PR_SET_PTRACER_ANY, 0, 0, 0)
