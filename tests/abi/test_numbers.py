"""Every number is the kernel's."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kvmfs.abi import cpuid, ioctls
from tests.abi import conftest as c


def test_exported(exported: dict[str, int]) -> None:
    ours = c.exported_names()
    assert ours == {name: exported[name] for name in ours}


def test_internal(internal: dict[str, int]) -> None:
    ours = c.internal_names()
    assert ours == {name: internal[name] for name in ours}


def test_cpuid_features(linux_tree: Path) -> None:
    """The registers that KVM filters have the feature bits that KVM and the kernel know, no more and no less."""
    kvm = (linux_tree / "arch/x86/kvm/reverse_cpuid.h").read_text()
    words = re.findall(r"^\s+(CPUID_\w+)", (linux_tree / "arch/x86/include/asm/cpufeature.h").read_text(), re.M)
    bits: dict[str, dict[str, int]] = {}
    features = (linux_tree / "arch/x86/include/asm/cpufeatures.h").read_text()
    for name, word, bit in re.findall(r"^#define X86_FEATURE_(\w+)\s+\(\s*(\d+)\*32\s*\+\s*(\d+)\)", features, re.M):
        if int(word) < len(words):
            bits.setdefault(words[int(word)], {})[name] = int(bit)
    for name, leaf, bit in re.findall(
        r"^#define (?:KVM_)?X86_FEATURE_(\w+)\s+KVM_X86_FEATURE\((\w+), (\d+)\)", kvm, re.M
    ):
        bits.setdefault(leaf, {})[name] = int(bit)
    theirs = {
        cpuid.Register(int(leaf, 0), int(subleaf), register.lower()): bits[word]
        for word, leaf, subleaf, register in re.findall(r"\[(CPUID_\w+)\]\s*=\s*\{\s*(\w+), (\d+), CPUID_(\w+)\}", kvm)
        if not word.startswith(("CPUID_8086", "CPUID_C000"))
    }
    ours = {
        register: {flag.name.removeprefix("_"): flag.value.bit_length() - 1 for flag in flags if flag.name}
        for flags, register in cpuid.FEATURE_REGISTERS.items()
    }
    assert ours == theirs


def test_constants_are_called_as_the_ioctls() -> None:
    constants = {name: row for name, row in vars(ioctls).items() if isinstance(row, ioctls.Ioctl)}
    assert {name: row.name for name, row in constants.items()} == {name: name for name in constants}


@pytest.mark.parametrize("row", ioctls.ALL, ids=lambda row: row.name)
def test_row(row: ioctls.Ioctl) -> None:
    """What a row says of its argument fits together, and it is found on the fds that it is for."""
    from kvmfs.abi import layout

    pointed = row.argument in {ioctls.Argument.IN, ioctls.Argument.OUT, ioctls.Argument.INOUT}
    assert pointed == (row.struct is not None)
    for path in (*row.addresses, *row.fds):
        assert layout.locate(row.struct, path).size in {4, 8}
    if row.tail:
        layout.locate(row.struct, row.tail.field)
        layout.locate(row.struct, row.tail.count)
    assert [fd for fd in ioctls.Fd if ioctls.lookup(fd, row.number) is row] == list(row.on)


def test_numbers_are_unique_on_each_fd() -> None:
    for fd in ioctls.Fd:
        numbers = [row.number for row in ioctls.ALL if fd in row.on]
        assert len(numbers) == len(set(numbers))
