"""Asks a C compiler for the values of expressions."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from tests.support import paths


def evaluate(
    expressions: Iterable[str],
    *,
    prologue: str,
    directory: Path,
    include: Iterable[Path] = (),
) -> dict[str, int]:
    """Value of each integer expression, as unsigned 64 bits, in a program that starts with ``prologue``."""
    gcc = shutil.which("gcc")
    if gcc is None:
        paths.missing("no gcc")
    unique = list(dict.fromkeys(expressions))
    lines = "\n".join(f"    (unsigned long long)({expression})," for expression in unique)
    source = directory / "values.c"
    source.write_text(
        f"{prologue}\n"
        "#include <stdio.h>\n"
        "int main(void)\n"
        "{\n"
        f"    const unsigned long long values[] = {{\n{lines}\n    }};\n"
        "    for (unsigned long i = 0; i < sizeof(values) / sizeof(values[0]); i++)\n"
        '        printf("%llu\\n", values[i]);\n'
        "}\n"
    )
    program = directory / "values"
    # -w: macros taken out of their files redefine each other, which is meant.
    flags = ["-std=gnu11", "-w", *(f"-I{path}" for path in include)]
    subprocess.run([gcc, *flags, "-o", program, source], check=True)
    output = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    return dict(zip(unique, map(int, output.split()), strict=True))


def macros(source: Path) -> str:
    """The #define lines of a C file and nothing else, so that kernel headers need no kernel to compile."""
    text = re.sub(r"/\*.*?\*/", "", source.read_text(), flags=re.S)
    return "\n".join(re.findall(r"^[ \t]*#[ \t]*define(?:[^\n]*\\\n)*[^\n]*$", text, re.M))
