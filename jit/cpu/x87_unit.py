"""x87 instructions on the host's own unit: the guest's state goes in, one instruction runs, its state comes out.

The state is an FXSAVE image with the registers from the top of the stack. Exceptions that the guest has unmasked are
unmasked on the host too, so registers, tags and flags are then what they are to be; the unit only notes them, and the
image is taken before another instruction could report them. Nothing is left behind but an empty stack and the host's
control word, as calls find it (System V ABI, 3.2.3).

Any instruction can be had: it is jumped to by its number, so that a table of them takes four bytes each.
"""

from ..machine_code import machine_code

HOST_CONTROL = 464  # in the image, where FXSAVE writes nothing
CLOBBERS = ("rax", "rcx", "rdx", *(f"xmm{n}" for n in range(16)))

LOAD = (f"fnstcw {HOST_CONTROL}($0)", "stmxcsr 24($0)", "fxrstor64 ($0)")
# EMMS empties the stack in a fraction of FNINIT's time; it would report an exception.
SAVE = ("fxsave64 ($1)", "testb $$0x80, 2($1)", "jz 3f", "fnclex", "3:", "emms", f"fldcw {HOST_CONTROL}($0)")


FORMS = {  # the bytes of number n, and how many there are
    # The low three bits of the opcode and the low six of ModRM.
    "registers": ("0xd8 + (n >> 6), 0xc0 + (n & 63)", 512),
    # The low three bits of the opcode and the reg field of ModRM, for an operand at RCX.
    "memory": ("0xd8 + (n >> 3), (n & 7) << 3 | 1", 64),
}


def instructions(form: str, via: str) -> tuple[str, ...]:
    """Lines that execute instruction number $2 of a form; `via` and rdx lead there and back."""
    code, copies = FORMS[form]
    return (
        f"leaq 1f(%rip), %{via}", f"leaq (%{via}, $2, 4), %{via}", "leaq 2f(%rip), %rdx", f"jmp *%{via}",
        "1:", ".set kvmfs_number, 0", f".rept {copies}", f".byte {code.replace('n', 'kvmfs_number')}", "jmp *%rdx",
        ".set kvmfs_number, kvmfs_number + 1", ".endr", "2:",
    )  # fmt: skip


# reload(image, to): what the unit makes of an image: reserved bits, ES.
reload = machine_code("x87_reload", 2, (*LOAD, *SAVE), CLOBBERS)

# on_registers(image, to, number, flags): a register form.
# flags: u16, OF in bit 0 and LAHF's in the high byte, for FCMOVcc and by FCOMI.
on_registers = machine_code(
    "x87_on_registers",
    4,
    (
        *LOAD, "movzwl ($3), %eax", "addb $$0x7f, %al", "sahf",
        *instructions("registers", "rcx"),
        "lahf", "seto %al", "movw %ax, ($3)", *SAVE,
    ),
    CLOBBERS,
)  # fmt: skip

# on_memory(image, to, number, memory): a memory form.
on_memory = machine_code(
    "x87_on_memory",
    4,
    (*LOAD, "movq $3, %rcx", *instructions("memory", "rax"), *SAVE),
    CLOBBERS,
)
