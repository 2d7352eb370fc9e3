"""The common x87 instructions without the whole state: only the registers that they use go into the host's unit.

For a guest with the control word of FNINIT, which is the host's own (System V ABI, 3.2.3), and with operands where the
instruction wants them: nothing can be reported then, and the stack cannot fault. All else is x87_unit.py's.

The unit notes exceptions in the host's status word, where they stay. What is left there from before must be noted in
the guest's too, or it would seem to be new; it is cleared if it is not.
"""

from .. import state as S
from ..build import compiled
from ..machine_code import machine_code
from ..raw import load8, load16, load64, lshr, store8, store16, store64
from .fpu_image import FCW_INIT
from .x87_unit import instructions

EXCEPTIONS, C1, CONDITIONS = 0x3F, 0x0200, 0x4700
TOP_ONE, TOP = 0x0800, 0x3800
SIGN_CHANGE, ABSOLUTE, TEST, EXAMINE, SQUARE_ROOT, ROUND = 0xE0, 0xE1, 0xE4, 0xE5, 0xFA, 0xFC  # after D9
CLOBBERS = ("rax", "rcx", "rdx")


def _status(at: str) -> tuple[str, ...]:
    """Clear the unit's exceptions if any is not in the guest's status word."""
    return (
        f"movzwl ({at}), %ecx", "notl %ecx", "andl $$0x3f, %ecx", "fnstsw %ax", "testl %ecx, %eax",
        "jz 4f", "fnclex", "4:",
    )  # fmt: skip


# Each takes the address of the guest's status word, and leaves the unit's there.
# first(a, b, number, status): the instruction with a in ST0 and b in ST1; a gets ST0.  second: b gets ST1.
_PAIR = (*_status("$3"), "fldt ($1)", "fldt ($0)", *instructions("registers", "rcx"), "fnstsw ($3)")
first = machine_code("x87_first", 4, (*_PAIR, "fstpt ($0)", "fstp %st(0)"), CLOBBERS)
second = machine_code("x87_second", 4, (*_PAIR, "fstp %st(0)", "fstpt ($1)"), CLOBBERS)
# compare(a, b, number, status, flags): FCOMI and FUCOMI; `flags` as for x87_unit.on_registers.
compare = machine_code(
    "x87_compare",
    5,
    (
        *_status("$3"), "fldt ($1)", "fldt ($0)", "movzwl ($4), %eax", "addb $$0x7f, %al", "sahf",
        *instructions("registers", "rcx"), "lahf", "seto %al", "movw %ax, ($4)",
        "fnstsw ($3)", "fstp %st(0)", "fstp %st(0)",
    ),
    CLOBBERS,
)  # fmt: skip
# alone(a, unused, number, status): with a in ST0.
alone = machine_code(
    "x87_alone",
    4,
    (*_status("$3"), "fldt ($0)", *instructions("registers", "rcx"), "fnstsw ($3)", "fstpt ($0)"),
    CLOBBERS,
)
# constant(to, unused, number, status): what the instruction pushes.
constant = machine_code(
    "x87_constant", 4, (*_status("$3"), *instructions("registers", "rcx"), "fnstsw ($3)", "fstpt ($0)"), CLOBBERS
)
# with_memory(a, memory, number, status): a in ST0, and an operand in memory.
_MEMORY = ("movq $1, %rcx", *instructions("memory", "rax"), "fnstsw ($3)")
with_memory = machine_code("x87_with_memory", 4, (*_status("$3"), "fldt ($0)", *_MEMORY, "fstpt ($0)"), CLOBBERS)
# load(to, memory, number, status), store(a, memory, number, status): FLD, FILD; FST, FIST, FISTTP, popping or not.
load = machine_code("x87_load", 4, (*_status("$3"), *_MEMORY, "fstpt ($0)"), CLOBBERS)
store = machine_code("x87_store", 4, (*_status("$3"), "fldt ($0)", *_MEMORY, "emms"), CLOBBERS)


@compiled
def in_use(s, n):
    """Whether ST(n) is not empty."""
    return lshr(load8(s + S.FTW), (load16(s + S.FSW) >> 11) + n & 7) & 1


@compiled
def begin(s):
    """The status word goes where the primitives take it."""
    store16(s + S.T3, load16(s + S.FSW))


@compiled
def finish(s, conditions):
    """The exceptions that the unit noted, and those of C0 to C3 that the instruction says something about."""
    after = load16(s + S.T3) & (conditions | EXCEPTIONS)
    store16(s + S.FSW, load16(s + S.FSW) & ~conditions | after)


@compiled
def copy_register(to, source):
    """In the pieces in which the unit stores a register, so that the processor need not wait for it."""
    low, high = load64(source), load16(source + 8)
    store64(to, low)
    store64(to + 8, high)


@compiled
def pop(s):
    """ST0 becomes empty, and ST7."""
    fsw = load16(s + S.FSW)
    store8(s + S.FTW, load8(s + S.FTW) & ~(1 << (fsw >> 11 & 7)))
    store16(s + S.FSW, fsw & ~TOP | fsw + TOP_ONE & TOP)
    low, high = load64(s + S.ST), load16(s + S.ST + 8)
    for n in range(7):
        copy_register(s + S.ST + 16 * n, s + S.ST + 16 * (n + 1))
    store64(s + S.ST + 112, low)
    store64(s + S.ST + 120, high)


@compiled
def push(s):
    """ST7, which has the new value, becomes ST0."""
    fsw = load16(s + S.FSW)
    fsw = fsw & ~TOP | fsw - TOP_ONE & TOP
    store16(s + S.FSW, fsw)
    store8(s + S.FTW, load8(s + S.FTW) | 1 << (fsw >> 11 & 7))
    low, high = load64(s + S.ST + 112), load16(s + S.ST + 120)
    for n in range(7, 0, -1):
        copy_register(s + S.ST + 16 * n, s + S.ST + 16 * (n - 1))
    store64(s + S.ST, low)
    store64(s + S.ST + 8, high)


