"""MSRs by the machine's vendor, and of features that guests are not shown: why an access is refused."""

from __future__ import annotations

import pytest

from kvmfs.abi import msr_index as M
from kvmfs.kvm import msr_vendor
from kvmfs.kvm.msr_rules import READ, WRITE, Invalid, Unsupported
from kvmfs.kvm.vcpu import Vcpu

OK = None


class Host:
    def __init__(self, is_amd: bool) -> None:
        self.is_amd = is_amd


@pytest.fixture(params=[True, False], ids=["amd", "intel"])
def amd(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(msr_vendor, "host_cpu", lambda: Host(request.param))
    return bool(request.param)


def refusal(vcpu: Vcpu, number: int, value: int | None, host: bool) -> type[Exception] | None:
    """Of writing `value`, or of reading."""
    try:
        if value is None:
            READ[number](vcpu, number, host)
        else:
            WRITE[number](vcpu, number, value, host)
    except (Invalid, Unsupported) as error:
        return type(error)
    return None


@pytest.mark.parametrize(
    ("number", "value", "host", "on_amd", "on_intel"),
    [
        (M.MSR_IA32_DEBUGCTLMSR, 3, False, OK, OK),
        (M.MSR_IA32_DEBUGCTLMSR, 4, False, OK, Invalid),
        (M.MSR_IA32_SPEC_CTRL, None, True, OK, OK),
        (M.MSR_IA32_SPEC_CTRL, None, False, Invalid, Invalid),
        (M.MSR_IA32_PRED_CMD, 1, False, Invalid, Invalid),
        (M.MSR_IA32_FLUSH_CMD, 1, True, Invalid, Invalid),
        (M.MSR_IA32_SMBASE, None, True, Invalid, Invalid),
        (M.MSR_AMD64_TSC_RATIO, 0, True, OK, Unsupported),
        (M.MSR_AMD64_TSC_RATIO, 1, True, Invalid, Unsupported),
        (M.MSR_AMD64_VIRT_SPEC_CTRL, None, False, Invalid, Unsupported),
        (M.MSR_VM_CR, 0x20, False, Invalid, Unsupported),
        (M.MSR_VM_IGNNE, 5, False, OK, Unsupported),
        (M.MSR_AMD64_DE_CFG, 2, False, OK, Unsupported),
        (M.MSR_AMD64_DE_CFG, 4, True, Invalid, Unsupported),
        (M.MSR_IA32_FEAT_CTL, 1, True, Unsupported, OK),
        (M.MSR_IA32_FEAT_CTL, 5, True, Unsupported, Invalid),
        (M.MSR_IA32_VMX_BASIC, None, False, Unsupported, Invalid),
        (M.MSR_IA32_UMWAIT_CONTROL, None, False, Unsupported, Invalid),
    ],
)
def test_refusals(
    vcpu: Vcpu, amd: bool, number: int, value: int | None, host: bool, on_amd: object, on_intel: object
) -> None:
    assert refusal(vcpu, number, value, host) is (on_amd if amd else on_intel)


@pytest.mark.parametrize("amd", [True], indirect=True)
def test_svm_stays_disabled(vcpu: Vcpu, amd: bool) -> None:
    assert refusal(vcpu, M.MSR_VM_CR, msr_vendor.VM_CR_DIS | msr_vendor.VM_CR_LOCK, False) is OK
    assert refusal(vcpu, M.MSR_VM_CR, 1, False) is OK
    assert READ[M.MSR_VM_CR](vcpu, M.MSR_VM_CR, False) == msr_vendor.VM_CR_DIS | msr_vendor.VM_CR_LOCK | 1


@pytest.mark.parametrize("amd", [False], indirect=True)
def test_a_locked_feature_control_is_the_clients_only(vcpu: Vcpu, amd: bool) -> None:
    assert refusal(vcpu, M.MSR_IA32_FEAT_CTL, 1, False) is OK
    assert refusal(vcpu, M.MSR_IA32_FEAT_CTL, 0, False) is Invalid
    assert refusal(vcpu, M.MSR_IA32_FEAT_CTL, 0, True) is OK
