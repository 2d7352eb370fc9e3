"""What a worker may ask of the kernel: a seccomp filter, as data and as the BPF it becomes.

Since 5.11 the kernel remembers which calls a filter allows whatever their arguments (kernel/seccomp.c), so the run
path's read and write pay almost nothing.

Everything that is not in here is denied (EPERM): all that takes a path, makes a socket or a process, traces
or signals. clone3 gets ENOSYS, upon which the C library uses clone, whose flags a filter can see.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import Final

from kvmfs import seccomp
from kvmfs.kvm.client_maps import PROCMAP_QUERY
from kvmfs.seccomp import (
    ALLOW,
    AND,
    ARCH,
    ARGS,
    ERRNO,
    JEQ,
    JGE,
    KILL_PROCESS,
    LD,
    NR,
    RET,
    X32_BIT,
    X86_64,
    Instruction,
    assemble,
)

# Source: arch/x86/entry/syscalls/syscall_64.tbl
ALLOWED: Final = {
    "read": 0, "write": 1, "close": 3, "fstat": 5, "poll": 7, "lseek": 8, "mmap": 9, "mprotect": 10, "munmap": 11,
    "brk": 12, "rt_sigaction": 13, "rt_sigprocmask": 14, "rt_sigreturn": 15, "pread64": 17, "pwrite64": 18, "readv": 19,
    "writev": 20, "sched_yield": 24, "mremap": 25, "mincore": 27, "madvise": 28, "dup": 32, "nanosleep": 35,
    "getpid": 39, "sendmsg": 46, "recvmsg": 47, "exit": 60, "ftruncate": 77, "gettimeofday": 96, "getrusage": 98,
    "getuid": 102, "getgid": 104, "geteuid": 107, "getegid": 108, "sigaltstack": 131, "mlock": 149, "munlock": 150,
    "gettid": 186, "time": 201, "futex": 202, "sched_getaffinity": 204, "restart_syscall": 219, "clock_gettime": 228,
    "clock_getres": 229, "clock_nanosleep": 230, "exit_group": 231, "epoll_wait": 232, "epoll_ctl": 233,
    "set_robust_list": 273, "ppoll": 271, "epoll_pwait": 281, "timerfd_create": 283, "fallocate": 285,
    "timerfd_settime": 286, "timerfd_gettime": 287, "eventfd2": 290, "epoll_create1": 291, "pipe2": 293,
    "getrandom": 318, "memfd_create": 319, "membarrier": 324, "preadv2": 327, "rseq": 334,
}  # fmt: skip
NEWFSTATAT: Final = 262  # fstat(3) of newer C libraries; what it could tell of paths, the empty root directory does not
IOCTL, CLONE, FCNTL, PRCTL, TGKILL, PROCESS_VM_READV, PROCESS_VM_WRITEV, CLONE3 = 16, 56, 72, 157, 234, 310, 311, 435

CLONE_THREAD: Final = 0x10000
PR_SET_NAME: Final = 15
FCNTL_COMMANDS: Final = (1, 2, 3, 4, 1030, 1033, 1034)  # F_GETFD, SETFD, GETFL, SETFL, DUPFD_CLOEXEC, ADD/GET_SEALS


@dataclass(frozen=True, slots=True)
class Where:
    """Argument `index`, masked, must be `value`."""

    index: int
    value: int
    mask: int = 0xFFFF_FFFF


def rules(own: int, client: int) -> list[tuple[int, tuple[Where, ...]]]:
    """(system call, all of these must hold); several rules for one call are alternatives. `own`, `client`: tgids."""
    return [
        *((number, ()) for number in (*ALLOWED.values(), NEWFSTATAT)),
        (CLONE, (Where(0, CLONE_THREAD, CLONE_THREAD),)),
        *((FCNTL, (Where(1, command),)) for command in FCNTL_COMMANDS),
        (PRCTL, (Where(0, PR_SET_NAME),)),
        (TGKILL, (Where(0, own),)),  # raise(3), abort(3)
        (TGKILL, (Where(0, client), Where(2, 0))),  # is this thread the client's?
        (IOCTL, (Where(1, PROCMAP_QUERY),)),  # on the client's /proc/PID/maps
        (PROCESS_VM_READV, (Where(0, client),)),
        (PROCESS_VM_WRITEV, (Where(0, client),)),
    ]


def program(own: int, client: int) -> bytes:
    """The filter as an array of struct sock_filter."""
    code: list[Instruction] = [
        (LD, 0, 0, ARCH),
        (JEQ, 1, 0, X86_64),
        (RET, 0, 0, KILL_PROCESS),
        (LD, 0, 0, NR),
        (JGE, 0, 1, X32_BIT),
        (RET, 0, 0, ERRNO | errno.EPERM),
        (JEQ, 0, 1, CLONE3),
        (RET, 0, 0, ERRNO | errno.ENOSYS),
    ]
    for number, conditions in rules(own, client):
        code += _rule(number, conditions)
    code.append((RET, 0, 0, ERRNO | errno.EPERM))
    return assemble(code)


def _rule(number: int, conditions: tuple[Where, ...]) -> list[Instruction]:
    """Falls through with the number in the accumulator unless it allows the call."""
    body: list[Instruction] = [(RET, 0, 0, ALLOW)]
    for where in reversed(conditions):
        body = [
            (LD, 0, 0, ARGS + 8 * where.index),
            (AND, 0, 0, where.mask),
            (JEQ, 0, len(body), where.value),
            *body,
        ]
    if conditions:
        body.append((LD, 0, 0, NR))
    return [(JEQ, 0, len(body), number), *body]


def install(own: int, client: int) -> None:
    """Bind the calling thread and its later children. no_new_privs must be set. OSError."""
    seccomp.install(program(own, client))
