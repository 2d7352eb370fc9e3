/*
 * A VMM that is looked at: one vCPU, 2 MiB of shared memory and as much private memory behind it. It says its pid, then
 * does what it reads: "out": run to the next exit, which is OUT 0x55 to port 0x10; "fault": touch private memory that
 * is shared still, and convert it; "spin": run a loop in a thread; "end" or the end of input.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define MEMORY (2 << 20)
#define PRIVATE 0x200000
#define CODE 0x1000
#define FAULT_CODE 0x1100
#define SPIN_CODE 0x1200
#define TABLES 0x10000

static int kvm, vm, vcpu, gmem;
static struct kvm_run *run;

static int must(int result, const char *what)
{
	if (result < 0) {
		perror(what);
		exit(1);
	}
	return result;
}

static void create(void)
{
	/* mov al, 0x55; out 0x10, al; jmp -6 */
	static const uint8_t out[] = { 0xb0, 0x55, 0xe6, 0x10, 0xeb, 0xfa };
	/* mov [0x200000], rax; jmp CODE */
	static const uint8_t fault[] = { 0x48, 0x89, 0x04, 0x25, 0, 0, 0x20, 0, 0xe9, 0xf3, 0xfe, 0xff, 0xff };
	/* inc rax; jmp -5 */
	static const uint8_t spin[] = { 0x48, 0xff, 0xc0, 0xeb, 0xfb };
	uint8_t *memory;

	kvm = must(open("/dev/kvm", O_RDWR), "/dev/kvm");
	vm = must(ioctl(kvm, KVM_CREATE_VM, KVM_X86_SW_PROTECTED_VM), "KVM_CREATE_VM");
	memory = mmap(NULL, 2 * MEMORY, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	memcpy(memory + CODE, out, sizeof out);
	memcpy(memory + FAULT_CODE, fault, sizeof fault);
	memcpy(memory + SPIN_CODE, spin, sizeof spin);
	*(uint64_t *)(memory + TABLES) = (TABLES + 0x1000) | 3;
	*(uint64_t *)(memory + TABLES + 0x1000) = (TABLES + 0x2000) | 3;
	*(uint64_t *)(memory + TABLES + 0x2000) = 0x83;
	*(uint64_t *)(memory + TABLES + 0x2008) = 0x200083;

	struct kvm_create_guest_memfd file = { .size = MEMORY };
	gmem = must(ioctl(vm, KVM_CREATE_GUEST_MEMFD, &file), "KVM_CREATE_GUEST_MEMFD");
	struct kvm_userspace_memory_region2 low = {
		.slot = 0, .memory_size = MEMORY, .userspace_addr = (uintptr_t)memory,
	};
	struct kvm_userspace_memory_region2 high = {
		.slot = 1, .flags = KVM_MEM_GUEST_MEMFD, .guest_phys_addr = PRIVATE, .memory_size = MEMORY,
		.userspace_addr = (uintptr_t)memory + MEMORY, .guest_memfd = gmem,
	};
	must(ioctl(vm, KVM_SET_USER_MEMORY_REGION2, &low), "slot 0");
	must(ioctl(vm, KVM_SET_USER_MEMORY_REGION2, &high), "slot 1");
	vcpu = must(ioctl(vm, KVM_CREATE_VCPU, 0), "KVM_CREATE_VCPU");
	run = mmap(NULL, must(ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), "size"), PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);

	struct kvm_cpuid2 *cpuid = calloc(1, sizeof *cpuid + 100 * sizeof *cpuid->entries);
	cpuid->nent = 100;
	must(ioctl(kvm, KVM_GET_SUPPORTED_CPUID, cpuid), "KVM_GET_SUPPORTED_CPUID");
	must(ioctl(vcpu, KVM_SET_CPUID2, cpuid), "KVM_SET_CPUID2");
	free(cpuid);

	struct kvm_sregs sregs;
	must(ioctl(vcpu, KVM_GET_SREGS, &sregs), "KVM_GET_SREGS");
	sregs.cr0 = 0x80000031, sregs.cr3 = TABLES, sregs.cr4 = 0x20, sregs.efer = 0x500;
	struct kvm_segment code = { .limit = ~0u, .selector = 8, .type = 11, .present = 1, .s = 1, .l = 1, .g = 1 };
	struct kvm_segment data = { .limit = ~0u, .selector = 16, .type = 3, .present = 1, .s = 1, .db = 1, .g = 1 };
	sregs.cs = code;
	sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = data;
	must(ioctl(vcpu, KVM_SET_SREGS, &sregs), "KVM_SET_SREGS");
}

static void set_rip(uint64_t rip)
{
	struct kvm_regs regs = { .rip = rip, .rsp = 0x8000, .rflags = 2 };

	must(ioctl(vcpu, KVM_SET_REGS, &regs), "KVM_SET_REGS");
}

static void attributes(uint64_t address, uint64_t size, uint64_t attributes)
{
	struct kvm_memory_attributes range = { .address = address, .size = size, .attributes = attributes };

	must(ioctl(vm, KVM_SET_MEMORY_ATTRIBUTES, &range), "KVM_SET_MEMORY_ATTRIBUTES");
}

/* Private where the slot has no guest_memfd page any more: a memory fault. */
static void fault(void)
{
	struct kvm_userspace_memory_region2 gone = { .slot = 1 };

	attributes(PRIVATE, MEMORY, KVM_MEMORY_ATTRIBUTE_PRIVATE);
	gone.flags = KVM_MEM_GUEST_MEMFD;
	must(ioctl(vm, KVM_SET_USER_MEMORY_REGION2, &gone), "delete");
	set_rip(FAULT_CODE);
	if (ioctl(vcpu, KVM_RUN, 0) != -1 || errno != EFAULT || run->exit_reason != KVM_EXIT_MEMORY_FAULT) {
		fprintf(stderr, "no memory fault but exit %d\n", run->exit_reason);
		exit(1);
	}
	printf("%#llx\n", (unsigned long long)run->memory_fault.gpa);
	set_rip(CODE);
}

static void *spin(void *unused)
{
	set_rip(SPIN_CODE);
	ioctl(vcpu, KVM_RUN, 0);
	return NULL;
}

int main(void)
{
	char word[16];
	pthread_t thread;

	setvbuf(stdout, NULL, _IOLBF, 0);
	create();
	set_rip(CODE);
	printf("%d\n", getpid());
	while (scanf("%15s", word) == 1) {
		if (!strcmp(word, "out")) {
			must(ioctl(vcpu, KVM_RUN, 0), "KVM_RUN");
			printf("%#x\n", run->io.port);
		} else if (!strcmp(word, "fault")) {
			fault();
		} else if (!strcmp(word, "spin")) {
			must(-pthread_create(&thread, NULL, spin, NULL), "pthread_create");
			printf("spinning\n");
		} else if (!strcmp(word, "fail")) {
			printf("%d\n", ioctl(vm, KVM_CREATE_VCPU, 0) < 0 ? errno : 0);
		} else {
			break;
		}
	}
	return 0;
}
