/*
 * A small VMM with private memory.  It knows nothing of kvmfs: it opens /dev/kvm and speaks the ABI of Linux 6.8 or later.
 *
 * Its guest asks for conversions by hypercall, and walks into pages that cannot be accessed the way it does, so that
 * KVM_RUN fails with EFAULT and KVM_EXIT_MEMORY_FAULT.  The VMM resolves each and lets the guest go on.
 *
 *	cc -O2 -o conversions conversions.c && ./conversions
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include <linux/falloc.h>
#include <linux/kvm.h>

/* For C libraries whose kernel headers are older than guest_memfd (Linux 6.8). */
#ifndef KVM_CREATE_GUEST_MEMFD
#define KVM_MEM_GUEST_MEMFD (1UL << 2)
#define KVM_X86_SW_PROTECTED_VM 1
#define KVM_CAP_USER_MEMORY2 231
#define KVM_CAP_GUEST_MEMFD 234
#define KVM_CAP_VM_TYPES 235
#define KVM_EXIT_MEMORY_FAULT 39
#define KVM_MEMORY_EXIT_FLAG_PRIVATE (1ULL << 3)
#define KVM_MEMORY_ATTRIBUTE_PRIVATE (1ULL << 3)
struct kvm_userspace_memory_region2 {
	__u32 slot, flags;
	__u64 guest_phys_addr, memory_size, userspace_addr, guest_memfd_offset;
	__u32 guest_memfd, pad1;
	__u64 pad2[14];
};
struct kvm_memory_attributes {
	__u64 address, size, attributes, flags;
};
struct kvm_create_guest_memfd {
	__u64 size, flags, reserved[6];
};
struct memory_fault {
	__u64 flags, gpa, size;
};
#define KVM_SET_USER_MEMORY_REGION2 _IOW(KVMIO, 0x49, struct kvm_userspace_memory_region2)
#define KVM_SET_MEMORY_ATTRIBUTES _IOW(KVMIO, 0xd2, struct kvm_memory_attributes)
#define KVM_CREATE_GUEST_MEMFD _IOWR(KVMIO, 0xd4, struct kvm_create_guest_memfd)
#define MEMORY_FAULT(run) (*(struct memory_fault *)&(run)->io)	/* a member of the same union */
#else
#define MEMORY_FAULT(run) ((run)->memory_fault)
#endif

#define PAGE 4096UL
#define HC_MAP_GPA_RANGE 12
#define ENCRYPTED (1UL << 4)

/* Guest physical memory.  Page tables map the first GiB to itself. */
enum {
	CODE = 0x1000,
	TABLES = 0x2000,	/* PML4, PDPT, page directory */
	LOW_END = 0x10000,
	CONVERTED = 0x200000,	/* slot 1: guest_memfd and ordinary memory */
	CONVERTED_END = 0x210000,
	ORDINARY = 0x400000,	/* slot 2: ordinary memory, yet some of it marked private */
	ORDINARY_END = 0x410000,
	NOWHERE = 0x600000,	/* no slot until the guest touches it */
	NOWHERE_END = 0x610000,
};

/* The guest.  `out` to port 1 says: all went as it should; to port 2: something did not. */
asm(".pushsection .rodata\n"
    ".global guest_start, guest_end\n"
    "guest_start:\n"
    "	movb $0x11, 0x200000\n"			/* a byte in shared memory */
    "	mov $12, %eax; mov $0x200000, %ebx; mov $4, %ecx; mov $0x10, %edx\n"
    "	vmcall\n"				/* four pages: please make them private */
    "	cmpb $0, 0x200000; jne 9f\n"		/* fresh memory behind the same address */
    "	movb $0x22, 0x200000\n"			/* nobody outside sees this one */
    "	mov $12, %eax; mov $0x200000, %ebx; mov $4, %ecx; xor %edx, %edx\n"
    "	vmcall\n"				/* and shared again */
    "	cmpb $0x33, 0x200000; jne 9f\n"	/* what the VMM has left there meanwhile */
    "	cmpb $0x44, 0x402000; jne 9f\n"	/* private, but nothing private is there: a memory fault */
    "	movb $0x55, 0x600000\n"			/* private, and no slot at all: a memory fault */
    "	cmpb $0x55, 0x600000; jne 9f\n"
    "	mov $1, %dx; out %al, %dx\n"
    "9:	mov $2, %dx; out %al, %dx\n"
    "guest_end:\n"
    ".popsection\n");
