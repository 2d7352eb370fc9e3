"""/sys/module as a command under kvmfs run sees it."""

import re
from pathlib import Path

import pytest

from kvmfs.cli import modparams
from tests.cli.conftest import finish

Toy = tuple[str, ...]
SOURCES = {
    "KVM": ("arch/x86/kvm/x86.c", "arch/x86/kvm/lapic.c", "arch/x86/kvm/mmu", "virt/kvm/kvm_main.c"),
    "KVM_INTEL": ("arch/x86/kvm/vmx",),
    "KVM_AMD": ("arch/x86/kvm/svm",),
}
CONDITIONAL = {"pt_mode", "enlightened_vmcs"}
"""Only with CONFIG_BROKEN, CONFIG_HYPERV."""


@pytest.mark.parametrize("table", SOURCES)
def test_names_and_types_are_the_kernels(linux_tree: Path, table: str) -> None:
    if not (linux_tree / "arch/x86/kvm/x86.c").exists():
        pytest.skip("no kernel source")
    kinds = {}
    for place in SOURCES[table]:
        path = linux_tree / place
        for source in sorted(path.glob("*.c")) if path.is_dir() else [path]:
            text = source.read_text()
            for kind, arguments in re.findall(r"^\s*module_param(_named|_cb|_unsafe|)\(([^;]*)\);", text, re.MULTILINE):
                words = [word.strip() for word in arguments.split(",")]
                kinds[words[0]] = {"_named": words[2], "_cb": "any"}.get(kind, words[1]) if len(words) > 2 else ""
    ours = getattr(modparams, table)
    assert set(ours) == set(kinds) - CONDITIONAL
    for name, value in ours.items():
        if kinds[name] == "bool":
            assert value in ("Y", "N"), name
        elif kinds[name] != "any":
            assert value.isdigit(), name


def test_a_command_reads_them(toy: Toy) -> None:
    vendor = next(name for name in modparams.modules() if name != "kvm")
    script = f"cd /sys/module; grep . kvm/parameters/* {vendor}/parameters/*; ls -d kvm*"
    done = finish((*toy, "run", "--", "sh", "-c", script))
    *read, first, second = done.stdout.split()
    assert sorted(read) == sorted(
        f"{module}/parameters/{name}:{value}"
        for module, parameters in modparams.modules().items()
        for name, value in parameters.items()
    )
    assert (first, second) == ("kvm", vendor)


def test_they_cannot_be_written(toy: Toy) -> None:
    """A value that would change nothing is refused."""
    done = finish((*toy, "run", "--", "sh", "-c", "echo 1 > /sys/module/kvm/parameters/ignore_msrs"))
    assert done.returncode != 0


def test_other_modules_are_the_hosts(toy: Toy) -> None:
    names = [entry.name for entry in Path("/sys/module").iterdir() if not entry.name.startswith("kvm")]
    script = "cd /sys/module; for name in *; do test -d $name && echo $name; done"
    done = finish((*toy, "run", "--", "sh", "-c", script))
    assert {name for name in done.stdout.split() if not name.startswith("kvm")} == set(names)
    parameters = sorted(Path("/sys/module/fuse/parameters").iterdir())
    assert finish((*toy, "run", "--", "cat", *parameters)).stdout == "".join(path.read_text() for path in parameters)
