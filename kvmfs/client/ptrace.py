"""One traced thread of a client.

What this relies on (ptrace(2), kernel/ptrace.c, kernel/signal.c, arch/x86):

- PTRACE_SEIZE attaches without stopping; PTRACE_INTERRUPT leaves a trap that springs when the thread next returns to
  user space, ahead of any signal handler. A thread that waits for a FUSE answer cannot leave before it has one, not
  even to die, so a trap set before the answer is never missed.
- A tracer is an OS thread, not a process: every call for a tracee must come from the thread that seized it, and when
  that thread ends the kernel detaches its tracees and lets them run.
- PTRACE_SYSCALL stops at the next entry or exit of a system call; PTRACE_O_TRACESYSGOOD marks these stops.
- With all signals blocked (PTRACE_SETSIGMASK; it never blocks SIGKILL and SIGSTOP) none reaches a handler meanwhile.
  One that is already being delivered, resumed with its own number, is put back in the queue, siginfo and all,
  because it is blocked now. SIGSTOP, resumed likewise, starts a group stop, in which a tracee may be run on; detaching
  puts it back into the stop.
- Waiting ends without a stop when the thread dies (exit status), or when a thread that is a leader is replaced by
  another one's execve (ECHILD). Who waits for its pid sleeps through the latter, as the pid has a new owner by then
  (de_thread); so wait for any tracee of this OS thread (__WNOTHREAD). The zombie of a leader is not reported before the
  last of its threads is gone.
- A seccomp filter may kill the thread for a call that it does not expect. PTRACE_O_SUSPEND_SECCOMP (CAP_SYS_ADMIN, and
  a tracer without a filter of its own) sets the filter aside.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import signal
import threading
import time
from typing import NamedTuple

from kvmfs.client.fds import status_of
from kvmfs.syscalls import Sys, syscall

_GETREGS, _SETREGS = 12, 13
_DETACH = 17
_SYSCALL = 24
_SEIZE, _INTERRUPT = 0x4206, 0x4207
_GETSIGMASK, _SETSIGMASK = 0x420A, 0x420B
_O_TRACESYSGOOD = 1
_O_SUSPEND_SECCOMP = 1 << 21
_EVENT_STOP = 128
_WALL, _WNOTHREAD = 0x40000000, 0x20000000
_SYSCALL_STOP = signal.SIGTRAP | 0x80


harmless_filters = 0
"""How many seccomp filters clients have from us, which do not mind what we call in their name (kvmfs.notify.filter)."""


class Regs(ctypes.Structure):
    """struct user_regs_struct of x86-64."""

    _names = (
        "r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi orig_rax rip cs eflags rsp ss"
        " fs_base gs_base ds es fs gs"
    )
    _fields_ = tuple((name, ctypes.c_uint64) for name in _names.split(" "))

    def copy(self) -> Regs:
        """Another set of the same values."""
        return Regs.from_buffer_copy(self)


class Stop(NamedTuple):
    """Why a tracee stopped: a signal being delivered, a system call's entry or exit, or our trap (or a group stop)."""

    signal: int = 0
    syscall: bool = False


class _Reports(threading.local):
    """What waitpid told an OS thread of one of its tracees when it was asking for another."""

    def __init__(self) -> None:
        self.of: dict[int, int] = {}


_reports = _Reports()


