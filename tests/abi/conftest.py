"""What a C compiler makes of the kernel's headers, computed once for all tests here."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvmfs.abi import caps, exits, ioctls, sev
from tests.abi import ccompiler, tables

# Ours: the kernel adds it up in code.
_NOT_IN_C = {"VCPU_MMAP_SIZE"}

_EXPORTED = """
#include <stddef.h>
#include <errno.h>
#include <linux/types.h>
#include <linux/kvm.h>
#include <asm/kvm_para.h>
#include <linux/kvm_para.h>
#define PAGE_SIZE 4096UL
typedef __u8 u8; typedef __s8 s8; typedef __u32 u32; typedef __u64 u64;
"""

# Where two define a macro the later counts: x86 after what is generic.
_INTERNAL = (
    "include/linux/kvm_types.h",
    "include/linux/kvm_host.h",
    "include/linux/kvm_dirty_ring.h",
    "arch/x86/include/asm/kvm_host.h",
    "arch/x86/include/asm/msr-index.h",
    "arch/x86/include/asm/mce.h",
    "arch/x86/include/asm/apicdef.h",
    "arch/x86/include/asm/hyperv-tlfs.h",
    "arch/x86/kvm/hyperv.h",
    "arch/x86/kvm/lapic.h",
    "arch/x86/kvm/x86.h",
    "arch/x86/kvm/x86.c",
)


def exported_names() -> dict[str, int]:
    """Every number of ours that an exported header defines, by its C name."""
    return {
        **{name: value for name, value in tables.EXPORTED_CONSTANTS.items() if name != "KVM_STATS_NAME_SIZE"},
        "KVM_APIC_REG_SIZE": tables.INTERNAL_CONSTANTS["KVM_APIC_REG_SIZE"],
        **{f"KVM_CAP_{cap.name}": cap for cap in caps.Cap},
        **{f"KVM_EXIT_{exit_.name}": exit_ for exit_ in exits.Exit},
        **{f"KVM_INTERNAL_ERROR_{error.name}": error for error in exits.InternalError},
        **{f"KVM_SYSTEM_EVENT_{event.name}": event for event in exits.SystemEvent},
        **{f"KVM_SEV_{command.name}": command for command in sev.SevCommand},
        **{row.name: row.number for row in ioctls.ALL},
    }


def internal_names() -> dict[str, int]:
    """Every number of ours that only the kernel's own sources have, by its C name."""
    names = {name: value for name, value in tables.INTERNAL_CONSTANTS.items() if name not in _NOT_IN_C}
    return names | {"KVM_STATS_NAME_SIZE": tables.EXPORTED_CONSTANTS["KVM_STATS_NAME_SIZE"]}


def size_of(struct: str, path: str) -> str:
    return f"sizeof((({struct} *)0)->{path})"


def offset_of(struct: str, path: str) -> str:
    return f"offsetof({struct}, {path})"


def is_signed(struct: str, path: str) -> str:
    return f"(__typeof__((({struct} *)0)->{path}))-1 < 1"


def bits_of(struct: str, path: str, byte: int) -> str:
    """A byte of a struct that is 0 but for one bit field, which is all ones."""
    return (
        f"({{ union {{ {struct} s; unsigned char b[sizeof({struct})]; }} u = {{0}}; u.s.{path} = ~0; u.b[{byte}]; }})"
    )


def _layout_expressions() -> list[str]:
    expressions = []
    for c_name, struct in tables.STRUCTS.items():
        expressions.append(f"sizeof({c_name})")
        for member in tables.members(struct):
            if member.bits:
                expressions.append(bits_of(c_name, member.path, member.offset))
                continue
            expressions.append(offset_of(c_name, member.path))
            if member.size is not None:
                expressions.append(size_of(c_name, member.path))
            if member.signed is not None:
                expressions.append(is_signed(c_name, member.path))
    return expressions


@pytest.fixture(scope="session")
def exported(linux_tree: Path, linux_headers: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """Values of C expressions under the exported headers."""
    pvclock = linux_tree / "arch/x86/include/asm/pvclock-abi.h"
    return ccompiler.evaluate(
        [*_layout_expressions(), *exported_names()],
        prologue=f'{_EXPORTED}\n#include "{pvclock}"\n',
        directory=tmp_path_factory.mktemp("exported"),
        include=[linux_headers],
    )


@pytest.fixture(scope="session")
def internal(linux_tree: Path, linux_headers: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """Values of macros that the kernel keeps to itself."""
    own = "\n".join(ccompiler.macros(linux_tree / name) for name in _INTERNAL)
    bits = "#define BIT(n) (1ULL << (n))\n#define BIT_ULL(n) (1ULL << (n))\n#define SHRT_MAX 32767\n"
    return ccompiler.evaluate(
        internal_names(),
        prologue=f"{own}\n{bits}\n{_EXPORTED}",
        directory=tmp_path_factory.mktemp("internal"),
        include=[linux_headers],
    )
