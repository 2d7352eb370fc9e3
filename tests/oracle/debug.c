/* The VMM as the guest's debugger: single steps, injected #DB and #BP, interrupts held back; debug registers of the guest.
 *
 * The processor that the real KVM runs on here is QEMU's, which knows neither breakpoint addresses in a guest nor the
 * interception of INT3: what needs these is in tests/cpu/test_debug.py, and in the kernel's debug_regs. And KVM forgets
 * about single steps at an instruction that it has emulated, until it is told again: the last one is such. */
#include "client.h"

GUEST(steps, "nop\n mov $1, %eax\n pushf\n pop %rax\n cpuid\n out %al, $0x80\n mov (%r8), %ecx\n hlt");
GUEST(strings, "mov $3, %ecx\n rep movsb\n nop\n hlt");
GUEST(faults, "nop\n ud2");
GUEST(breakpoint, "nop\n int3\n nop\n hlt");
GUEST(nops, "nop\n nop\n nop\n nop\n hlt");
GUEST(at_breakpoint, "int3\n nop\n hlt");
GUEST(registers, "mov %dr7, %rax\n mov $0x1002, %ecx\n mov %rcx, %dr0\n mov $0x401, %ecx\n mov %rcx, %dr7\n nop\n mov %dr6, %rdx\n mov %dr7, %rsi\n hlt");
GUEST(loops, "mov $2, %ecx\n 1: loop 1b\n jmp 2f\n nop\n 2: hlt");

static int debug(uint32_t control, const uint64_t *registers)
{
	struct kvm_guest_debug d = { .control = control };
	if (registers)
		memcpy(d.arch.debugreg, registers, sizeof(d.arch.debugreg));
	int result = ioctl(vcpu, KVM_SET_GUEST_DEBUG, &d);
	printf("debug %x = %s\n", control, outcome(result));
	return result;
}

static void tell_debugregs(void)
{
	struct kvm_debugregs d;
	ioctl(vcpu, KVM_GET_DEBUGREGS, &d);
	printf("  db %llx %llx %llx %llx dr6 %llx dr7 %llx\n", d.db[0], d.db[1], d.db[2], d.db[3], d.dr6, d.dr7);
}

static void plain_debugregs(void)
{
	struct kvm_debugregs d = { .dr6 = 0xFFFF0FF0, .dr7 = 0x400 };
	ioctl(vcpu, KVM_SET_DEBUGREGS, &d);
}

/* Run to HLT or an error, and tell of every exit on the way. */
static void follow(int most)
{
	for (int exits = 0; exits < most; exits++) {
		memset(&run->debug.arch, 0x5A, sizeof(run->debug.arch));
		int reason = step();
		if (reason == KVM_EXIT_DEBUG) {
			struct kvm_debug_exit_arch *d = &run->debug.arch;
			printf("  debug exception %d pc %llx", d->exception, d->pc);
			if (d->exception == 1)
				printf(" dr6 %llx", d->dr6); /* DR7 is left alone where KVM emulates */
			printf("\n");
		} else if (reason != KVM_EXIT_IO && reason != KVM_EXIT_MMIO) {
			break;
		}
		answer();
	}
	tell_regs();
	tell_debugregs();
}

#define FOLLOW(name, most) (START(name), follow(most))

/* Single steps are taken from the RIP at which KVM_SET_GUEST_DEBUG is called. */
#define STEPS(name, control, most) (START(name), debug(KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP | (control), NULL), follow(most))

static void single_steps(void)
{
	printf("== single steps\n");
	STEPS(steps, 0, 20);
	STEPS(strings, 0, 12);
	STEPS(loops, 0, 12);
	STEPS(faults, 0, 6);
	debug(0, NULL);
	plain_debugregs();
}

static void software(void)
{
	printf("== software breakpoints\n");
	debug(0, NULL);
	FOLLOW(breakpoint, 2);
	tell_stack();
	debug(KVM_GUESTDBG_USE_SW_BP, NULL); /* without ENABLE */
	FOLLOW(breakpoint, 2);
	debug(0x80000000, NULL);
}

static void own(void)
{
	printf("== the guest's own\n");
	FOLLOW(registers, 4);
	tell_stack();
	plain_debugregs();
}

static void injected(void)
{
	printf("== injected\n");
	START(nops);
	debug(KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_INJECT_DB, NULL);
	debug(KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_INJECT_BP, NULL); /* one is pending */
	follow(2);
	tell_stack();
	plain_debugregs();
	START(at_breakpoint);
	debug(KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_INJECT_BP, NULL);
	follow(2);
	tell_stack();
	debug(0, NULL);
}

static void blocked(void)
{
	struct kvm_interrupt interrupt = { 0x41 };
	printf("== interrupts held back\n");
	START(nops);
	regs.rflags = 0x202;
	ioctl(vcpu, KVM_SET_REGS, &regs);
	debug(KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_BLOCKIRQ, NULL);
	run->request_interrupt_window = 1;
	follow(1);
	TELL(ioctl(vcpu, KVM_INTERRUPT, &interrupt));
	follow(2);
	run->request_interrupt_window = 0;
	debug(0, NULL);
	follow(2);
	tell_stack();
}

int main(void)
{
	make_vm();
	single_steps();
	software();
	own();
	injected();
	blocked();
	return 0;
}
