/*
 * How long a guest waits for its interrupts.  It knows nothing of kvmfs.  Each measurement prints the median and the
 * 99th percentile, in microseconds; a guest's by its time stamp counter.
 *
 *	latency host		clock_nanosleep() of this very program: nobody's timers can be better than that
 *	latency deadline	from the TSC deadline to the timer's handler, the vCPU in HLT
 *	latency oneshot		from the end of a one-shot count to the handler, the vCPU in HLT
 *	latency ipi		from a vCPU's write to the ICR to the handler of the answer, both vCPUs spinning
 *	latency wake		from a vCPU's write to the ICR to the handler of another one, which was in HLT
 */
#include "machine.h"
#include <pthread.h>
#include <sys/prctl.h>

#define NSEC 1000000000L

enum {
	GDT = 0x500, IDT = 0x600, STACKS = 0x10000, SHARED = 0x20000, SAMPLES = 0x30000,
	COUNT = 2000, VECTOR = 0x40, INTERVAL = 200000,	/* ns */
	X2APIC = 1 << 21, TSC_DEADLINE = 1 << 24,	/* CPUID leaf 1, ECX */
};

/* Every guest: rdi: where samples go; rcx in r12: how many; r8: an interval.  r15, the other's `start`: SHARED. */
asm(".pushsection .rodata\n"
    ".macro stamp reg\n rdtsc; shl $32, %rdx; lea (%rax,%rdx), \\reg\n .endm\n"
    ".macro msr number, value\n mov $\\number, %ecx; mov $\\value, %eax; xor %edx, %edx; wrmsr\n .endm\n"
    ".macro begin\n msr 0x80f, 0x1ff; msr 0x83e, 0xb\n .endm\n"	/* software enabled; count by 1 */
    ".macro sample\n mov %r10, (%rdi); add $8, %rdi; dec %r12; jnz 1b; 9: out %al, $1; jmp 9b\n .endm\n"

    "guest_deadline: begin; msr 0x832, 0x40040\n"
    "1: stamp %r9; add %r8, %r9; mov %r9, %rax; mov %r9, %rdx; shr $32, %rdx; mov $0x6e0, %ecx; wrmsr\n"
    "sti; hlt; cli; sub %r9, %r10; sample\n"

    "guest_oneshot: begin; msr 0x832, 0x40\n"
    "1: stamp %r9; mov $0x838, %ecx; mov %r8, %rax; xor %edx, %edx; wrmsr\n"
    "sti; hlt; cli; sub %r9, %r10; sample\n"

    /* the handler of all that measure */
    "handler_stamp: stamp %r10; msr 0x80b, 0; iretq\n"

    "guest_ipi: begin; sti\n"
    "1: xor %r10d, %r10d; stamp %r9; mov $0x830, %ecx; mov $0x4040, %eax; mov $1, %edx; wrmsr\n"
    "2: pause; test %r10, %r10; jz 2b; sub %r9, %r10; sample\n"
    "guest_spin: begin; sti; 1: pause; jmp 1b\n"
    "handler_answer: msr 0x80b, 0; mov $0x830, %ecx; mov $0x4040, %eax; xor %edx, %edx; wrmsr; iretq\n"

    /* SHARED: where the sleeper's handler leaves its time; it is left alone until it sleeps again for sure */
    "guest_wake: begin\n"
    "1: mov %r8, %r13; 3: pause; dec %r13; jnz 3b\n"
    "movq $0, 0x20000; stamp %r9; mov $0x830, %ecx; mov $0x4040, %eax; mov $1, %edx; wrmsr\n"
    "2: pause; mov 0x20000, %r10; test %r10, %r10; jz 2b; sub %r9, %r10; sample\n"
    "guest_sleep: begin; 1: sti; hlt; jmp 1b\n"
    "handler_note: stamp %r10; mov %r10, 0x20000; msr 0x80b, 0; iretq\n"
    "guest_end: .popsection\n");
extern const char guest_deadline[], guest_oneshot[], guest_ipi[], guest_spin[], guest_wake[], guest_sleep[];
extern const char handler_stamp[], handler_answer[], handler_note[], guest_end[];

static uint8_t *low;

static uint64_t at(const char *label)
{
	return CODE + (label - guest_deadline);
}

