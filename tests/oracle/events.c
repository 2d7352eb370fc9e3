/* HLT, shutdown, interrupts, NMIs and the window for them, exceptions that the VMM injects, with payload and without. */
#include "client.h"

GUEST(halts, "hlt\n hlt\n mov $1, %eax\n hlt");
GUEST(enables, "sti\n nop\n nop\n hlt\n hlt");
GUEST(sti_hlt, "sti\n hlt\n nop\n hlt");
GUEST(disabled, "nop\n nop\n hlt");
GUEST(undefined, "ud2");
GUEST(divides, "xor %ecx, %ecx\n div %ecx\n hlt");
GUEST(faults, "mov 0x600000, %eax\n hlt");
GUEST(nops, "nop\n nop\n nop\n hlt");
GUEST(software, "int $0x80\n hlt");
GUEST(breakpoint, "int3\n hlt");

static void tell_events(void)
{
	struct kvm_vcpu_events e;
	memset(&e, 0x5A, sizeof(e));
	if (ioctl(vcpu, KVM_GET_VCPU_EVENTS, &e) < 0) {
		printf("  events: %s\n", strerrorname_np(errno));
		return;
	}
	printf("  events: exception %d %d %d %d %x payload %d %llx, interrupt %d %d %d shadow %d, nmi %d %d %d, flags %x\n",
	       e.exception.injected, e.exception.nr, e.exception.has_error_code, e.exception.pending, e.exception.error_code,
	       e.exception_has_payload, e.exception_payload, e.interrupt.injected, e.interrupt.nr, e.interrupt.soft,
	       e.interrupt.shadow, e.nmi.injected, e.nmi.pending, e.nmi.masked, e.flags);
}

static void tell_debug(void)
{
	struct kvm_debugregs d;
	struct kvm_sregs s;
	ioctl(vcpu, KVM_GET_DEBUGREGS, &d);
	ioctl(vcpu, KVM_GET_SREGS, &s);
	printf("  cr2 %llx dr6 %llx dr7 %llx\n", s.cr2, d.dr6, d.dr7);
}

static void interrupt(unsigned vector)
{
	struct kvm_interrupt i = { vector };
	printf("KVM_INTERRUPT %u = %s\n", vector, outcome(ioctl(vcpu, KVM_INTERRUPT, &i)));
}

static void inject(int nr, int has_error, uint32_t error, int pending, int has_payload, uint64_t payload, uint32_t flags)
{
	struct kvm_vcpu_events e;
	ioctl(vcpu, KVM_GET_VCPU_EVENTS, &e);
	e.flags = flags;
	e.exception.injected = !pending;
	e.exception.pending = pending;
	e.exception.nr = nr;
	e.exception.has_error_code = has_error;
	e.exception.error_code = error;
	e.exception_has_payload = has_payload;
	e.exception_payload = payload;
	printf("inject %d error %d %x pending %d payload %d %llx flags %x = %s\n", nr, has_error, error, pending, has_payload,
	       (unsigned long long)payload, flags, outcome(ioctl(vcpu, KVM_SET_VCPU_EVENTS, &e)));
}

static void window(void)
{
	printf("-- a window for interrupts\n");
	start(enables, enables_end);
	run->request_interrupt_window = 1;
	step();
	tell_regs();
	tell_events();
	interrupt(0x41);
	tell_events();
	step();
	tell_regs();
	tell_stack();
	run->request_interrupt_window = 0;
	step();
	printf("-- a window that is open at once\n");
	start(nops, nops_end);
	regs.rflags = 0x202;
	ioctl(vcpu, KVM_SET_REGS, &regs);
	run->request_interrupt_window = 1;
	step();
	tell_regs();
	run->request_interrupt_window = 0;
	step();
	tell_regs();
}

int main(void)
{
	make_vm();
	START(halts), finish(), finish(), finish();
	tell_events();
	START(sti_hlt), finish(), finish();
	window();
	printf("-- an interrupt although IF is clear\n");
	start(disabled, disabled_end);
	interrupt(0x42);
	interrupt(0x43);
	tell_events();
	finish();
	tell_events();
	interrupt(256);
	interrupt(255);
	finish();
	printf("-- an interrupt that wakes nobody\n");
	start(halts, halts_end);
	step();
	interrupt(0x44);
	finish();
	printf("-- NMIs\n");
	start(nops, nops_end);
	TELL(ioctl(vcpu, KVM_NMI, 0));
	TELL(ioctl(vcpu, KVM_NMI, 0));
	TELL(ioctl(vcpu, KVM_NMI, 0));
	tell_events();
	finish();
	tell_events();
	finish();
	tell_events();
	START(undefined), finish();
	START(divides), finish();
	START(faults), finish(), tell_debug();
	START(software), finish();
	START(breakpoint), finish();

	printf("-- injected exceptions\n");
	start(nops, nops_end), inject(6, 0, 0, 0, 0, 0, 0), tell_events(), finish(), tell_events();
	start(nops, nops_end), inject(13, 1, 0x1234, 0, 0, 0, 0), finish(), tell_events();
	start(nops, nops_end), inject(14, 1, 2, 0, 0, 0x5000, 0), finish(), tell_debug();
	start(nops, nops_end), inject(1, 0, 0, 0, 0, 0, 0), finish(), tell_debug();
	start(nops, nops_end), inject(2, 0, 0, 0, 0, 0, 0), inject(32, 0, 0, 0, 0, 0, 0), inject(6, 0, 0, 0, 0, 0, 0x40);
	start(nops, nops_end), inject(6, 0, 0, 1, 0, 0, 8), tell_events();
	start(nops, nops_end), inject(6, 0, 0, 0, 0, 0, 8), tell_events(), finish();

	printf("-- with payload\n");
	struct kvm_enable_cap payload = { .cap = KVM_CAP_EXCEPTION_PAYLOAD, .args = { 1 } };
	TELL(ioctl(vm, KVM_ENABLE_CAP, &payload));
	start(nops, nops_end), inject(14, 1, 2, 1, 1, 0x5000, 8), tell_events(), tell_debug(), finish(), tell_debug();
	start(nops, nops_end), inject(1, 0, 0, 1, 1, 0x4000, 8), tell_events(), finish(), tell_debug();
	start(nops, nops_end), inject(6, 0, 0, 1, 0, 0, 8), tell_events(), finish(), tell_events();
	start(nops, nops_end), inject(6, 0, 0, 0, 1, 7, 8), tell_events(), finish();
	start(nops, nops_end), inject(14, 1, 2, 1, 0, 0x6000, 8), tell_events(), finish(), tell_debug();
	payload.args[0] = 0;
	TELL(ioctl(vm, KVM_ENABLE_CAP, &payload));

	printf("-- shutdown\n");
	sregs.idt.limit = 0;
	/* SVM leaves no state behind a shutdown (KVM resets it), VMX does: only the exit is told. */
	START(undefined), step();
	return 0;
}
