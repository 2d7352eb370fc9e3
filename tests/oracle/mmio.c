/* MMIO: sizes, crossings between memory and MMIO, string and read-modify-write forms, the stack, what is no slot. */
#include "client.h"

GUEST(reads, "mov (%r8), %al\n mov 1(%r8), %ax\n mov 2(%r8), %eax\n mov 8(%r8), %rax\n movzbl 3(%r8), %ecx\n movswq 4(%r8), %rdx\n hlt");
GUEST(writes, "mov %al, (%r8)\n mov %ax, 1(%r8)\n mov %eax, 2(%r8)\n mov %rax, 8(%r8)\n movl $0x12345678, 16(%r8)\n hlt");
GUEST(vectors, "movups (%r8), %xmm1\n movups %xmm1, 16(%r8)\n movups %xmm1, 0x4100\n hlt");
GUEST(arithmetic, "add %eax, (%r8)\n add (%r8), %rax\n incw 4(%r8)\n lock xadd %ecx, 8(%r8)\n cmp %edx, (%r8)\n xchg %rdx, (%r8)\n hlt");
GUEST(bits, "btsl $5, (%r8)\n bt $3, %rdx\n notb (%r8)\n shll $3, (%r8)\n cmpxchg %ecx, (%r8)\n sete 4(%r8)\n hlt");
GUEST(movs_out, "mov %r8, %rdi\n rep movsl\n hlt");
GUEST(movs_in, "mov %r8, %rsi\n rep movsw\n hlt");
GUEST(movs_both, "mov %r8, %rsi\n lea 64(%r8), %rdi\n rep movsb\n hlt");
GUEST(stos, "mov %r8, %rdi\n rep stosq\n hlt");
GUEST(scas, "mov %r8, %rdi\n repne scasb\n hlt");
GUEST(cmps, "mov %r8, %rsi\n repe cmpsb\n hlt");
GUEST(lods, "mov %r8, %rsi\n lodsl\n hlt");
GUEST(into_mmio, "mov %rax, -3(%r8)\n hlt");
GUEST(out_of_mmio, "mov %rax, 0xFFD(%r8)\n hlt");
GUEST(read_into_mmio, "mov -3(%r8), %rax\n hlt");
GUEST(read_out_of_mmio, "mov 0xFFD(%r8), %rax\n hlt");
GUEST(stack, "lea 64(%r8), %rsp\n push %rbp\n pop %rcx\n push $0x77\n mov $0x9000, %esp\n hlt");
GUEST(calls, "lea 64(%r8), %rsp\n call 1f\n1: mov $0x9000, %esp\n hlt");
GUEST(fetch, "jmp *%r8");
GUEST(absent, "mov 0x600000, %eax\n hlt");
GUEST(two_operands, "push (%r8)\n pop 8(%r8)\n hlt");

static void between(void)
{
	printf("-- state while a read is pending, and immediate_exit\n");
	start(reads, reads_end);
	step();
	tell_regs();
	end_read();
	finish();
}

int main(void)
{
	make_vm();
	START(reads), finish();
	START(writes), finish();
	START(vectors), finish();
	tell_bytes("stored", memory + 0x4100, 16);
	START(arithmetic), finish();
	START(bits), finish();
	START(movs_out), finish();
	START(movs_in), finish();
	tell_bytes("stored", memory + DATA + 0x800, 8);
	START(movs_both), finish();
	START(stos), finish();
	START(scas), finish();
	START(cmps), finish();
	START(lods), finish();
	START(into_mmio), finish();
	tell_bytes("stored", memory + EDGE_GPA + 0xFF8, 8);
	START(out_of_mmio), finish();
	tell_bytes("stored", memory + EDGE_GPA, 8);
	START(read_into_mmio), finish();
	START(read_out_of_mmio), finish();
	START(stack), finish();
	START(calls), finish();
	START(two_operands), finish();
	START(absent), finish();
	START(fetch), finish();
	between();
	return 0;
}