@compiled
def ready(s, n):
    """Whether ST0 and ST(n) are there, and all exceptions masked."""
    return 1 if load16(s + S.FCW) == FCW_INIT and in_use(s, 0) and in_use(s, n) else 0


@compiled
def can_push(s):
    return 1 if load16(s + S.FCW) == FCW_INIT and in_use(s, 7) == 0 else 0


# Register forms, by FOP: 1 when done, 0 when the whole state is needed -----


@compiled
def arithmetic(s, opcode):
    """D8, DC and DE; FUCOM and FUCOMP among DD."""
    which, reg, n = opcode >> 8, opcode >> 3 & 7, opcode & 7
    compares = reg & 6 == (4 if which == 5 else 2)
    if ready(s, n) == 0 or (compares and (which == 4 or which == 6)):  # DC and DE: aliases, and FCOMPP
        return 0
    pops = which == 6 or (compares and reg & 1)
    reg = reg & ~1 if compares else reg
    number = (4 if which == 6 else which) << 6 | reg << 3 | 1
    begin(s)
    if which == 0 or which == 5:
        first(s + S.ST, s + S.ST + 16 * n, number, s + S.T3)
    else:
        second(s + S.ST, s + S.ST + 16 * n, number, s + S.T3)
    finish(s, CONDITIONS if compares else C1)
    if pops:
        pop(s)
    return 1


@compiled
def comparison(s, opcode, flags):
    """FCOMI, FUCOMI (DB), FCOMIP and FUCOMIP (DF), for `flags` as x87_unit.on_registers takes them.

    With C1 clear: one vendor's processors clear it (SDM), the other's leave it.
    """
    which, reg, n = opcode >> 8, opcode >> 3 & 7, opcode & 7
    if (reg != 5 and reg != 6) or which & 3 != 3 or ready(s, n) == 0 or load16(s + S.FSW) & C1:
        return 0
    begin(s)
    compare(s + S.ST, s + S.ST + 16 * n, 3 << 6 | reg << 3 | 1, s + S.T3, flags)
    finish(s, 0)
    if which == 7:
        pop(s)
    return 1


@compiled
def lone(s, opcode):
    """FCHS, FABS, FTST, FXAM, FSQRT, FRNDINT."""
    modrm = opcode & 0xFF
    examines = modrm in (TEST, EXAMINE)
    changes = modrm in (SIGN_CHANGE, ABSOLUTE, SQUARE_ROOT, ROUND)
    if not (examines or changes) or ready(s, 0) == 0:
        return 0
    begin(s)
    alone(s + S.ST, 0, 1 << 6 | modrm & 63, s + S.T3)
    finish(s, CONDITIONS if examines else C1)
    return 1


@compiled
def push_constant(s, opcode):
    """FLD1 to FLDZ."""
    if can_push(s) == 0:
        return 0
    begin(s)
    constant(s + S.ST + 112, 0, 1 << 6 | opcode & 63, s + S.T3)
    finish(s, C1)
    push(s)
    return 1


@compiled
def push_register(s, opcode):
    """FLD ST(i)."""
    n = opcode & 7
    if can_push(s) == 0 or in_use(s, n) == 0:
        return 0
    copy_register(s + S.ST + 112, s + S.ST + 16 * n)
    store16(s + S.FSW, load16(s + S.FSW) & ~C1)
    push(s)
    return 1


@compiled
def exchange(s, opcode):
    """FXCH."""
    n = opcode & 7
    if ready(s, n) == 0:
        return 0
    other = s + S.ST + 16 * n
    low, high = load64(other), load16(other + 8)
    copy_register(other, s + S.ST)
    store64(s + S.ST, low)
    store64(s + S.ST + 8, high)
    store16(s + S.FSW, load16(s + S.FSW) & ~C1)
    return 1


@compiled
def copy_top(s, opcode):
    """FST ST(i), FSTP ST(i)."""
    n = opcode & 7
    if ready(s, 0) == 0:
        return 0
    copy_register(s + S.ST + 16 * n, s + S.ST)
    fsw = load16(s + S.FSW) & ~C1
    store16(s + S.FSW, fsw)
    store8(s + S.FTW, load8(s + S.FTW) | 1 << ((fsw >> 11) + n & 7))
    if opcode & 8:
        pop(s)
    return 1


# Memory forms -----


@compiled
def from_memory(s, opcode, operand):
    """Arithmetic with an operand in memory, or a load."""
    which, reg = opcode >> 8, opcode >> 3 & 7
    if which & 1:
        if can_push(s) == 0:
            return 0
        begin(s)
        load(s + S.ST + 112, operand, which << 3 | reg, s + S.T3)
        finish(s, C1)
        push(s)
        return 1
    if ready(s, 0) == 0:
        return 0
    compares = reg & 6 == 2
    begin(s)
    with_memory(s + S.ST, operand, which << 3 | (2 if compares else reg), s + S.T3)
    finish(s, CONDITIONS if compares else C1)
    if reg == 3:
        pop(s)
    return 1


@compiled
def to_memory(s, opcode, result):
    """A store's result; it is not made yet."""
    if ready(s, 0) == 0:
        return 0
    begin(s)
    store(s + S.ST, result, opcode >> 8 << 3 | opcode >> 3 & 7, s + S.T3)
    return 1


@compiled
def commit(s, opcode):
    """What the store made of the state."""
    finish(s, C1)
    if opcode >> 3 & 7 != 2:
        pop(s)
