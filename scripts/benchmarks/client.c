/*
 * A KVM client that measures.  It knows nothing of kvmfs.  Each measurement prints one number, the best of several.
 *
 *	client roundtrip N	ns	KVM_RUN of a guest that does nothing but `out`: exit, and enter again
 *	client create N		us	KVM_CREATE_VM and KVM_CREATE_VCPU
 *	client touch PAGES	ns	the guest's first write to a page of anonymous memory, all in
 *	client attributes	us	KVM_SET_MEMORY_ATTRIBUTES over 1 TiB
 *	client idle		-	a VM with one vCPU and 1 MiB of memory, until stdin is closed
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <linux/kvm.h>

enum { PAGE = 4096, CODE = 0x1000, TABLES = 0x2000, LOW_SIZE = 0x100000, CPUID_ENTRIES = 256 };
#define DATA 0x40000000UL	/* page tables map 4 GiB one to one */

asm(".pushsection .rodata\n"
    "guest_out: 1: out %al, $1; jmp 1b\n"
    "guest_out_end:\n"
    /* rsi: an address; rcx: a number of pages; touch each, then out */
    "guest_touch: 1: movb $1, (%rsi); add $4096, %rsi; dec %rcx; jnz 1b; 2: out %al, $1; jmp 2b\n"
    "guest_touch_end:\n"
    ".popsection\n");
extern const char guest_out[], guest_out_end[], guest_touch[], guest_touch_end[];

static int kvm_fd;

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static int kvm(int fd, unsigned long request, void *argument)
{
	int result = ioctl(fd, request, argument);

	if (result < 0) {
		fprintf(stderr, "ioctl %#lx: ", request);
		die("");
	}
	return result;
}

static double now(void)	/* ns */
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e9 + t.tv_nsec;
}

static void better(double *best, double value)
{
	if (!*best || value < *best)
		*best = value;
}

struct vm {
	int vm, vcpu;
	uint8_t *low;
	struct kvm_run *run;
	size_t run_size;
};

static uint8_t *add_slot(int vm, int slot, uint64_t gpa, uint64_t size)
{
	uint8_t *address = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct kvm_userspace_memory_region region = {
		.slot = slot, .guest_phys_addr = gpa, .memory_size = size, .userspace_addr = (uintptr_t)address,
	};

	if (address == MAP_FAILED)
		die("mmap");
	kvm(vm, KVM_SET_USER_MEMORY_REGION, &region);
	return address;
}

/* A VM with one vCPU in 64-bit mode, about to run `code`. */
static struct vm create(const char *code, const char *end)
{
	struct kvm_segment cs = { .limit = ~0u, .selector = 8, .type = 11, .present = 1, .s = 1, .l = 1, .g = 1 };
	struct kvm_segment ds = { .limit = ~0u, .selector = 16, .type = 3, .present = 1, .s = 1, .db = 1, .g = 1 };
	struct kvm_regs regs = { .rip = CODE, .rflags = 2 };
	struct kvm_sregs sregs;
	struct kvm_cpuid2 *cpuid = calloc(1, sizeof(*cpuid) + CPUID_ENTRIES * sizeof(cpuid->entries[0]));
	struct vm vm = { .vm = kvm(kvm_fd, KVM_CREATE_VM, 0) };
	uint64_t *tables;

	vm.low = add_slot(vm.vm, 0, 0, LOW_SIZE);
	memcpy(vm.low + CODE, code, end - code);
	tables = (void *)(vm.low + TABLES);
	tables[0] = (TABLES + PAGE) | 3;
	for (int i = 0; i < 4; i++)
		tables[512 + i] = (TABLES + (2 + i) * PAGE) | 3;
	for (int i = 0; i < 4 * 512; i++)
		tables[1024 + i] = i * 0x200000UL | 0x83;

