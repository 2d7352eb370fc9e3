"""/dev/kvm's own ioctls, as few as the tests of the processes need (see fakecore for the VM's)."""

from __future__ import annotations

import errno
from typing import Any

from kvmfs.abi.ioctls import KVM_GET_API_VERSION


class FakeSystem:
    def check_vm_type(self, kind: int) -> None:
        if kind == 98:
            raise OSError(errno.EINVAL, "")

    def ioctl(self, caller: Any, cmd: int, arg: int) -> int:
        if cmd == KVM_GET_API_VERSION.number:
            return 12
        raise OSError(errno.EINVAL, "")
