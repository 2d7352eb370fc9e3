/*
 * A small VMM that tells all it sees: the same program on the real KVM and on kvmfs must print the same.
 *
 * One VM, one vCPU, 64-bit mode: guest memory at 0 (64 KiB mapped linearly to itself, of which pages can be left out),
 * page tables above, and one more linear page at MMIO that leads where there is no memory. Guest code is written in
 * place, as assembly between GUEST(name) and its end.
 */
#pragma once
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

enum {
	MEMORY = 0x100000, TABLES = 0x80000, CODE = 0x1000, DATA = 0x4000, STACK = 0x9000, IDT = 0xA000, HANDLERS = 0xB000,
	GDT = 0xC000, TSS = 0xD000,
	MMIO = 0x40000000, /* linear and guest-physical: a page of no slot, after one that is memory (EDGE) */
	EDGE = MMIO - 0x1000, EDGE_GPA = 0x10000,
};

static int kvm, vm, vcpu;
static struct kvm_run *run;
static uint8_t *memory;
static struct kvm_regs regs;
static struct kvm_sregs sregs;

#define GUEST(name, text)                                                                       \
	extern const uint8_t name[], name##_end[];                                                  \
	__asm__(".pushsection .rodata\n.globl " #name "\n" #name ":\n" text "\n" #name "_end:\n.popsection")

/* A result as everybody prints it: 0, a number, or the errno's name. */
static inline const char *outcome(long result)
{
	static char text[4][32];
	static int turn;
	char *at = text[turn++ % 4];
	if (result >= 0)
		snprintf(at, sizeof(text[0]), "%ld", result);
	else
		snprintf(at, sizeof(text[0]), "%s", strerrorname_np(errno));
	return at;
}

#define TELL(call) printf("%s = %s\n", #call, outcome(call))

static inline void require(bool condition, const char *what)
{
	if (!condition) {
		printf("cannot go on: %s: %s\n", what, strerror(errno));
		exit(2);
	}
}

static inline int set_region(uint32_t slot, uint32_t flags, uint64_t gpa, uint64_t size, void *at)
{
	struct kvm_userspace_memory_region region = {
		.slot = slot, .flags = flags, .guest_phys_addr = gpa, .memory_size = size, .userspace_addr = (uintptr_t)at,
	};
	return ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region);
}

static inline void map_page(uint64_t linear, uint64_t gpa, uint64_t flags)
{
	uint64_t *pml4 = (uint64_t *)(memory + TABLES), *pdpt = pml4 + 512, *pd = pdpt + 512 * (1 + (linear >> 30 & 3));
	uint64_t *pt = (uint64_t *)(memory + TABLES + 0x8000 + 0x1000 * (linear >> 21 & 7) + (linear >> 30 & 3) * 0x8000);
	pml4[0] = (TABLES + 0x1000) | 7;
	pdpt[linear >> 30 & 3] = ((uint8_t *)pd - memory) | 7;
	pd[linear >> 21 & 511] = ((uint8_t *)pt - memory) | 7;
	pt[linear >> 12 & 511] = gpa | flags;
}

static inline void set_segment(struct kvm_segment *segment, uint16_t selector, uint8_t type)
{
	*segment = (struct kvm_segment){ .limit = 0xFFFFFFFF, .selector = selector, .type = type, .present = 1, .s = 1, .g = 1 };
}

/* A processor with what 64-bit mode takes, SSE2 and AVX; the same one on both sides. */
static inline void set_cpuid(void)
{
	static const struct kvm_cpuid_entry2 entries[] = {
		{ .function = 0, .eax = 0xD, .ebx = 0x68747541, .ecx = 0x444D4163, .edx = 0x69746E65 },
		{ .function = 1, .eax = 0x00800F12, .ebx = 0x00000800, .ecx = 0x1C982203, .edx = 0x178BFBFF },
		{ .function = 7, .flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX },
		{ .function = 0xD, .flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX, .eax = 7, .ebx = 0x340, .ecx = 0x340 },
		{ .function = 0xD, .index = 1, .flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX },
		{ .function = 0xD, .index = 2, .flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX, .eax = 0x100, .ebx = 0x240 },
		{ .function = 0x80000000, .eax = 0x80000008 },
		{ .function = 0x80000001, .ecx = 1, .edx = 0x20100800 },
		{ .function = 0x80000008, .eax = 0x3028 },
	};
	enum { COUNT = sizeof(entries) / sizeof(entries[0]) };
	struct { struct kvm_cpuid2 head; struct kvm_cpuid_entry2 entries[COUNT]; } cpuid = { .head.nent = COUNT };
	memcpy(cpuid.entries, entries, sizeof(entries));
	require(ioctl(vcpu, KVM_SET_CPUID2, &cpuid) == 0, "KVM_SET_CPUID2");
}

