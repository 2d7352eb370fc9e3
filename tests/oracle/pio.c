/* Port I/O: sizes, string forms, repetition, direction, page crossings, and what is there between exits. */
#include "client.h"

GUEST(sizes, "out %al, $0x10\n out %ax, $0x11\n out %eax, $0x12\n out %al, %dx\n out %ax, %dx\n out %eax, %dx\n"
	"in $0x20, %al\n in $0x21, %ax\n in $0x22, %eax\n in %dx, %al\n in %dx, %ax\n in %dx, %eax\n hlt");
GUEST(outs, "outsb\n outsw\n outsl\n rep outsb\n mov $3, %ecx\n rep outsw\n mov $3, %ecx\n rep outsl\n hlt");
GUEST(ins, "insb\n insw\n insl\n rep insb\n mov $3, %ecx\n rep insw\n mov $3, %ecx\n rep insl\n hlt");
GUEST(backwards, "std\n rep insw\n mov $3, %ecx\n rep outsw\n cld\n hlt");
GUEST(nothing, "xor %ecx, %ecx\n rep insb\n rep outsl\n hlt");
GUEST(crossing_out, "mov $0x4FFE, %esi\n rep outsl\n hlt");
GUEST(crossing_in, "mov $0x4FFE, %edi\n rep insl\n hlt");
GUEST(many, "mov $3000, %ecx\n mov $0x4010, %edi\n rep insb\n hlt");
GUEST(address32, "mov $0xF00000003, %rcx\n mov $0xF00004000, %rsi\n addr32 rep outsb\n hlt");
GUEST(absent_out, "mov $0x5FFFFE, %esi\n outsl\n hlt");
GUEST(absent_in, "mov $0x5FFFFE, %edi\n insl\n hlt");
GUEST(from_mmio, "mov %r8, %rsi\n outsl\n hlt");
GUEST(to_mmio, "mov %r8, %rdi\n insl\n hlt");

static void after_in(void)
{
	printf("-- registers between an IN and its completion\n");
	start(sizes, sizes_end);
	for (int i = 0; i < 7; i++)
		step();
	tell_regs();
	answer();
	step();
	tell_regs();
	end_read();
	finish();
}

int main(void)
{
	make_vm();
	START(sizes), finish();
	START(outs), finish();
	START(ins), finish();
	tell_bytes("stored", memory + DATA + 0x800, 32);
	START(backwards), finish();
	START(nothing), finish();
	START(crossing_out), finish();
	START(crossing_in), finish();
	tell_bytes("stored", memory + 0x4FFE, 16);
	START(many), finish();
	tell_bytes("stored", memory + 0x4010, 16);
	START(address32), finish();
	START(absent_out), finish();
	START(absent_in), finish();
	START(from_mmio), finish();
	START(to_mmio), finish();
	after_in();
	return 0;
}
