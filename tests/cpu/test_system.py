"""What is not arithmetic: exceptions and their frames, privilege, system registers, I/O, events, code that changes."""

from __future__ import annotations

import struct
import threading

import pytest
from kvmfs.jit import state as S

from .assemble import assemble
from .guest import RAM, Guest

CODE, HANDLER, STACK, KERNEL_STACK = 0x100000, 0x110000, 0x180000, 0x190000
GDT, IDT, TSS = 0x120000, 0x121000, 0x122000
KERNEL_CS, KERNEL_SS, USER_SS, USER_CS, TSS_SELECTOR = 0x08, 0x10, 0x1B, 0x23, 0x28
EXIT_PORT = 0xF4  # a handler ends the run by writing here


class System(Guest):
    """A guest with descriptor tables: every vector's handler pushes its number and stops at HLT."""

    def __init__(self) -> None:
        super().__init__()
        flat = {1: 0x00AF9B000000FFFF, 2: 0x00CF93000000FFFF, 3: 0x00CFF3000000FFFF, 4: 0x00AFFB000000FFFF}
        for index, descriptor in flat.items():
            self.write(GDT + 8 * index, descriptor.to_bytes(8, "little"))
        tss = 0x0000890000000067 | (TSS & 0xFFFFFF) << 16 | (TSS >> 24) << 56
        self.write(GDT + 0x28, struct.pack("<QQ", tss, TSS >> 32))
        self.write(TSS + 4, struct.pack("<Q", KERNEL_STACK))
        self.write(TSS + 102, struct.pack("<H", 0x68))  # no I/O bitmap within the limit
        for vector in range(256):
            self.gate(vector, HANDLER + 16 * vector)
            self.write(HANDLER + 16 * vector, bytes([0x6A, vector & 0x7F, 0xF4]))  # push vector; hlt
        self[S.GDTR_BASE], self[S.GDTR_LIMIT] = GDT, 0x37
        self[S.IDTR_BASE], self[S.IDTR_LIMIT] = IDT, 0xFFF
        self[S.TR + S.SEL], self[S.TR + S.BASE], self[S.TR + S.LIMIT] = TSS_SELECTOR, TSS, 0x67
        self[S.CS + S.SEL] = KERNEL_CS
        self[S.RSP] = STACK

    def gate(self, vector: int, target: int, dpl: int = 0, kind: int = 14, ist: int = 0) -> None:
        attributes = 0x80 | dpl << 5 | kind
        low = target & 0xFFFF | KERNEL_CS << 16 | ist << 32 | attributes << 40 | (target >> 16 & 0xFFFF) << 48
        self.write(IDT + 16 * vector, struct.pack("<QQ", low, target >> 32))

    def user(self) -> None:
        """Go to CPL 3."""
        for seg, selector, attributes in ((S.CS, USER_CS, 0xA0FB), (S.SS, USER_SS, 0xC0F3)):
            self.segment(seg, selector, attributes)
        self.derive()

    def execute(self, text: str) -> int:
        """Run assembly from CODE until an exit."""
        self.write(CODE, assemble(text, CODE))
        self[S.RIP] = CODE
        self.derive()
        return self.run()

    def words(self, address: int, count: int) -> list[int]:
        return list(struct.unpack(f"<{count}Q", self.read(address, 8 * count)))

    def frame(self, error: bool = False) -> dict[str, int]:
        """What a handler found on its stack, below the vector number that it pushed."""
        names = (["vector", "error"] if error else ["vector"]) + ["rip", "cs", "rflags", "rsp", "ss"]
        return dict(zip(names, self.words(self[S.RSP], len(names)), strict=True))


@pytest.fixture
def guest() -> System:
    return System()


def test_fault_frame(guest: System) -> None:
    """#UD: RIP at the instruction, RF set, the stack aligned to 16 bytes, IF cleared by an interrupt gate."""
    guest[S.RSP], guest.rflags = STACK - 8, S.IF | S.CF | 2
    assert guest.execute("nop; ud2") == S.EXIT_HLT
    frame = guest.frame()
    flags = S.RF | S.IF | S.CF | 2
    interrupted = {"rip": CODE + 1, "cs": KERNEL_CS, "rflags": flags, "rsp": STACK - 8, "ss": KERNEL_SS}
    assert frame == {"vector": S.UD, **interrupted}
    assert (guest[S.RSP] + 48) % 16 == 0
    assert not guest.rflags & S.IF