	vm.vcpu = kvm(vm.vm, KVM_CREATE_VCPU, 0);
	vm.run_size = kvm(kvm_fd, KVM_GET_VCPU_MMAP_SIZE, 0);
	vm.run = mmap(NULL, vm.run_size, PROT_READ | PROT_WRITE, MAP_SHARED, vm.vcpu, 0);
	if (vm.run == MAP_FAILED)
		die("mmap(vCPU)");
	/* Long mode must be in the vCPU's CPUID before EFER may have it. */
	cpuid->nent = CPUID_ENTRIES;
	kvm(kvm_fd, KVM_GET_SUPPORTED_CPUID, cpuid);
	kvm(vm.vcpu, KVM_SET_CPUID2, cpuid);
	free(cpuid);
	kvm(vm.vcpu, KVM_GET_SREGS, &sregs);
	sregs.cr0 = 0x80000001;
	sregs.cr3 = TABLES;
	sregs.cr4 = 0x20;
	sregs.efer = 0x500;
	sregs.cs = cs;
	sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = ds;
	kvm(vm.vcpu, KVM_SET_SREGS, &sregs);
	kvm(vm.vcpu, KVM_SET_REGS, &regs);
	return vm;
}

static void destroy(struct vm *vm)
{
	munmap(vm->run, vm->run_size);
	munmap(vm->low, LOW_SIZE);
	close(vm->vcpu);
	close(vm->vm);
}

static void run_to_out(struct vm *vm)
{
	kvm(vm->vcpu, KVM_RUN, 0);
	if (vm->run->exit_reason != KVM_EXIT_IO) {
		fprintf(stderr, "unexpected exit %u\n", vm->run->exit_reason);
		exit(1);
	}
}

static double roundtrip(int count)
{
	struct vm vm = create(guest_out, guest_out_end);
	double best = 0;

	run_to_out(&vm);
	for (int batch = 0; batch < 50; batch++) {
		double start = now();

		for (int i = 0; i < count; i++)
			run_to_out(&vm);
		better(&best, (now() - start) / count);
	}
	destroy(&vm);
	return best;
}

static double create_vms(int count)
{
	double best = 0;

	for (int i = 0; i < count; i++) {
		double start = now();
		int vm = kvm(kvm_fd, KVM_CREATE_VM, 0), vcpu = kvm(vm, KVM_CREATE_VCPU, 0);

		better(&best, (now() - start) / 1e3);
		close(vcpu);
		close(vm);
	}
	return best;
}

static double touch(uint64_t pages)
{
	double best = 0;

	for (int i = 0; i < 5; i++) {
		struct vm vm = create(guest_touch, guest_touch_end);
		uint8_t *data = add_slot(vm.vm, 1, DATA, pages * PAGE);
		struct kvm_regs regs;
		double start;

		kvm(vm.vcpu, KVM_GET_REGS, &regs);
		regs.rsi = DATA;
		regs.rcx = pages;
		kvm(vm.vcpu, KVM_SET_REGS, &regs);
		start = now();
		run_to_out(&vm);
		better(&best, (now() - start) / pages);
		if (data[0] != 1 || data[(pages - 1) * PAGE] != 1) {
			fprintf(stderr, "the guest's writes are not here\n");
			exit(1);
		}
		destroy(&vm);
		munmap(data, pages * PAGE);
	}
	return best;
}

static double attributes(void)
{
	int vm = kvm(kvm_fd, KVM_CREATE_VM, (void *)KVM_X86_SW_PROTECTED_VM);
	double best = 0;

	for (int i = 0; i < 20; i++) {
		struct kvm_memory_attributes request = {
			.address = 1UL << 32,
			.size = 1UL << 40,
			.attributes = i & 1 ? 0 : KVM_MEMORY_ATTRIBUTE_PRIVATE,
		};
		double start = now();

		kvm(vm, KVM_SET_MEMORY_ATTRIBUTES, &request);
		better(&best, (now() - start) / 1e3);
	}
	close(vm);
	return best;
}

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "";
	int count = argc > 2 ? atoi(argv[2]) : 0;
	double result = 0;

	kvm_fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (kvm_fd < 0)
		die("/dev/kvm");
	if (!strcmp(what, "roundtrip")) {
		result = roundtrip(count ? count : 4000);
	} else if (!strcmp(what, "create")) {
		result = create_vms(count ? count : 20);
	} else if (!strcmp(what, "touch")) {
		result = touch(count ? count : 16384);
	} else if (!strcmp(what, "attributes")) {
		result = attributes();
	} else if (!strcmp(what, "idle")) {
		struct vm vm = create(guest_out, guest_out_end);

		run_to_out(&vm);
		printf("ready\n");
		fflush(stdout);
		return read(0, &vm, 1) < 0;
	} else {
		fprintf(stderr, "which measurement?\n");
		return 2;
	}
	printf("%.1f\n", result);
	return 0;
}