class Tracee:
    """A thread that we trace. All calls from the OS thread that made the object, which is asserted.

    Every method raises OSError(ESRCH) when the thread is gone.
    """

    def __init__(self, tid: int, calls: bool = True) -> None:
        """Seize thread `tid`; it runs on. `calls`: it is going to make system calls in our name.

        OSError: EBUSY when somebody traces it already; EPERM when we may not, or when its seccomp filter can be
        neither suspended nor trusted; ESRCH.
        """
        self.tid = tid
        self._tracer = threading.get_native_id()
        self._memory = -1
        status = status_of(tid)
        self.tgid = int(status["Tgid"])
        if status["State"][0] in "ZX":
            raise OSError(errno.ESRCH, f"thread {tid} has ended")
        if int(status.get("TracerPid", 0)):
            raise OSError(errno.EBUSY, f"thread {tid} is traced by {status['TracerPid']}")
        options = _O_TRACESYSGOOD
        if calls and int(status.get("Seccomp", 0)):
            self._seize_filtered(options, status)
        else:
            self._seize(options)

    def _seize(self, options: int) -> None:
        try:
            self._ptrace(_SEIZE, 0, options)
        except PermissionError:
            if int(status_of(self.tid).get("TracerPid", 0)):  # somebody was faster
                raise OSError(errno.EBUSY, f"thread {self.tid} is traced") from None
            raise

    def _seize_filtered(self, options: int, status: dict[str, str]) -> None:
        try:
            self._seize(options | _O_SUSPEND_SECCOMP)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EINVAL):
                raise
            # Where we run under a container's filter ourselves, suspending is refused. A client with no more filters
            # than we have is under that one only, and then what we may call it may call.
            ours = int(status_of(threading.get_native_id()).get("Seccomp_filters", 0))
            theirs = status.get("Seccomp_filters")
            if theirs is None or int(theirs) > ours + harmless_filters:
                raise OSError(errno.EPERM, f"the seccomp filter of thread {self.tid} cannot be suspended") from None
            self._seize(options)

    def interrupt(self) -> None:
        """Stop the thread at its next return to user space; wait() tells when."""
        self._ptrace(_INTERRUPT)

    def wait(self, seconds: float | None = None) -> Stop:
        """Wait until the thread stops, for as long as it takes. It leaves the CPU and the GIL to others.

        With `seconds`, OSError(EIO) after so long a sleep: waitpid knows no time limit, so this looks now and then.
        """
        self._assert_tracer()
        try:
            status = self._report(seconds)
        except ChildProcessError:
            status = 0
        if not os.WIFSTOPPED(status):
            raise OSError(errno.ESRCH, f"thread {self.tid} has ended")
        number = os.WSTOPSIG(status)
        if number == _SYSCALL_STOP:
            return Stop(syscall=True)
        return Stop() if status >> 16 == _EVENT_STOP else Stop(signal=number)

    def _report(self, seconds: float | None) -> int:
        """What waitpid has of the thread. It asks for any tracee of this OS thread: see above."""
        pause, left = 1e-5, seconds or 0.0
        while self.tid not in _reports.of:
            tid, status = os.waitpid(-1, _WALL | _WNOTHREAD | (0 if seconds is None else os.WNOHANG))
            if tid:
                _reports.of[tid] = status
                continue
            if left < 0:
                raise OSError(errno.EIO, f"thread {self.tid} did not stop")
            time.sleep(pause)
            left -= pause
            pause = min(2 * pause, 1e-2)
        return _reports.of.pop(self.tid)

    def resume(self, stop: Stop) -> None:
        """Let the thread go on from `stop` up to the next entry or exit of a system call.

        A signal in delivery is delivered, which puts it back into the queue when it is blocked.
        """
        self._ptrace(_SYSCALL, 0, stop.signal)

    def detach(self, stop: Stop) -> None:
        """Let the thread go, for good."""
        self.close()
        self._ptrace(_DETACH, 0, stop.signal)

    def registers(self) -> Regs:
        """The registers of the stopped thread."""
        regs = Regs()
        self._ptrace(_GETREGS, 0, regs)
        return regs

    def set_registers(self, regs: Regs) -> None:
        """Replace the registers of the stopped thread."""
        self._ptrace(_SETREGS, 0, regs)

    def signal_mask(self) -> int:
        """The signals that the stopped thread blocks, bit N - 1 for signal N."""
        mask = ctypes.c_uint64()
        self._ptrace(_GETSIGMASK, 8, mask)
        return mask.value

    def set_signal_mask(self, mask: int) -> None:
        """Replace the blocked signals of the stopped thread."""
        self._ptrace(_SETSIGMASK, 8, ctypes.c_uint64(mask))

    def peek(self, address: int, size: int) -> bytes:
        """Bytes of the thread's memory, protections aside. OSError(EFAULT)."""
        with contextlib.suppress(OSError, OverflowError):
            data = os.pread(self._mem(), size, address)
            if len(data) == size:
                return data
        raise self._no_memory(address)

    def poke(self, address: int, data: bytes) -> None:
        """Write the thread's memory, protections aside. OSError(EFAULT)."""
        with contextlib.suppress(OSError, OverflowError):
            if os.pwrite(self._mem(), data, address) == len(data):
                return
        raise self._no_memory(address)

    def _no_memory(self, address: int) -> OSError:
        self.registers()  # a thread that is gone has no memory either, but then that is what to say
        return OSError(errno.EFAULT, f"no memory of thread {self.tid} at {address:#x}")

    def close(self) -> None:
        """Give back what we hold open of the thread's; it stays traced."""
        fd, self._memory = self._memory, -1
        if fd >= 0:
            os.close(fd)

    def _mem(self) -> int:
        self._assert_tracer()
        if self._memory < 0:
            self._memory = os.open(f"/proc/{self.tid}/mem", os.O_RDWR | os.O_CLOEXEC)
        return self._memory

    def _ptrace(self, request: int, address: int = 0, data: int | ctypes.Structure | ctypes.c_uint64 = 0) -> None:
        self._assert_tracer()
        syscall(Sys.PTRACE, request, self.tid, address, data if isinstance(data, int) else ctypes.byref(data))

    def _assert_tracer(self) -> None:
        assert threading.get_native_id() == self._tracer, "a tracee belongs to the OS thread that seized it"