def test_divide_error_and_return(guest: System) -> None:
    """A handler that steps over the instruction and returns."""
    handler = "add qword ptr [rsp], 2; iretq"
    guest.write(HANDLER + 0x2000, assemble(handler, HANDLER + 0x2000))
    guest.gate(S.DE, HANDLER + 0x2000)
    assert guest.execute("xor ecx, ecx; div ecx; mov eax, 7; hlt") == S.EXIT_HLT
    assert (guest[S.RAX], guest[S.RSP]) == (7, STACK)


@pytest.mark.parametrize(
    ("access", "error"),
    [("mov al, [rbx]", 0), ("mov [rbx], al", 2), ("inc dword ptr [rbx]", 2), ("jmp rbx", 0x10)],
)
def test_page_fault(guest: System, access: str, error: int) -> None:
    """Not present: error code, CR2, RIP. (RAM is mapped up to its end; the next page directory entry is empty.)"""
    guest[S.RBX] = RAM + 0x123
    assert guest.execute(access) == S.EXIT_HLT
    frame = guest.frame(error=True)
    assert (frame["vector"], frame["error"], guest[S.CR2]) == (S.PF_FAULT, error, RAM + 0x123)
    assert frame["rip"] == (RAM + 0x123 if error == 0x10 else CODE)


@pytest.mark.parametrize(
    ("text", "vector"),
    [
        ("mov rax, 0x8000000000000000; mov al, [rax]", S.GP),
        ("mov rbp, 0x8000000000000000; mov al, [rbp]", S.SS_FAULT),
        ("mov rax, 0x8000000000000000; jmp rax", S.GP),
        ("mov eax, 0x80000011; mov cr0, rax; mov rax, 0x100000000; mov cr0, rax", S.GP),
        ("mov rax, cr4; and al, 0xdf; mov cr4, rax", S.GP),  # PAE in long mode
        ("movaps xmm0, [0x180008]", S.GP),
    ],
)
def test_general_protection(guest: System, text: str, vector: int) -> None:
    assert guest.execute(text) == S.EXIT_HLT
    assert (guest.frame(error=True)["vector"], guest.frame(error=True)["error"]) == (vector, 0)


PRIVILEGED = ["hlt", "cli", "mov rax, cr0", "mov cr3, rax", "lgdt [rax]", "wrmsr", "invlpg [rax]", "in al, dx"]


@pytest.mark.parametrize("text", PRIVILEGED)
def test_privileged_in_user_mode(guest: System, text: str) -> None:
    """#GP(0) on the kernel's stack from the TSS."""
    guest.user()
    assert guest.execute(text) == S.EXIT_HLT
    frame = guest.frame(error=True)
    assert (frame["vector"], frame["error"], frame["rip"]) == (S.GP, 0, CODE)
    assert (frame["cs"], frame["ss"], frame["rsp"]) == (USER_CS, USER_SS, STACK)
    assert guest[S.RSP] == KERNEL_STACK - 56
    assert (guest[S.CPL], guest[S.SS + S.SEL]) == (0, 0)


def test_software_interrupt_checks_the_gate(guest: System) -> None:
    guest.user()
    assert guest.execute("int 0x40") == S.EXIT_HLT
    assert guest.frame(error=True)["error"] == 0x40 * 8 + 2
    guest = System()
    guest.gate(0x40, HANDLER + 16 * 0x40, dpl=3)
    guest.user()
    assert guest.execute("int 0x40") == S.EXIT_HLT
    assert guest.frame()["rip"] == CODE + 2


def test_interrupt_stack_table(guest: System) -> None:
    guest.write(TSS + 36, struct.pack("<Q", 0x1A0000))
    guest.gate(S.UD, HANDLER + 16 * S.UD, ist=1)
    guest.execute("ud2")
    assert guest[S.RSP] == 0x1A0000 - 48