extern const char guest_start[], guest_end[];

static int vm;

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static int kvm(int fd, unsigned long request, void *argument, const char *what)
{
	int result = ioctl(fd, request, argument);

	if (result < 0)
		die(what);
	return result;
}

static uint8_t *memory(size_t size)
{
	uint8_t *address = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (address == MAP_FAILED)
		die("mmap");
	return address;
}

/* Guest memory: ordinary memory, which is returned, and a guest_memfd unless it is -1. */
static uint8_t *add_slot(int slot, uint64_t gpa, uint64_t size, int guest_memfd)
{
	uint8_t *address = memory(size);
	struct kvm_userspace_memory_region2 region = {
		.slot = slot,
		.flags = guest_memfd < 0 ? 0 : KVM_MEM_GUEST_MEMFD,
		.guest_phys_addr = gpa,
		.memory_size = size,
		.userspace_addr = (uintptr_t)address,
		.guest_memfd = guest_memfd < 0 ? 0 : guest_memfd,
	};

	kvm(vm, KVM_SET_USER_MEMORY_REGION2, &region, "KVM_SET_USER_MEMORY_REGION2");
	return address;
}

static int create_guest_memfd(uint64_t size)
{
	struct kvm_create_guest_memfd request = { .size = size };

	return kvm(vm, KVM_CREATE_GUEST_MEMFD, &request, "KVM_CREATE_GUEST_MEMFD");
}

static void set_private(uint64_t gpa, uint64_t size, int private)
{
	struct kvm_memory_attributes request = {
		.address = gpa,
		.size = size,
		.attributes = private ? KVM_MEMORY_ATTRIBUTE_PRIVATE : 0,
	};

	kvm(vm, KVM_SET_MEMORY_ATTRIBUTES, &request, "KVM_SET_MEMORY_ATTRIBUTES");
}

/* The vCPU is all that KVM supports; without CPUID there is no 64-bit mode. */
static void set_cpuid(int system, int vcpu)
{
	struct {
		struct kvm_cpuid2 head;
		struct kvm_cpuid_entry2 entries[256];
	} cpuid = { .head.nent = 256 };

	kvm(system, KVM_GET_SUPPORTED_CPUID, &cpuid, "KVM_GET_SUPPORTED_CPUID");
	kvm(vcpu, KVM_SET_CPUID2, &cpuid, "KVM_SET_CPUID2");
}

/* 64-bit mode at once: flat segments, and page tables with one-to-one 2 MiB pages. */
static void start_in_long_mode(int vcpu, uint8_t *low)
{
	uint64_t *pml4 = (void *)(low + TABLES), *pdpt = pml4 + 512, *directory = pdpt + 512;
	struct kvm_segment code = { .limit = ~0u, .selector = 8, .type = 11, .present = 1, .s = 1, .l = 1, .g = 1 };
	struct kvm_segment data = { .limit = ~0u, .selector = 16, .type = 3, .present = 1, .s = 1, .db = 1, .g = 1 };
	struct kvm_regs regs = { .rip = CODE, .rflags = 2 };
	struct kvm_sregs sregs;

	pml4[0] = (TABLES + PAGE) | 3;
	pdpt[0] = (TABLES + 2 * PAGE) | 3;
	for (int i = 0; i < 512; i++)
		directory[i] = i * 0x200000UL | 0x83;	/* present, writable, large */

	kvm(vcpu, KVM_GET_SREGS, &sregs, "KVM_GET_SREGS");
	sregs.cr0 = 0x80000001;				/* PG, PE */
	sregs.cr3 = TABLES;
	sregs.cr4 = 0x20;				/* PAE */
	sregs.efer = 0x500;				/* LMA, LME */
	sregs.cs = code;
	sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = data;
	kvm(vcpu, KVM_SET_SREGS, &sregs, "KVM_SET_SREGS");
	kvm(vcpu, KVM_SET_REGS, &regs, "KVM_SET_REGS");
}

