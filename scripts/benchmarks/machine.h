/* What the programs here have in common: vCPUs in 64-bit mode, page tables that map 4 GiB one to one. */
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

static void map_one_to_one(uint8_t *low)
{
	uint64_t *tables = (void *)(low + TABLES);

	tables[0] = (TABLES + PAGE) | 3;
	for (int i = 0; i < 4; i++)
		tables[512 + i] = (TABLES + (2 + i) * PAGE) | 3;
	for (int i = 0; i < 4 * 512; i++)
		tables[1024 + i] = i * 0x200000UL | 0x83;
}

static struct kvm_run *map_run(int vcpu, size_t *size)
{
	struct kvm_run *run;

	*size = kvm(kvm_fd, KVM_GET_VCPU_MMAP_SIZE, 0);
	run = mmap(NULL, *size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
	if (run == MAP_FAILED)
		die("mmap(vCPU)");
	return run;
}

/* All that is supported, and `features` of leaf 1's ECX.  Long mode must be there before EFER may have it. */
static void set_cpuid(int vcpu, uint32_t features)
{
	struct kvm_cpuid2 *cpuid = calloc(1, sizeof(*cpuid) + CPUID_ENTRIES * sizeof(cpuid->entries[0]));

	cpuid->nent = CPUID_ENTRIES;
	kvm(kvm_fd, KVM_GET_SUPPORTED_CPUID, cpuid);
	for (unsigned int i = 0; i < cpuid->nent; i++)
		if (cpuid->entries[i].function == 1)
			cpuid->entries[i].ecx |= features;
	kvm(vcpu, KVM_SET_CPUID2, cpuid);
	free(cpuid);
}

static void enter_long_mode(int vcpu, uint64_t rip)
{
	struct kvm_segment cs = { .limit = ~0u, .selector = 8, .type = 11, .present = 1, .s = 1, .l = 1, .g = 1 };
	struct kvm_segment ds = { .limit = ~0u, .selector = 16, .type = 3, .present = 1, .s = 1, .db = 1, .g = 1 };
	struct kvm_regs regs = { .rip = rip, .rflags = 2 };
	struct kvm_sregs sregs;

	kvm(vcpu, KVM_GET_SREGS, &sregs);
	sregs.cr0 = 0x80000001;
	sregs.cr3 = TABLES;
	sregs.cr4 = 0x20;
	sregs.efer = 0x500;
	sregs.cs = cs;
	sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = ds;
	kvm(vcpu, KVM_SET_SREGS, &sregs);
	kvm(vcpu, KVM_SET_REGS, &regs);
}
