"""What the manuals leave open: flags that are not compared, unless the host is of the kind that our handlers follow.

By mnemonic, with the words of the Intel SDM, vol. 2. On AMD's processors, which the handlers follow, nearly all are
compared.
"""

from __future__ import annotations

import functools
from pathlib import Path

CF, PF, AF, ZF, SF, OF = 1, 4, 0x10, 0x40, 0x80, 0x800
ARITHMETIC = CF | PF | AF | ZF | SF | OF

TABLE = (
    ("and or xor test", AF, "the state of the AF flag is undefined"),
    ("mul imul", SF | ZF | AF | PF, "the SF, ZF, AF, and PF flags are undefined"),
    ("div idiv", ARITHMETIC, "the CF, OF, SF, ZF, AF, and PF flags are undefined"),
    ("shl shr sar", AF | OF | CF, "OF is defined for 1-bit shifts only; CF is undefined where the count is the size or"
     " more; for a non-zero count, the AF flag is undefined"),
    ("shld shrd", ARITHMETIC, "if the count is greater than the operand size, the flags are undefined; OF is defined"
     " for 1-bit shifts only; AF is undefined"),
    ("rol ror rcl rcr", OF, "the OF flag is defined only for the 1-bit rotates"),
    ("bt bts btr btc", OF | SF | AF | PF, "the OF, SF, AF, and PF flags are undefined"),
    ("bsf bsr", CF | OF | SF | AF | PF, "the CF, OF, SF, AF, and PF flags are undefined"),
    ("tzcnt lzcnt", OF | SF | AF | PF, "OF, SF, PF, and AF flags are undefined"),
    ("bextr", SF | AF | PF, "AF, SF, and PF are undefined"),
    ("andn bzhi blsi blsr blsmsk", AF | PF, "AF and PF flags are undefined"),
    ("daa das", OF, "the OF flag is undefined"),
    ("aaa aas", OF | SF | ZF | PF, "the OF, SF, ZF, and PF flags are undefined"),
    ("aam aad", OF | AF | CF, "the OF, AF, and CF flags are undefined"),
)  # fmt: skip
# Of these the handlers follow nobody.
OPEN = ("daa", "das", "aaa", "aas", "aam", "aad")
FLAGS = {name: mask for names, mask, _ in TABLE for name in names.split()}
REASONS = {name: reason for names, _, reason in TABLE for name in names.split()}


@functools.cache
def is_followed() -> bool:
    """Whether this host does what is undefined as the handlers do."""
    return "AuthenticAMD" in Path("/proc/cpuinfo").read_text()


def flags(mnemonic: str) -> int:
    """The flags of an instruction that may differ here."""
    return 0 if is_followed() and mnemonic not in OPEN else FLAGS.get(mnemonic, 0)
