/*
 * A KVM client that measures.  It knows nothing of kvmfs.  Each measurement prints one number, the best of several.
 *
 *	client roundtrip N	ns	KVM_RUN of a guest that does nothing but `out`: exit, and enter again
 *	client create N		us	KVM_CREATE_VM and KVM_CREATE_VCPU
 *	client touch PAGES	ns	the guest's first write to a page of anonymous memory, all in
 *	client attributes	us	KVM_SET_MEMORY_ATTRIBUTES over 1 TiB
 *	client conversion	us	2 MiB made private and shared again, the guest writing to both
 *	client slots N		us	dirty logging of a slot switched on or off, with N slots
 *	client harvest		us	KVM_GET_DIRTY_LOG of 4 GiB, nothing dirty
 *	client sparse		us	a slot of 64 GiB that nobody touches
 *	client idle		-	a VM with one vCPU and 1 MiB of memory, until stdin is closed
 */
#include "machine.h"

#define DATA 0x40000000UL

asm(".pushsection .rodata\n"
    "guest_out: 1: out %al, $1; jmp 1b\n"
    "guest_out_end:\n"
    /* rsi: an address; rcx: a number of pages; touch each, then out */
    "guest_touch: 1: movb $1, (%rsi); add $4096, %rsi; dec %rcx; jnz 1b; 2: out %al, $1; jmp 2b\n"
    "guest_touch_end:\n"
    /* write to the first and the last page of 2 MiB, then out, again and again */
    "guest_convert: mov $0x40000000, %eax; movb $1, (%rax); movb $1, 0x1ff000(%rax); out %al, $1; jmp guest_convert\n"
    "guest_convert_end:\n"
    ".popsection\n");
extern const char guest_out[], guest_out_end[], guest_touch[], guest_touch_end[];
extern const char guest_convert[], guest_convert_end[];

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

/* A VM with one vCPU in 64-bit mode, about to run `code`. */
static struct vm create_of_type(unsigned long type, const char *code, const char *end)
{
	struct vm vm = { .vm = kvm(kvm_fd, KVM_CREATE_VM, (void *)type) };

	vm.low = add_slot(vm.vm, 0, 0, LOW_SIZE);
	memcpy(vm.low + CODE, code, end - code);
	map_one_to_one(vm.low);
	vm.vcpu = kvm(vm.vm, KVM_CREATE_VCPU, 0);
	vm.run = map_run(vm.vcpu, &vm.run_size);
	set_cpuid(vm.vcpu, 0);
	enter_long_mode(vm.vcpu, CODE);
	return vm;
}

static struct vm create(const char *code, const char *end)
{
	return create_of_type(0, code, end);
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

static void set_slot(int vm, int slot, uint64_t gpa, void *address, uint64_t size, int flags)
{
	struct kvm_userspace_memory_region region = {
		.slot = slot, .flags = flags, .guest_phys_addr = gpa, .memory_size = size,
		.userspace_addr = (uintptr_t)address,
	};

	kvm(vm, KVM_SET_USER_MEMORY_REGION, &region);
}

static void *reserve(uint64_t size)
{
	void *address = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (address == MAP_FAILED)
		die("mmap");
	return address;
}

static double slots(int count)
{
	int vm = kvm(kvm_fd, KVM_CREATE_VM, 0);
	uint8_t *memory = reserve((uint64_t)count * PAGE);
	double best = 0;

	for (int i = 0; i < count; i++)
		set_slot(vm, i, 2UL * i * PAGE, memory + (uint64_t)i * PAGE, PAGE, 0);
	for (int i = 0; i < 1000; i++) {
		int slot = count / 1000 * (i / 2);
		double start = now();

		set_slot(vm, slot, 2UL * slot * PAGE, memory + (uint64_t)slot * PAGE, PAGE,
			 i & 1 ? 0 : KVM_MEM_LOG_DIRTY_PAGES);
		better(&best, (now() - start) / 1e3);
	}
	close(vm);
	return best;
}

static double harvest(void)
{
	uint64_t size = 4UL << 30;
	int vm = kvm(kvm_fd, KVM_CREATE_VM, 0);
	struct kvm_dirty_log log = { .slot = 0, .dirty_bitmap = calloc(1, size / PAGE / 8) };
	double best = 0;

	set_slot(vm, 0, 0, reserve(size), size, KVM_MEM_LOG_DIRTY_PAGES);
	for (int i = 0; i < 50; i++) {
		double start = now();

		kvm(vm, KVM_GET_DIRTY_LOG, &log);
		better(&best, (now() - start) / 1e3);
	}
	close(vm);
	return best;
}

static double sparse(void)
{
	uint64_t size = 64UL << 30;
	double best = 0;

	for (int i = 0; i < 5; i++) {
		int vm = kvm(kvm_fd, KVM_CREATE_VM, 0);
		void *memory = reserve(size);
		double start = now();

		set_slot(vm, 0, 0, memory, size, 0);
		better(&best, (now() - start) / 1e3);
		close(vm);
		munmap(memory, size);
	}
	return best;
}

/* The guest writes to 2 MiB when it is private, and again when it is shared; between are the calls that a VMM makes. */
static double conversion(void)
{
	uint64_t size = 2UL << 20;
	struct vm vm = create_of_type(KVM_X86_SW_PROTECTED_VM, guest_convert, guest_convert_end);
	struct kvm_create_guest_memfd create = { .size = size };
	struct kvm_userspace_memory_region2 region = {
		.slot = 1, .flags = KVM_MEM_GUEST_MEMFD, .guest_phys_addr = DATA, .memory_size = size,
		.userspace_addr = (uintptr_t)reserve(size),
	};
	double best = 0;

	region.guest_memfd = kvm(vm.vm, KVM_CREATE_GUEST_MEMFD, &create);
	kvm(vm.vm, KVM_SET_USER_MEMORY_REGION2, &region);
	for (int i = 0; i < 200; i++) {
		double start = now();

		for (int private = 1; private >= 0; private--) {
			struct kvm_memory_attributes request = {
				.address = DATA, .size = size, .attributes = private ? KVM_MEMORY_ATTRIBUTE_PRIVATE : 0,
			};

			if (fallocate(region.guest_memfd,
				      FALLOC_FL_KEEP_SIZE | (private ? 0 : FALLOC_FL_PUNCH_HOLE), 0, size))
				die("fallocate");
			kvm(vm.vm, KVM_SET_MEMORY_ATTRIBUTES, &request);
			run_to_out(&vm);
		}
		better(&best, (now() - start) / 1e3);
	}
	destroy(&vm);
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
	} else if (!strcmp(what, "conversion")) {
		result = conversion();
	} else if (!strcmp(what, "slots")) {
		result = slots(count ? count : 32000);
	} else if (!strcmp(what, "harvest")) {
		result = harvest();
	} else if (!strcmp(what, "sparse")) {
		result = sparse();
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