/* VM, vCPU, memory, page tables, descriptor tables; every exception has a handler that ends in HLT. */
static inline void make_vm(void)
{
	setvbuf(stdout, NULL, _IOLBF, 0);
	kvm = open("/dev/kvm", O_RDWR);
	require(kvm >= 0, "/dev/kvm");
	vm = ioctl(kvm, KVM_CREATE_VM, 0);
	require(vm >= 0, "KVM_CREATE_VM");
	memory = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	require(set_region(0, 0, 0, MEMORY, memory) == 0, "memory");
	vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
	require(vcpu >= 0, "KVM_CREATE_VCPU");
	run = mmap(NULL, ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
	require(run != MAP_FAILED, "kvm_run");
	set_cpuid();
	for (uint64_t page = 0; page < 0x20000; page += 0x1000)
		map_page(page, page, 7);
	map_page(EDGE, EDGE_GPA, 7);
	map_page(MMIO, MMIO, 7);
	map_page(MMIO + 0x1000, EDGE_GPA, 7);
	/* A handler per vector: HLT. The frame on the stack tells the rest. */
	for (int vector = 0; vector < 256; vector++) {
		uint64_t target = HANDLERS + vector;
		uint64_t *gate = (uint64_t *)(memory + IDT + 16 * vector);
		gate[0] = (target & 0xFFFF) | 8 << 16 | 0x8EULL << 40 | (target >> 16 & 0xFFFF) << 48;
		gate[1] = 0;
		memory[target] = 0xF4;
	}
	((uint64_t *)(memory + GDT))[1] = 0x00AF9B000000FFFF;
	((uint64_t *)(memory + GDT))[2] = 0x00CF93000000FFFF;
	require(ioctl(vcpu, KVM_GET_SREGS, &sregs) == 0, "KVM_GET_SREGS");
	sregs.cr0 = 0x80050033;
	sregs.cr3 = TABLES;
	sregs.cr4 = 0x620;
	sregs.efer = 0xD01;
	set_segment(&sregs.cs, 8, 11);
	sregs.cs.l = 1;
	set_segment(&sregs.ds, 16, 3);
	sregs.ds.db = 1;
	sregs.es = sregs.fs = sregs.gs = sregs.ss = sregs.ds;
	sregs.tr = (struct kvm_segment){ .base = TSS, .limit = 0x67, .selector = 24, .type = 11, .present = 1 };
	sregs.ldt = (struct kvm_segment){ .unusable = 1 };
	sregs.gdt = (struct kvm_dtable){ .base = GDT, .limit = 0x1F };
	sregs.idt = (struct kvm_dtable){ .base = IDT, .limit = 0xFFF };
	require(ioctl(vcpu, KVM_SET_SREGS, &sregs) == 0, "KVM_SET_SREGS");
}

/* Start at a piece of guest code, with every register told apart. */
static inline void start(const uint8_t *code, const uint8_t *end)
{
	memset(memory + CODE, 0x90, 0x1000);
	memcpy(memory + CODE, code, end - code);
	memset(memory + STACK - 0x1000, 0, 0x1000);
	for (int i = 0; i < 0x2000; i++)
		memory[DATA + i] = 17 + 31 * i + (i >> 8);
	regs = (struct kvm_regs){
		.rax = 0x1111111111111101, .rbx = DATA, .rcx = 3, .rdx = 0x3F8, .rsi = DATA, .rdi = DATA + 0x800, .rsp = STACK,
		.rbp = 0x7777777777777707, .r8 = MMIO, .r9 = 0x99, .r10 = 0xAA, .rip = CODE, .rflags = 2,
	};
	require(ioctl(vcpu, KVM_SET_SREGS, &sregs) == 0, "KVM_SET_SREGS");
	require(ioctl(vcpu, KVM_SET_REGS, &regs) == 0, "KVM_SET_REGS");
}

#define START(name) (printf("-- %s\n", #name), start(name, name##_end))

static inline void tell_regs(void)
{
	struct kvm_regs r;
	require(ioctl(vcpu, KVM_GET_REGS, &r) == 0, "KVM_GET_REGS");
	printf("  rip %llx flags %llx rax %llx rcx %llx rdx %llx rsi %llx rdi %llx rsp %llx\n", r.rip, r.rflags, r.rax,
	       r.rcx, r.rdx, r.rsi, r.rdi, r.rsp);
}

static inline void tell_bytes(const char *what, const uint8_t *bytes, size_t size)
{
	printf("  %s", what);
	for (size_t i = 0; i < size; i++)
		printf(" %02x", bytes[i]);
	printf("\n");
}

static inline void tell_stack(void)
{
	struct kvm_regs r;
	ioctl(vcpu, KVM_GET_REGS, &r);
	const uint64_t *words = (const uint64_t *)(memory + r.rsp);
	/* RF is left out: the processor that the real KVM runs on is QEMU's, which does not set it. */
	if (r.rsp < STACK && r.rsp >= STACK - 0x100)
		for (int i = 0; r.rsp + 8 * i < STACK; i++)
			printf("  [rsp+%d] %llx\n", 8 * i, (unsigned long long)words[i] & ~0x10000ULL);
}

/* Run once, and print the exit with all that comes with it. Returns the exit reason, or -errno. */
static inline int step(void)
{
	int result = ioctl(vcpu, KVM_RUN, 0), error = errno;
	if (result < 0)
		printf("KVM_RUN = %s, exit %u\n", strerrorname_np(error), run->exit_reason);
	else
		printf("KVM_RUN = %d, exit %u\n", result, run->exit_reason);
	if (result < 0 && error != EFAULT)
		return -error;
	switch (run->exit_reason) {
	case KVM_EXIT_IO: {
		const uint8_t *data = (const uint8_t *)run + run->io.data_offset;
		printf("  io %s port %x size %d count %u\n", run->io.direction ? "out" : "in", run->io.port, run->io.size,
		       run->io.count);
		if (run->io.direction)
			tell_bytes("data", data, run->io.size * run->io.count > 64 ? 64 : run->io.size * run->io.count);
		break;
	}
	case KVM_EXIT_MMIO:
		printf("  mmio %s %llx len %u\n", run->mmio.is_write ? "write" : "read", run->mmio.phys_addr, run->mmio.len);
		if (run->mmio.is_write)
			tell_bytes("data", run->mmio.data, run->mmio.len);
		break;
	case KVM_EXIT_INTERNAL_ERROR:
		printf("  internal error %u\n", run->internal.suberror);
		break;
	case KVM_EXIT_FAIL_ENTRY:
		printf("  entry failed\n");
		break;
	case KVM_EXIT_MEMORY_FAULT:
		if (result < 0)
			printf("  memory fault gpa %llx size %llx flags %llx\n", run->memory_fault.gpa, run->memory_fault.size,
			       run->memory_fault.flags);
		break;
	default:
		break;
	}
	printf("  ready %d if %d\n", run->ready_for_interrupt_injection, run->if_flag);
	return result < 0 ? -error : (int)run->exit_reason;
}

/* Answer what the last exit asks for with bytes that count up. */
static inline void answer(void)
{
	static uint8_t next = 0x21;
	if (run->exit_reason == KVM_EXIT_IO && !run->io.direction)
		for (unsigned i = 0; i < run->io.size * run->io.count; i++)
			((uint8_t *)run)[run->io.data_offset + i] = next += 7;
	if (run->exit_reason == KVM_EXIT_MMIO && !run->mmio.is_write)
		for (int i = 0; i < 8; i++)
			run->mmio.data[i] = next += 5;
}

/* Run to the end: HLT, or what cannot be gone on from. */
static inline void finish(void)
{
	for (int exits = 0; exits < 64; exits++) {
		int reason = step();
		if (reason != KVM_EXIT_IO && reason != KVM_EXIT_MMIO)
			break;
		answer();
	}
	tell_regs();
	tell_stack();
}

/* Answer the read that is pending, and let the guest go no further than that. */
static inline void end_read(void)
{
	run->immediate_exit = 1;
	answer();
	step();
	tell_regs();
	run->immediate_exit = 0;
}