def test_double_and_triple_fault(guest: System) -> None:
    """A #GP whose gate is not present is #NP, two contributory faults: #DF. Without its gate: shutdown."""
    guest.gate(S.GP, HANDLER, kind=0)
    guest.execute("mov rax, 0x8000000000000000; mov al, [rax]")
    assert guest.frame(error=True)["vector"] == S.DF_FAULT
    guest = System()
    guest[S.IDTR_LIMIT] = 0
    assert guest.execute("ud2") == S.EXIT_SHUTDOWN


def test_system_call_and_return(guest: System) -> None:
    kernel = "push rcx; push r11; pop r11; pop rcx; mov eax, 5; sysretq"
    guest.write(HANDLER + 0x2000, assemble(kernel, HANDLER + 0x2000))
    guest[S.LSTAR], guest[S.STAR], guest[S.SFMASK] = HANDLER + 0x2000, 0x0013_0008 << 32, S.IF
    guest.rflags = S.IF | S.ZF | 2
    guest.user()
    assert guest.execute("syscall; hlt") == S.EXIT_HLT
    frame = guest.frame(error=True)  # HLT at CPL 3: #GP
    assert (guest[S.RAX], frame["rip"], frame["cs"], frame["ss"]) == (5, CODE + 2, USER_CS, USER_SS)
    assert frame["rflags"] == S.RF | S.IF | S.ZF | 2


def test_model_specific_registers_are_the_embedders(guest: System) -> None:
    """RDMSR leaves at the instruction; the three bases that guests write often do not."""
    assert guest.execute("mov ecx, 0x10; rdmsr; hlt") == S.EXIT_RDMSR
    assert (guest[S.EXIT_ARGS], guest[S.RIP], guest[S.INSN_LENGTH]) == (0x10, CODE + 5, 2)
    bases = "mov ecx, 0xC0000101; mov eax, 0x1234; xor edx, edx; wrmsr; mov ecx, 0xC0000102; mov al, 0x99; wrmsr"
    assert guest.execute(f"{bases}; swapgs; hlt") == S.EXIT_HLT
    assert (guest[S.GS + S.BASE], guest[S.KERNEL_GS_BASE]) == (0x1299, 0x1234)


def test_port_output_is_completed_on_the_way_back(guest: System) -> None:
    """As in KVM: RIP is at the OUT when it is reported, and past it after the next entry."""
    assert guest.execute("mov dx, 0x3f8; mov eax, 0x12345678; out dx, eax; in al, 0x60; hlt") == S.EXIT_PIO
    assert [guest[f] for f in (S.PIO_PORT, S.PIO_SIZE, S.PIO_COUNT, S.PIO_IN)] == [0x3F8, 4, 1, 0]
    assert guest.read_cpu(S.PIO_DATA, 4) == bytes.fromhex("78563412")
    at = guest[S.RIP]
    guest.function("complete_pio")
    assert guest[S.RIP] == at + 1
    assert guest.run() == S.EXIT_PIO
    assert [guest[f] for f in (S.PIO_PORT, S.PIO_SIZE, S.PIO_IN)] == [0x60, 1, 1]
    guest[S.PIO_DATA] = 0xAB
    guest.function("complete_pio")
    assert guest[S.RAX] == 0x123456AB
    assert guest.run() == S.EXIT_HLT


def test_string_input_comes_in_batches_up_to_the_page(guest: System) -> None:
    guest[S.RDI], guest[S.RCX], guest[S.RDX] = 0x150FFC, 6, 0x80
    assert guest.execute("rep insb; hlt") == S.EXIT_PIO
    assert (guest[S.PIO_COUNT], guest[S.RCX]) == (4, 6)
    guest.write_cpu(S.PIO_DATA, b"abcd")
    guest.function("complete_pio")
    assert guest.run() == S.EXIT_PIO
    assert (guest[S.PIO_COUNT], guest[S.RCX], guest[S.RDI]) == (2, 2, 0x151000)
    guest.write_cpu(S.PIO_DATA, b"ef")
    guest.function("complete_pio")
    assert guest.run() == S.EXIT_HLT
    assert guest.read(0x150FFC, 6) == b"abcdef"


