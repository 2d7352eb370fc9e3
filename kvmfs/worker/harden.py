"""What a worker gives up before guest code can run.

From then on nobody may assume that a worker does what its program says: the vCPU is compiled code over raw addresses.
What remains to it: the FUSE connection of its VM, the control channel, the memory of its one client (CAP_SYS_PTRACE,
which the filter in seccomp.py confines to process_vm_readv and process_vm_writev on that tgid; without the capability
a client could put itself out of reach by changing its user), the memory it has, and more of it.
"""

from __future__ import annotations

import ctypes
import os
import resource
from contextlib import suppress
from typing import Final

from kvmfs.syscalls import Sys, syscall
from kvmfs.worker import seccomp

PR_SET_DUMPABLE: Final = 4
PR_SET_KEEPCAPS: Final = 8
PR_CAPBSET_READ: Final = 23
PR_CAPBSET_DROP: Final = 24
PR_SET_NO_NEW_PRIVS: Final = 38
PR_CAP_AMBIENT: Final = 47
PR_CAP_AMBIENT_CLEAR_ALL: Final = 4
CAP_SYS_PTRACE: Final = 19
_CAPABILITY_VERSION_3: Final = 0x20080522


def harden(client: int, uid: int, gid: int, empty: int) -> None:
    """Give up all that is not needed, for good. To be called with one thread.

    client: its tgid; uid, gid: its user and group. empty: an empty directory, closed here, that becomes the root.

    OSError when the kernel refuses: then the process must not go on.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.fchdir(empty)
    os.close(empty)
    with suppress(PermissionError):  # the filter forbids paths anyway
        os.chroot(".")
    _drop_bounding_set()
    syscall(Sys.PRCTL, PR_SET_KEEPCAPS, 1, 0, 0, 0)
    with suppress(PermissionError):  # in a user namespace without other users, or not root at all
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    _limit_capabilities({CAP_SYS_PTRACE})
    # After the change of user, which resets it. Also keeps a client of the same user out of our memory.
    syscall(Sys.PRCTL, PR_SET_DUMPABLE, 0, 0, 0, 0)
    syscall(Sys.PRCTL, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    seccomp.install(os.getpid(), client)


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Data(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


def _drop_bounding_set() -> None:
    capability = 0
    with suppress(OSError):  # EINVAL: past the last one; EPERM: not ours to drop
        while True:
            if syscall(Sys.PRCTL, PR_CAPBSET_READ, capability, 0, 0, 0):
                syscall(Sys.PRCTL, PR_CAPBSET_DROP, capability, 0, 0, 0)
            capability += 1


def _limit_capabilities(keep: set[int]) -> None:
    """Keep those of `keep` that we have, and nothing else in any other set."""
    syscall(Sys.PRCTL, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    header, data = _Header(_CAPABILITY_VERSION_3, 0), (_Data * 2)()
    syscall(Sys.CAPGET, ctypes.byref(header), ctypes.byref(data))
    wanted = sum(1 << capability for capability in keep)
    for half in range(2):
        kept = data[half].permitted & wanted >> 32 * half & 0xFFFF_FFFF
        data[half].permitted = data[half].effective = kept
        data[half].inheritable = 0
    syscall(Sys.CAPSET, ctypes.byref(header), ctypes.byref(data))
