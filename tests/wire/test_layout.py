"""Every struct and number of fuse_h against a C compiler's."""

import inspect
import re
import shutil
import subprocess
from collections.abc import Iterator
from enum import EnumMeta
from pathlib import Path

import pytest

from kvmfs.wire import fuse_h

ENUMS = {
    fuse_h.Opcode: "FUSE_",
    fuse_h.Notify: "FUSE_NOTIFY_",
    fuse_h.InitFlag: "FUSE_",
    fuse_h.OpenFlag: "FOPEN_",
    fuse_h.IoctlFlag: "FUSE_IOCTL_",
    fuse_h.SetAttrValid: "FATTR_",
}
CONSTANTS = {
    "KERNEL_VERSION": "FUSE_KERNEL_VERSION",
    "KERNEL_MINOR_VERSION": "FUSE_KERNEL_MINOR_VERSION",
    "ROOT_ID": "FUSE_ROOT_ID",
    "MIN_READ_BUFFER": "FUSE_MIN_READ_BUFFER",
    "IOCTL_MAX_IOV": "FUSE_IOCTL_MAX_IOV",
    "CUSE_INIT_INFO_MAX": "CUSE_INIT_INFO_MAX",
    "UNIQUE_RESEND": "FUSE_UNIQUE_RESEND",
    "GETATTR_FH": "FUSE_GETATTR_FH",
    "FSYNC_FDATASYNC": "FUSE_FSYNC_FDATASYNC",
    "WRITE_CACHE": "FUSE_WRITE_CACHE",
    "POLL_SCHEDULE_NOTIFY": "FUSE_POLL_SCHEDULE_NOTIFY",
    "CUSE_UNRESTRICTED_IOCTL": "CUSE_UNRESTRICTED_IOCTL",
    "DEV_IOC_CLONE": "FUSE_DEV_IOC_CLONE",
    "DEV_IOC_BACKING_OPEN": "FUSE_DEV_IOC_BACKING_OPEN",
    "DEV_IOC_BACKING_CLOSE": "FUSE_DEV_IOC_BACKING_CLOSE",
}
INSIDE = {"StatfsOut": "st."}
"""Fields that C has in a struct within."""


def c_enum_name(enum: EnumMeta, name: str) -> str:
    special = {"CUSE_INIT": "CUSE_INIT", "BIT32": "FUSE_IOCTL_32BIT"}
    return special.get(name, ENUMS[enum] + name)


def c_struct_name(struct: str) -> str:
    words = re.sub(r"(?<!^)(?=[A-Z])", "_", struct).lower()
    words = words.replace("get_attr", "getattr").replace("set_attr", "setattr")
    return words if words.startswith("cuse") else f"fuse_{words}"


def structs() -> Iterator[tuple[str, type[fuse_h.Struct]]]:
    for name, value in inspect.getmembers(fuse_h, inspect.isclass):
        if issubclass(value, fuse_h.Struct) and value is not fuse_h.Struct:
            yield name, value


def expected() -> dict[str, int]:
    """C expression -> what Python thinks it is."""
    values = {c: getattr(fuse_h, python) for python, c in CONSTANTS.items()}
    for enum in ENUMS:
        values |= {c_enum_name(enum, name): int(value) for name, value in enum.__members__.items() if name != "NONE"}
    for name, struct in structs():
        c_name = f"struct {c_struct_name(name)}"
        values[f"sizeof({c_name})"] = fuse_h.size(struct)
        for field, *_ in struct._fields_:
            if field.startswith("spare") and name in INSIDE:
                continue
            values[f"offsetof({c_name}, {INSIDE.get(name, '')}{field})"] = fuse_h.offset(struct, field)
    return values


def test_layout_is_that_of_the_header(linux_headers: Path, tmp_path: Path) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    values = expected()
    lines = "".join(f'printf("%llu\\n", (unsigned long long)({name}));\n' for name in values)
    source = tmp_path / "layout.c"
    source.write_text(
        f"#include <stddef.h>\n#include <stdio.h>\n#include <sys/ioctl.h>\n#include <linux/fuse.h>\n"
        f"int main(void) {{\n{lines}return 0; }}\n"
    )
    subprocess.run([compiler, "-I", linux_headers, "-o", tmp_path / "layout", source], check=True)
    said = subprocess.run([tmp_path / "layout"], check=True, capture_output=True, text=True).stdout.split()
    assert dict(zip(values, map(int, said), strict=True)) == values