def test_memory_mapped_io(guest: System) -> None:
    """A read is asked for and executed again with the answer; a write is reported with its instruction done."""
    guest.map(0x40000000)
    guest[S.RBX] = 0x40000010
    assert guest.execute("mov eax, [rbx]; add eax, 1; mov [rbx], ax; hlt") == S.EXIT_MMIO_READ
    assert (guest[S.MMIO_GPA], guest[S.MMIO_SIZE], guest[S.RIP]) == (0x40000010, 4, CODE)
    guest.answer(b"\xff\xff\x00\x00")
    assert guest.run() == S.EXIT_MMIO_WRITE
    assert guest[S.RAX] == 0x10000
    assert guest.words_cpu(S.MMIO_QUEUE, 3) == [0x40000010, 2, 0]
    guest[S.MMIO_WRITES] = 0
    assert guest.run() == S.EXIT_HLT


def test_read_modify_write_of_mmio(guest: System) -> None:
    guest.map(0x40000000)
    guest[S.RBX] = 0x40000010
    assert guest.execute("lock add dword ptr [rbx], 5; hlt") == S.EXIT_MMIO_READ
    guest.answer(b"\x01\x00\x00\x00")
    assert guest.run() == S.EXIT_MMIO_WRITE
    assert guest.words_cpu(S.MMIO_QUEUE, 3) == [0x40000010, 4, 6]


def test_interrupt_waits_for_the_flag_and_the_shadow(guest: System) -> None:
    """STI holds interrupts off for one instruction."""
    guest[S.INTR_REQUEST], guest[S.REQUEST] = 0x30 + 1, S.REQ_EVENT
    assert guest.execute("mov eax, 1; sti; mov eax, 2; mov eax, 3; hlt") == S.EXIT_HLT
    assert (guest.frame()["vector"], guest[S.RAX]) == (0x30, 2)


def test_interrupt_window(guest: System) -> None:
    guest[S.IRQ_WINDOW], guest[S.REQUEST] = 1, S.REQ_EVENT
    assert guest.execute("mov eax, 1; sti; mov eax, 2; mov eax, 3; hlt") == S.EXIT_IRQ_WINDOW
    assert guest[S.RAX] == 2


def test_trap_flag(guest: System) -> None:
    """Each instruction traps after it, with DR6.BS."""
    assert guest.execute("pushfq; or dword ptr [rsp], 0x100; popfq; mov eax, 1; mov eax, 2; hlt") == S.EXIT_HLT
    assert (guest.frame()["vector"], guest[S.RAX], guest[S.DR6] & 1 << 14) == (S.DB, 1, 1 << 14)


def test_stop_request(guest: System) -> None:
    guest[S.REQUEST] = S.REQ_STOP
    assert guest.execute("jmp _start") == S.EXIT_INTERRUPTED
    assert guest[S.REQUEST] == 0


def test_code_that_changes_its_successor(guest: System) -> None:
    """The instruction after the store is the new one."""
    assert guest.execute("mov byte ptr [rip + target + 1], 9; target: mov eax, 1; hlt") == S.EXIT_HLT
    assert guest[S.RAX] == 9


def test_code_changed_from_outside(guest: System) -> None:
    assert guest.execute("mov eax, 1; hlt") == S.EXIT_HLT
    assert guest.execute("mov eax, 2; hlt") == S.EXIT_HLT
    assert guest[S.RAX] == 2


def test_instruction_across_pages(guest: System) -> None:
    guest.write(CODE + 0xFFD, assemble("mov eax, 0x11223344; hlt", CODE + 0xFFD))
    guest[S.RIP] = CODE + 0xFFD
    assert guest.run() == S.EXIT_HLT
    assert guest[S.RAX] == 0x11223344
    guest.write(CODE + 0x1000, b"\x55\x55")  # its immediate's upper half, on the other page
    guest[S.RIP] = CODE + 0xFFD
    guest.run()
    assert guest[S.RAX] == 0x55553344


def test_too_long_an_instruction(guest: System) -> None:
    guest.write(CODE, b"\x66" * 15 + b"\x90")
    guest[S.RIP] = CODE
    assert guest.run() == S.EXIT_HLT
    assert guest.frame(error=True)["vector"] == S.GP


