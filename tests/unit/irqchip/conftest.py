"""VMs with compiled code behind them; their client is a fake, or this very process (machine.py)."""

from __future__ import annotations

from typing import cast

import pytest

from kvmfs.abi.vm import KVM_X86_DEFAULT_VM
from kvmfs.kvm.compiled import compiled
from kvmfs.kvm.native import Native
from kvmfs.kvm.vm import Vm
from tests.unit.kvm.fakes import CLIENT, FakeClient


@pytest.fixture
def client() -> FakeClient:
    return FakeClient()


@pytest.fixture
def vm() -> Vm:
    return Vm(cast(Native, compiled()), KVM_X86_DEFAULT_VM, CLIENT)
