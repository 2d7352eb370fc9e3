/*
 * How fast guest memory is faulted in, end to end.  Knows nothing of kvmfs.
 *
 *	demand anonymous|memfd|hugetlb VCPUS	first touches of 4 KiB pages, a second and vCPU
 *
 * Each vCPU, in a thread of its own, writes to every page of its part of a slot that nobody has touched.  Private
 * anonymous memory is what most VMMs have; hugetlb is a file of 2 MiB pages, and says so if the host has none.
 */
#include "machine.h"

#include <pthread.h>

#define DATA 0x40000000UL

#ifndef MFD_HUGETLB
#define MFD_HUGETLB 4U
#endif

enum { PAGES = 8192, MOST = 16, ROUNDS = 5 };

asm(".pushsection .rodata\n"
    /* rsi: an address; rcx: a number of pages */
    "guest_touch: 1: movb $1, (%rsi); add $4096, %rsi; dec %rcx; jnz 1b; 2: out %al, $1; jmp 2b\n"
    "guest_touch_end:\n"
    ".popsection\n");
extern const char guest_touch[], guest_touch_end[];

static pthread_barrier_t begin;

struct vcpu {
	int fd;
	struct kvm_run *run;
	size_t run_size;
	uint64_t first;	/* page of the slot */
	double start, end;	/* ns */
};

static double now(void)	/* ns */
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e9 + t.tv_nsec;
}

static void *touch(void *argument)
{
	struct vcpu *vcpu = argument;
	struct kvm_regs regs;

	kvm(vcpu->fd, KVM_GET_REGS, &regs);
	regs.rsi = DATA + vcpu->first * PAGE;
	regs.rcx = PAGES;
	kvm(vcpu->fd, KVM_SET_REGS, &regs);
	pthread_barrier_wait(&begin);
	vcpu->start = now();
	kvm(vcpu->fd, KVM_RUN, 0);
	vcpu->end = now();
	return NULL;
}

static void *memory_of(const char *kind, size_t size)
{
	int fd = -1, flags = MAP_PRIVATE | MAP_ANONYMOUS;
	void *address;

	if (strcmp(kind, "anonymous")) {
		fd = memfd_create("demand", strcmp(kind, "hugetlb") ? 0 : MFD_HUGETLB);
		if (fd < 0 || ftruncate(fd, size))
			die("memfd_create");
		flags = MAP_SHARED;
	}
	address = mmap(NULL, size, PROT_READ | PROT_WRITE, flags, fd, 0);
	if (address == MAP_FAILED)
		die(kind);
	if (fd >= 0)
		close(fd);
	return address;
}

/* ns from when the first vCPU begins until the last one is done */
static double once(const char *kind, int vcpus)
{
	size_t size = (size_t)vcpus * PAGES * PAGE;
	uint8_t *memory = memory_of(kind, size), *low;
	int vm = kvm(kvm_fd, KVM_CREATE_VM, 0);
	struct kvm_userspace_memory_region region = {
		.slot = 1, .guest_phys_addr = DATA, .memory_size = size, .userspace_addr = (uintptr_t)memory,
	};
	struct vcpu all[MOST];
	pthread_t threads[MOST];
	double start = 0, end = 0;

	low = add_slot(vm, 0, 0, LOW_SIZE);
	memcpy(low + CODE, guest_touch, guest_touch_end - guest_touch);
	map_one_to_one(low);
	kvm(vm, KVM_SET_USER_MEMORY_REGION, &region);
	pthread_barrier_init(&begin, NULL, vcpus);
	for (long i = 0; i < vcpus; i++) {
		all[i].fd = kvm(vm, KVM_CREATE_VCPU, (void *)i);
		all[i].run = map_run(all[i].fd, &all[i].run_size);
		all[i].first = i * PAGES;
		set_cpuid(all[i].fd, 0);
		enter_long_mode(all[i].fd, CODE);
	}
	for (int i = 0; i < vcpus; i++)
		pthread_create(&threads[i], NULL, touch, &all[i]);
	for (int i = 0; i < vcpus; i++) {
		pthread_join(threads[i], NULL);
		start = !i || all[i].start < start ? all[i].start : start;
		end = all[i].end > end ? all[i].end : end;
		munmap(all[i].run, all[i].run_size);
		close(all[i].fd);
	}
	for (int i = 0; i < vcpus * PAGES; i++) {
		if (memory[(size_t)i * PAGE] != 1) {
			fprintf(stderr, "the guest's writes are not here\n");
			exit(1);
		}
	}
	close(vm);
	munmap(low, LOW_SIZE);
	munmap(memory, size);
	return end - start;
}

int main(int argc, char **argv)
{
	int vcpus = argc > 2 ? atoi(argv[2]) : 1;
	double best = 0;

	if (argc < 2 || vcpus < 1 || vcpus > MOST) {
		fprintf(stderr, "usage: demand anonymous|memfd|hugetlb VCPUS\n");
		return 2;
	}
	kvm_fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (kvm_fd < 0)
		die("/dev/kvm");
	for (int i = 0; i < ROUNDS; i++) {
		double took = once(argv[1], vcpus);

		best = !i || took < best ? took : best;
	}
	printf("%.1f\n", PAGES / best * 1e9);
	return 0;
}