@pytest.mark.parametrize(
    "code",
    [
        "f20f38f803",  # enqcmd rax, [rbx]: of a feature that there is not
        "0f0e",  # femms
        "0f37",  # getsec: without CR4.SMXE
        "0f78c0",  # vmread: without CR4.VMXE
        "f30f3800c1",  # pshufb with the prefix of no form
        "62f17c4858c0",  # vaddps with an EVEX prefix
        "8fe878b6c000",  # XOP
        "0faa",  # rsm outside of SMM
    ],
)
def test_what_there_is_not_is_undefined(guest: System, code: str) -> None:
    guest.write(CODE, bytes.fromhex("90" + code) + bytes(8))
    guest[S.RIP] = CODE
    assert guest.run() == S.EXIT_HLT
    assert guest.frame()["vector"] == S.UD
    assert guest.frame()["rip"] == CODE + 1


def test_fxsave_and_back(guest: System) -> None:
    guest.write_cpu(S.VEC, bytes(range(16)))
    assert guest.execute("fxsave64 [0x150000]; pxor xmm0, xmm0; fxrstor64 [0x150000]; hlt") == S.EXIT_HLT
    assert guest.read_cpu(S.VEC, 16) == bytes(range(16)) == guest.read(0x150000 + 160, 16)
    assert guest.execute("fxsave64 [0x150008]") == S.EXIT_HLT
    assert guest.frame(error=True)["vector"] == S.GP


def test_locked_increment_from_two_threads() -> None:
    """Two processors, one memory: guest atomics are host atomics."""
    first, second = System(), System()
    second.share(first)
    first.write(CODE, assemble("mov ecx, 200000; again: lock inc qword ptr [0x150000]; dec ecx; jnz again; hlt", CODE))
    for guest in (first, second):
        guest[S.RIP] = CODE
        guest.derive()
    threads = [threading.Thread(target=guest.run) for guest in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert first.words(0x150000, 1) == [400000]


def test_an_address_space_that_is_not_flushed_is_another_all_the_same() -> None:
    """CR4.PCIDE: a CR3 whose bit 63 is set keeps what is cached of its own PCID, not of the one before (4.10.4.1)."""
    guest = System()
    window, other = 0x4000_0000, 0x200000
    for pml4, pdpt, target in ((0x5000, 0x6000, 0x3000), (0x7000, 0x8000, 0x4000)):
        guest.write(pml4, struct.pack("<Q", pdpt | 7))
        guest.write(pdpt, guest.read(0x2000, 8) + struct.pack("<Q", target | 7))
    guest.write(0x3000, struct.pack("<Q", 0x87))
    guest.write(0x4000, struct.pack("<Q", other | 0x87))
    guest.write(0x9000, b"old page")
    guest.write(other + 0x9000, b"new page")
    guest[S.CR3], guest[S.CR4] = 0x5000, guest[S.CR4] | S.CR4_PCIDE
    guest.function("tlb_init")
    guest[S.RBX], guest[S.RSI] = window + 0x9000, 1 << 63 | 0x7001
    guest.execute("mov rax, [rbx]; mov cr3, rsi; mov rdx, [rbx]; hlt")
    assert [guest[at].to_bytes(8, "little") for at in (S.RAX, S.RDX)] == [b"old page", b"new page"]


@pytest.mark.parametrize("text", ["wrmsr", "wrgsbase rbx", "lgdt [rsp - 16]", "invlpg [rbx]"])
@pytest.mark.parametrize(("address", "fits"), [(1 << 46, True), (1 << 55, True), (1 << 56, False)])
def test_what_registers_keep_may_have_57_bits(guest: System, text: str, address: int, fits: bool) -> None:
    """With four levels of paging too, as on processors that have five: bases, MSRs; INVLPG never faults."""
    guest[S.CR4] |= S.CR4_FSGSBASE
    guest.write(STACK - 16, struct.pack("<HQ", 0x37, address))
    guest[S.RBX], guest[S.RCX] = address, 0xC0000102
    guest[S.RAX], guest[S.RDX] = address & 0xFFFFFFFF, address >> 32
    guest.execute(f"{text}; mov ecx, 7; hlt")
    assert (guest[S.RCX] == 7) == (fits or text == "invlpg [rbx]")