/* One IDT a vCPU, whose gates all lead to `handler`. */
static int add_vcpu(int vm, int id, const char *code, const char *handler, uint64_t interval)
{
	int vcpu = kvm(vm, KVM_CREATE_VCPU, (void *)(uintptr_t)id);
	struct kvm_mp_state state = { .mp_state = KVM_MP_STATE_RUNNABLE };
	uint64_t *gate = (void *)(low + IDT + id * PAGE + VECTOR * 16), *gdt = (void *)(low + GDT);
	struct kvm_regs regs;
	struct kvm_sregs sregs;

	gdt[1] = 0xaf9b000000ffff;
	gdt[2] = 0xcf93000000ffff;
	gate[0] = (at(handler) & 0xffff) | 8 << 16 | 0x8e00UL << 32 | (at(handler) >> 16) << 48;
	set_cpuid(vcpu, X2APIC | TSC_DEADLINE);
	enter_long_mode(vcpu, at(code));
	kvm(vcpu, KVM_GET_SREGS, &sregs);
	sregs.apic_base |= 0x400;
	sregs.idt = (struct kvm_dtable){ .base = IDT + id * PAGE, .limit = PAGE - 1 };
	sregs.gdt = (struct kvm_dtable){ .base = GDT, .limit = 23 };
	kvm(vcpu, KVM_SET_SREGS, &sregs);
	kvm(vcpu, KVM_GET_REGS, &regs);
	regs.rsp = STACKS + (id + 1) * PAGE;
	regs.rdi = SAMPLES;
	regs.r12 = COUNT;
	regs.r8 = interval;
	kvm(vcpu, KVM_SET_REGS, &regs);
	kvm(vcpu, KVM_SET_MP_STATE, &state);
	return vcpu;
}

/* The other vCPU: until the program ends. */
static void *run_forever(void *vcpu)
{
	for (;;)
		kvm((int)(intptr_t)vcpu, KVM_RUN, 0);
	return NULL;
}

static void sleep_here(int64_t *samples)
{
	struct timespec t;

	prctl(PR_SET_TIMERSLACK, 1);
	for (int i = 0; i < COUNT; i++) {
		int64_t until;

		clock_gettime(CLOCK_MONOTONIC, &t);
		until = t.tv_sec * NSEC + t.tv_nsec + INTERVAL;
		t = (struct timespec){ .tv_sec = until / NSEC, .tv_nsec = until % NSEC };
		clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL);
		clock_gettime(CLOCK_MONOTONIC, &t);
		samples[i] = t.tv_sec * NSEC + t.tv_nsec - until;
	}
}

static int compare(const void *a, const void *b)
{
	int64_t x = *(int64_t *)a, y = *(int64_t *)b;

	return (x > y) - (x < y);
}

static void report(int64_t *samples, double per_microsecond)
{
	qsort(samples, COUNT, sizeof(*samples), compare);
	printf("%.1f %.1f\n", samples[COUNT / 2] / per_microsecond, samples[COUNT * 99 / 100] / per_microsecond);
}

static void measure(const char *what)
{
	int vm = kvm(kvm_fd, KVM_CREATE_VM, 0), khz = kvm(vm, KVM_GET_TSC_KHZ, 0), vcpu, other = -1;
	int64_t *samples, interval = INTERVAL * (int64_t)khz / 1000000, expected = 0;
	struct kvm_run *run;
	pthread_t thread;
	size_t size;

	kvm(vm, KVM_CREATE_IRQCHIP, 0);
	low = add_slot(vm, 0, 0, LOW_SIZE);
	map_one_to_one(low);
	memcpy(low + CODE, guest_deadline, guest_end - guest_deadline);
	samples = (void *)(low + SAMPLES);
	if (!strcmp(what, "deadline")) {
		vcpu = add_vcpu(vm, 0, guest_deadline, handler_stamp, interval);
	} else if (!strcmp(what, "oneshot")) {
		vcpu = add_vcpu(vm, 0, guest_oneshot, handler_stamp, INTERVAL);
		expected = interval;
	} else if (!strcmp(what, "ipi")) {
		vcpu = add_vcpu(vm, 0, guest_ipi, handler_stamp, 0);
		other = add_vcpu(vm, 1, guest_spin, handler_answer, 0);
	} else if (!strcmp(what, "wake")) {
		vcpu = add_vcpu(vm, 0, guest_wake, handler_stamp, INTERVAL / 20);
		other = add_vcpu(vm, 1, guest_sleep, handler_note, 0);
	} else {
		fprintf(stderr, "which measurement?\n");
		exit(2);
	}
	if (other >= 0)
		pthread_create(&thread, NULL, run_forever, (void *)(intptr_t)other);
	run = map_run(vcpu, &size);
	kvm(vcpu, KVM_RUN, 0);
	if (run->exit_reason != KVM_EXIT_IO) {
		fprintf(stderr, "unexpected exit %u\n", run->exit_reason);
		exit(1);
	}
	for (int i = 0; i < COUNT; i++)
		samples[i] -= expected;
	report(samples, khz / 1e3);
}

int main(int argc, char **argv)
{
	static int64_t samples[COUNT];
	const char *what = argc > 1 ? argv[1] : "";

	if (!strcmp(what, "host")) {
		sleep_here(samples);
		report(samples, 1e3);
		return 0;
	}
	kvm_fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (kvm_fd < 0)
		die("/dev/kvm");
	measure(what);
	return 0;
}
