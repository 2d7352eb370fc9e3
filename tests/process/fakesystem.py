"""/dev/kvm's own ioctls, as few as the tests of the processes need (see fakecore for the VM's)."""

from __future__ import annotations

import errno
from typing import Any

from kvmfs.abi.ioctls import KVM_GET_API_VERSION
from tests.process.fakecore_commands import REFUSED_BY_SYSTEM


class FakeSystem:
    def check_vm_type(self, kind: int) -> None:
        if kind == REFUSED_BY_SYSTEM:
            raise OSError(errno.EINVAL, "")

    def ioctl(self, caller: Any, cmd: int, arg: int) -> int:
        if cmd == KVM_GET_API_VERSION.number:
            return 12
        raise OSError(errno.EINVAL, "")
