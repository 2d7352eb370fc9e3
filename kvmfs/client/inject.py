"""System calls made by a stopped thread of a client in our name.

What this relies on, beside ptrace.py's facts:

- A thread stopped on its way out of a `syscall` instruction has RIP just behind it, so RIP - 2 is a place in its own
  text to make more system calls from, whatever the program is linked against.
- orig_rax = -1 tells the kernel that no system call is to be restarted when the thread goes on.
- A descriptor passed by SCM_RIGHTS that finds no number free under RLIMIT_NOFILE is dropped, with MSG_CTRUNC and not
  an error (net/core/scm.c). The limit bounds new numbers, not how many there are, and can be raised from outside.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import errno
import os
import resource
import signal
import socket
import struct
from collections.abc import Iterator

from kvmfs.client.fds import Pidfd
from kvmfs.client.limits import raised
from kvmfs.client.ptrace import Stop, Tracee

SYS_CLOSE = 3
_SYS_RECVMSG, _SYS_SOCKETPAIR, _SYS_DUP3 = 47, 53, 292
_SYS_GETPID, _SYS_GETTID, _SYS_RT_TGSIGQUEUEINFO = 39, 186, 297

_WORD = (1 << 64) - 1
_NO_SYSCALL = _WORD  # orig_rax of a thread that is in no system call
_ALL_SIGNALS = _WORD
_USER_CS = 0x33  # selector of 64-bit user code
_SYSCALL_INSTRUCTION = b"\x0f\x05"
_RED_ZONE = 128

_PAIR = struct.Struct("<ii")
_MSGHDR = struct.Struct("<QI4xQQQQi4x")  # name, its length, iov, iovs, control, its length, flags
_CMSGHDR = struct.Struct("<Qiii4x")  # length, level, type, one descriptor
_SIGINFO = struct.Struct("<iii4xQh22x")  # signo, errno, code, addr, addr_lsb; no more of it is read
_BUS_MCEERR_AR = 4
_PAGE_SHIFT = 12
_SCRATCH = _MSGHDR.size + _CMSGHDR.size  # few: what lies below the stack of a small coroutine is another one's memory
_CMSG_LENGTH = 20
_MSG_CMSG_CLOEXEC = 0x40000000
_HELPERS = 3  # descriptors in use while one is handed over: two sockets and the copy


class Injection:
    """A thread stopped on its way out of a system call. Whatever fails, detach() lets it go on as it was."""

    def __init__(self, tracee: Tracee, stop: Stop) -> None:
        """Take over `tracee`, which `stop` has stopped."""
        self.tracee = tracee
        self._stop = stop
        self._regs = tracee.registers()

    def check(self) -> None:
        """OSError(ENOSYS) when the thread came by another way than a 64-bit `syscall` instruction."""
        regs = self._regs
        if regs.cs != _USER_CS or self.tracee.peek(regs.rip - 2, 2) != _SYSCALL_INSTRUCTION:
            raise OSError(errno.ENOSYS, f"thread {self.tracee.tid} did not come by a 64-bit syscall instruction")

    @contextlib.contextmanager
    def calls(self) -> Iterator[None]:
        """Where syscall() may be used: all signals are blocked inside, and all that is the thread's is put back after.

        Outside, the thread is stopped but intact: were we to die there, it would go on with what its own system call
        gave.
        """
        self.check()
        self.scratch: int = (self._regs.rsp - _RED_ZONE - _SCRATCH) & ~15
        saved = self.tracee.peek(self.scratch, _SCRATCH)
        mask = self.tracee.signal_mask()
        self.tracee.set_signal_mask(_ALL_SIGNALS)
        try:
            yield
        finally:
            self.tracee.set_registers(self._regs)
            self.tracee.set_signal_mask(mask)
            self.tracee.poke(self.scratch, saved)

    def syscall(self, number: int, *args: int) -> int:
        """Make the thread do a system call; its result. OSError with the errno that it gave; ESRCH when it died."""
        regs = self._regs.copy()
        regs.rip -= len(_SYSCALL_INSTRUCTION)
        regs.rax = number
        regs.orig_rax = _NO_SYSCALL
        for name, value in zip(("rdi", "rsi", "rdx", "r10", "r8", "r9"), args, strict=False):
            setattr(regs, name, value & _WORD)
        self.tracee.set_registers(regs)
        for _ in ("entry", "exit"):
            self._to_syscall_stop()
        result: int = ctypes.c_int64(self.tracee.registers().rax).value
        if -4096 < result < 0:
            raise OSError(-result, f"system call {number} in the client: {os.strerror(-result)}")
        return result

    def _to_syscall_stop(self) -> None:
        while True:
            self.tracee.resume(self._stop)
            self._stop = self.tracee.wait()
            if self._stop.syscall:
                return

    def detach(self, result: int | None = None) -> None:
        """Let the thread go, its system call returning `result` (None: what it returned by itself)."""
        try:
            if result is not None:
                self._regs.rax = result & _WORD
                self._regs.orig_rax = _NO_SYSCALL
                self.tracee.set_registers(self._regs)
        finally:
            self.tracee.detach(self._stop)


def install(injection: Injection, fd: int, cloexec: bool = True) -> int:
    """Give the client a duplicate of our `fd`, within injection.calls(); its number there.

    It is the lowest number free, as an open in the client would give. OSError: EMFILE exactly where that open would
    have had it, as far as we may raise the client's limit for a moment to make room for our helpers; ESRCH; what
    socketpair gives in the client.
    """
    try:
        return _install(injection, fd, cloexec)
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
    try:
        with raised(injection.tracee.tid, resource.RLIMIT_NOFILE, _HELPERS) as limit:
            return _install(injection, fd, cloexec, limit)
    except PermissionError:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE)) from None


def _install(injection: Injection, fd: int, cloexec: bool, limit: int | None = None) -> int:
    tracee, scratch = injection.tracee, injection.scratch
    kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC  # a datagram may be empty: no iovec to place in the client
    injection.syscall(_SYS_SOCKETPAIR, socket.AF_UNIX, kind, 0, scratch)
    first, second = _PAIR.unpack(tracee.peek(scratch, _PAIR.size))
    try:
        if limit is not None and first >= limit:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        with Pidfd(tracee.tid) as client:
            ours = client.getfd(second)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM, 0, ours) as sender:
            sender.sendmsg([], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))])
        header = _MSGHDR.pack(0, 0, 0, 0, scratch + _MSGHDR.size, _CMSGHDR.size, 0)
        tracee.poke(scratch, header + bytes(_CMSGHDR.size))
        injection.syscall(_SYS_RECVMSG, first, scratch, _MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT)
        length, _, _, copy = _CMSGHDR.unpack(tracee.peek(scratch + _MSGHDR.size, _CMSGHDR.size))
        if length != _CMSG_LENGTH:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        # The pair took the lowest number before the descriptor could have it: change places.
        try:
            injection.syscall(_SYS_DUP3, copy, first, os.O_CLOEXEC if cloexec else 0)
        finally:
            injection.syscall(SYS_CLOSE, copy)
    except BaseException:
        injection.syscall(SYS_CLOSE, first)
        raise
    finally:
        injection.syscall(SYS_CLOSE, second)
    return int(first)


def poison(injection: Injection, address: int) -> None:
    """Have the thread send itself what send_sig_mceerr() would: SIGBUS with BUS_MCEERR_AR, within injection.calls().

    Nobody else may: the kernel lets a process put codes of its own into signals to itself only.
    """
    tracee, scratch = injection.tracee, injection.scratch
    tracee.poke(scratch, _SIGINFO.pack(signal.SIGBUS, 0, _BUS_MCEERR_AR, address, _PAGE_SHIFT))
    tgid = injection.syscall(_SYS_GETPID)
    injection.syscall(_SYS_RT_TGSIGQUEUEINFO, tgid, injection.syscall(_SYS_GETTID), signal.SIGBUS, scratch)