/* The guest asked for a conversion. */
static void convert(struct kvm_run *run, int guest_memfd, uint8_t *shared)
{
	uint64_t gpa = run->hypercall.args[0], size = run->hypercall.args[1] * PAGE;
	int private = !!(run->hypercall.args[2] & ENCRYPTED);

	if (run->hypercall.nr != HC_MAP_GPA_RANGE || gpa < CONVERTED || gpa + size > CONVERTED_END) {
		run->hypercall.ret = -EINVAL;
		return;
	}
	printf("guest: make %#lx, %lu pages, %s\n", gpa, size / PAGE, private ? "private" : "shared");
	set_private(gpa, size, private);
	if (private) {
		shared[gpa - CONVERTED] = 0x33;
	} else if (fallocate(guest_memfd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, gpa - CONVERTED, size)) {
		die("fallocate");
	}
	run->hypercall.ret = 0;
}

/* KVM could not give the guest the page that it wants. */
static void resolve(uint64_t gpa, uint64_t size, uint64_t flags)
{
	printf("memory fault: gpa %#lx size %#lx flags %#lx\n", gpa, size, flags);
	if (!(flags & KVM_MEMORY_EXIT_FLAG_PRIVATE))
		exit(1);
	if (gpa >= ORDINARY && gpa < ORDINARY_END) {
		printf("  -> there is ordinary memory: the page becomes shared\n");
		set_private(gpa, size, 0);
	} else {
		printf("  -> nothing is there: a slot with private memory\n");
		add_slot(3, NOWHERE, NOWHERE_END - NOWHERE, create_guest_memfd(NOWHERE_END - NOWHERE));
	}
}

int main(void)
{
	int system = open("/dev/kvm", O_RDWR | O_CLOEXEC), vcpu, guest_memfd;
	struct kvm_enable_cap cap = { .cap = KVM_CAP_EXIT_HYPERCALL, .args[0] = 1 << HC_MAP_GPA_RANGE };
	struct kvm_run *run;
	uint8_t *low, *shared;

	setvbuf(stdout, NULL, _IOLBF, 0);
	if (system < 0)
		die("/dev/kvm");
	if (!(ioctl(system, KVM_CHECK_EXTENSION, KVM_CAP_VM_TYPES) & 1 << KVM_X86_SW_PROTECTED_VM)) {
		fprintf(stderr, "this KVM has no KVM_X86_SW_PROTECTED_VM\n");
		return 4;
	}
	vm = kvm(system, KVM_CREATE_VM, (void *)KVM_X86_SW_PROTECTED_VM, "KVM_CREATE_VM");
	kvm(vm, KVM_ENABLE_CAP, &cap, "KVM_ENABLE_CAP(KVM_CAP_EXIT_HYPERCALL)");

	low = add_slot(0, 0, LOW_END, -1);
	guest_memfd = create_guest_memfd(CONVERTED_END - CONVERTED);
	shared = add_slot(1, CONVERTED, CONVERTED_END - CONVERTED, guest_memfd);
	add_slot(2, ORDINARY, ORDINARY_END - ORDINARY, -1)[2 * PAGE] = 0x44;
	memcpy(low + CODE, guest_start, guest_end - guest_start);
	set_private(ORDINARY + 2 * PAGE, PAGE, 1);
	set_private(NOWHERE, NOWHERE_END - NOWHERE, 1);

	vcpu = kvm(vm, KVM_CREATE_VCPU, 0, "KVM_CREATE_VCPU");
	run = mmap(NULL, kvm(system, KVM_GET_VCPU_MMAP_SIZE, 0, "KVM_GET_VCPU_MMAP_SIZE"), PROT_READ | PROT_WRITE,
		   MAP_SHARED, vcpu, 0);
	if (run == MAP_FAILED)
		die("mmap(vCPU)");
	set_cpuid(system, vcpu);
	start_in_long_mode(vcpu, low);

	for (;;) {
		int result = ioctl(vcpu, KVM_RUN, 0);

		if (result < 0 && errno == EINTR)
			continue;
		if (result < 0 && errno == EFAULT && run->exit_reason == KVM_EXIT_MEMORY_FAULT) {
			resolve(MEMORY_FAULT(run).gpa, MEMORY_FAULT(run).size, MEMORY_FAULT(run).flags);
			continue;
		}
		if (result < 0)
			die("KVM_RUN");
		switch (run->exit_reason) {
		case KVM_EXIT_HYPERCALL:
			convert(run, guest_memfd, shared);
			break;
		case KVM_EXIT_IO:
			if (run->io.port != 1) {
				fprintf(stderr, "the guest found something that should not be\n");
				return 1;
			}
			printf("guest: done\n");
			return 0;
		default:
			fprintf(stderr, "unexpected exit %u\n", run->exit_reason);
			return 1;
		}
	}
}
