"""Nothing of x86 KVM is missing: whatever the headers and sources name is in the tables, or named here as foreign."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kvmfs.abi import caps, exits, ioctls
from tests.abi import conftest as c
from tests.abi import tables

HEADERS = ("linux/kvm.h", "asm/kvm.h", "asm/kvm_para.h", "linux/kvm_para.h")

_FOREIGN = re.compile(r"KVM_(REG|ALLOCATE_RMA|MMU_FSL|\w*(S390|PPC|ARM|MIPS|SPAPR))(_\w+)?")
_FOREIGN_NAMES = {
    "KVM_DIRTY_TLB",
    "KVM_GET_ONE_REG",
    "KVM_SET_ONE_REG",
    "KVM_GET_REG_LIST",
    # Of x86, and gone from it.
    "KVM_GET_NR_MMU_PAGES",
    "KVM_MAX_MMU_OP_BATCH",
    "KVM_MMU_OP_WRITE_PTE",
    "KVM_MMU_OP_FLUSH_TLB",
    "KVM_MMU_OP_RELEASE_PT",
    # Second names.
    "KVM_DEV_VFIO_GROUP",
    "KVM_DEV_VFIO_GROUP_ADD",
    "KVM_DEV_VFIO_GROUP_DEL",
    # Not a number.
    "KVM_SIGNATURE",
}
_FOREIGN_STRUCTS = {
    "kvm_arm_device_addr",
    "kvm_config_tlb",
    "kvm_dirty_tlb",
    "kvm_irq_routing_s390_adapter",
    "kvm_one_reg",
    "kvm_reg_list",
    "kvm_mmu_op_header",
    "kvm_mmu_op_write_pte",
    "kvm_mmu_op_flush_tlb",
    "kvm_mmu_op_release_pt",
}


@pytest.fixture(scope="module")
def header_text(linux_headers: Path) -> str:
    text = "\n".join((linux_headers / name).read_text() for name in HEADERS)
    return re.sub(r"/\*.*?\*/", "", text, flags=re.S)


def test_constants(header_text: str) -> None:
    """Ioctls, capabilities, exits and flags alike."""
    defined = set(re.findall(r"^[ \t]*#[ \t]*define[ \t]+((?:KVM_|MSR_KVM_)\w+)(?![\w(])[ \t]+\S", header_text, re.M))
    missing = {name for name in defined - _FOREIGN_NAMES - c.exported_names().keys() if not _FOREIGN.fullmatch(name)}
    assert missing == set()


def test_ioctls(header_text: str) -> None:
    """Every number in the header that x86 could answer has a row."""
    numbers = re.findall(r"^#define[ \t]+(KVM_\w+)\s+(?:\\\n\s*)?_IO(?:R|W|WR)?\(KVMIO", header_text, re.M)
    assert len(numbers) >= 150
    missing = {name for name in numbers if name not in ioctls.BY_NAME and not _FOREIGN.fullmatch(name)} - _FOREIGN_NAMES
    assert missing == set()


def test_capabilities(header_text: str) -> None:
    assert set(re.findall(r"^#define KVM_CAP_(\w+)", header_text, re.M)) == {cap.name for cap in caps.Cap}


def test_exits(header_text: str) -> None:
    listed = re.findall(r"^#define KVM_EXIT_(\w+)[ \t]+(\d+)\b", header_text, re.M)
    others = {name.removeprefix("KVM_EXIT_") for name in tables.EXPORTED_CONSTANTS}
    assert {name: int(value) for name, value in listed if name not in others} == {e.name: e.value for e in exits.Exit}


def test_structs(header_text: str) -> None:
    defined = set(re.findall(r"^struct (kvm_\w+) \{", header_text, re.M))
    assert {f"struct {name}" for name in defined - _FOREIGN_STRUCTS} <= tables.STRUCTS.keys()


@pytest.fixture(scope="module")
def kvm_source(linux_tree: Path) -> str:
    files = ("virt/kvm/kvm_main.c", "arch/x86/kvm/x86.c")
    return "\n".join((linux_tree / name).read_text() for name in files)


def _cases(source: str, prefix: str, *functions: str) -> set[str]:
    """Case labels in the named functions."""
    found: set[str] = set()
    for function in functions:
        body = re.search(rf"^[\w ]*\b{function}\([^;{{]*\)\n\{{\n.*?^\}}$", source, re.M | re.S)
        assert body, function
        found.update(re.findall(rf"case ({prefix}\w+):", body[0]))
    return found


@pytest.mark.parametrize(
    ("fd", "functions"),
    [
        (ioctls.Fd.SYSTEM, ["kvm_dev_ioctl", "kvm_arch_dev_ioctl"]),
        (ioctls.Fd.VM, ["kvm_vm_ioctl", "kvm_arch_vm_ioctl"]),
        (ioctls.Fd.VCPU, ["kvm_vcpu_ioctl", "kvm_arch_vcpu_ioctl"]),
        (ioctls.Fd.DEVICE, ["kvm_device_ioctl"]),
    ],
    ids=lambda value: value.name if isinstance(value, ioctls.Fd) else "",
)
def test_fds_of_ioctls(kvm_source: str, fd: ioctls.Fd, functions: list[str]) -> None:
    """A row is on the fds whose dispatcher in the kernel has a case for it."""
    assert {row.name for row in ioctls.ALL if fd in row.on} == _cases(kvm_source, "KVM_", *functions)


def test_capabilities_of_x86(kvm_source: str) -> None:
    answered = _cases(kvm_source, "KVM_CAP_", "kvm_vm_ioctl_check_extension", "kvm_vm_ioctl_check_extension_generic")
    # One is obsolete and 0, one is for architectures with a weaker memory model.
    answered -= {"KVM_CAP_PV_MMU", "KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP"}
    assert {f"KVM_CAP_{cap.name}" for cap in caps.X86} == answered


def test_capabilities_to_enable(kvm_source: str) -> None:
    vm = _cases(kvm_source, "KVM_CAP_", "kvm_vm_ioctl_enable_cap_generic")
    x86 = kvm_source[kvm_source.rindex("int kvm_vm_ioctl_enable_cap(") :]
    vm |= _cases(x86, "KVM_CAP_", "kvm_vm_ioctl_enable_cap")
    assert {f"KVM_CAP_{cap.name}" for cap in caps.VM_ENABLE} == vm - {"KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP"}
    vcpu = _cases(kvm_source, "KVM_CAP_", "kvm_vcpu_ioctl_enable_cap")
    assert {f"KVM_CAP_{cap.name}" for cap in caps.VCPU_ENABLE} == vcpu
