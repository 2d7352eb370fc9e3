/*
 * A virtual machine monitor that boots a Linux vmlinux by its 64-bit entry point, as Firecracker and crosvm do
 * (Documentation/arch/x86/boot.rst, "64-bit Boot Protocol"): the same ioctls, no firmware, no real mode.
 *
 *	boot64 VMLINUX INITRD MEGABYTES VCPUS COMMAND-LINE
 *
 * The guest has a serial port (output only, polled) at 0x3f8 and a power switch at 0xf4: the byte
 * written there is the exit status.
 */
#define _GNU_SOURCE
#include <elf.h>
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <asm/bootparam.h>
#include <linux/kvm.h>

enum {
	PAGE = 4096,
	GDT = 0x500, ZERO_PAGE = 0x7000, PML4 = 0x9000, PDPT = 0xa000, PD = 0xb000,	/* four page directories */
	COMMAND_LINE = 0x20000, EBDA = 0x9fc00, HIGH = 0x100000,
	COM1 = 0x3f8, POWER = 0xf4, LSR_IDLE = 0x60,
	MSR_MTRR_DEF_TYPE = 0x2ff, MSR_MISC_ENABLE = 0x1a0,
};

static int kvm_fd, vm_fd;
static uint8_t *ram;
static size_t ram_size;

static int kvm(int fd, unsigned long request, void *argument, const char *what)
{
	int result = ioctl(fd, request, argument);

	if (result < 0)
		err(1, "%s", what);
	return result;
}
#define KVM(fd, request, argument) kvm(fd, request, (void *)(uintptr_t)(argument), #request)

static void *guest(uint64_t gpa, size_t size)
{
	if (gpa > ram_size || size > ram_size - gpa)
		errx(1, "%zu bytes at %#lx do not fit into memory", size, (unsigned long)gpa);
	return ram + gpa;
}

static void *map_file(const char *path, size_t *size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	struct stat status;
	void *data;

	if (fd < 0 || fstat(fd, &status))
		err(1, "%s", path);
	*size = status.st_size;
	data = mmap(NULL, *size, PROT_READ, MAP_PRIVATE, fd, 0);
	if (data == MAP_FAILED)
		err(1, "%s", path);
	close(fd);
	return data;
}

static uint64_t load_kernel(const char *path)	/* its entry point */
{
	size_t size;
	const uint8_t *file = map_file(path, &size);
	const Elf64_Ehdr *header = (const void *)file;
	const Elf64_Phdr *segment = (const void *)(file + header->e_phoff);

	if (size < sizeof(*header) || memcmp(header->e_ident, ELFMAG, SELFMAG))
		errx(1, "%s: not an ELF image", path);
	for (int i = 0; i < header->e_phnum; i++)
		if (segment[i].p_type == PT_LOAD)
			memcpy(guest(segment[i].p_paddr, segment[i].p_memsz), file + segment[i].p_offset, segment[i].p_filesz);
	return header->e_entry;
}

static void load_zero_page(const char *initrd, const char *command_line)
{
	struct boot_params *params = guest(ZERO_PAGE, sizeof(*params));
	const struct boot_e820_entry map[] = {
		{ 0, EBDA, 1 }, { HIGH, ram_size - HIGH, 1 },
	};
	size_t size;
	void *image = map_file(initrd, &size);
	uint64_t at = (ram_size - size) & -PAGE;

	memcpy(guest(at, size), image, size);
	params->hdr.boot_flag = 0xaa55;
	params->hdr.header = 0x53726448;	/* "HdrS" */
	params->hdr.type_of_loader = 0xff;
	params->hdr.cmd_line_ptr = COMMAND_LINE;
	params->hdr.cmdline_size = strlen(command_line);
	params->hdr.ramdisk_image = at;
	params->hdr.ramdisk_size = size;
	params->e820_entries = 2;
	memcpy(params->e820_table, map, sizeof(map));
	strcpy(guest(COMMAND_LINE, strlen(command_line) + 1), command_line);
}

static void map_low_4g(void)	/* by 2 MiB pages, one to one */
{
	uint64_t *pml4 = guest(PML4, PAGE), *pdpt = guest(PDPT, PAGE), *pd = guest(PD, 4 * PAGE);

	pml4[0] = PDPT | 3;
	for (int i = 0; i < 4; i++)
		pdpt[i] = (PD + i * PAGE) | 3;
	for (int i = 0; i < 4 * 512; i++)
		pd[i] = (uint64_t)i << 21 | 0x83;
}

/* An MP table: one I/O APIC, the vCPUs, the ISA bus (MultiProcessor Specification 1.4, ch. 4). */
static void mp_table(int vcpus)
{
	struct { char magic[4]; uint32_t table; uint8_t length, revision, checksum, features[5]; } *floating = guest(EBDA, 16);
	uint8_t *table = guest(EBDA + 16, 44 + 20 * vcpus + 8 + 8 + 16 * 8 + 2 * 8), *p = table + 44, sum = 0;

	for (int i = 0; i < vcpus; i++, p += 20)
		memcpy(p, (uint8_t[20]){ 0, i, 0x14, 1 | (i == 0 ? 2 : 0), 0, 6, 0, 0, 1, 2 }, 20);
	memcpy(p, (uint8_t[8]){ 1, 0, 'I', 'S', 'A', ' ', ' ', ' ' }, 8), p += 8;
	memcpy(p, (uint8_t[8]){ 2, vcpus + 1, 0x11, 1, 0, 0, 0xc0, 0xfe }, 8), p += 8;
	for (int i = 0; i < 16; i++, p += 8)
		memcpy(p, (uint8_t[8]){ 3, 0, 0, 0, 0, i, vcpus + 1, i }, 8);
	memcpy(p, (uint8_t[8]){ 4, 3, 0, 0, 0, 0, 0xff, 0 }, 8), p += 8;
	memcpy(p, (uint8_t[8]){ 4, 1, 0, 0, 0, 0, 0xff, 1 }, 8), p += 8;
	memcpy(table, "PCMP", 4);
	*(uint16_t *)(table + 4) = p - table;
	table[6] = 4;
	memcpy(table + 8, "KVMFS   BOOT64      ", 20);
	*(uint16_t *)(table + 34) = vcpus + 1 + 1 + 16 + 2;
	*(uint32_t *)(table + 36) = 0xfee00000;
	for (uint8_t *q = table; q < p; q++)
		sum += *q;
	table[7] = -sum;
	memcpy(floating->magic, "_MP_", 4);
	floating->table = EBDA + 16;
	floating->length = 1;
	floating->revision = 4;
	sum = 0;
	for (int i = 0; i < 16; i++)
		sum += ((uint8_t *)floating)[i];
	floating->checksum = -sum;
}

static struct kvm_segment flat(uint16_t selector, uint8_t type)
{
	return (struct kvm_segment){
		.limit = 0xffffffff, .selector = selector, .type = type, .present = 1, .s = 1, .g = 1,
		.l = type & 8 ? 1 : 0, .db = type & 8 ? 0 : 1,
	};
}

static void long_mode(int vcpu, uint64_t entry)
{
	uint64_t *gdt = guest(GDT, 4 * 8);
	struct kvm_sregs sregs;
	struct kvm_regs regs = { .rip = entry, .rsi = ZERO_PAGE, .rflags = 2, .rsp = 0x8ff0 };

	gdt[2] = 0x00af9b000000ffff;	/* __BOOT_CS */
	gdt[3] = 0x00cf93000000ffff;	/* __BOOT_DS */
	KVM(vcpu, KVM_GET_SREGS, &sregs);
	sregs.cs = flat(0x10, 11);
	sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = flat(0x18, 3);
	sregs.gdt.base = GDT;
	sregs.gdt.limit = 4 * 8 - 1;
	sregs.idt.limit = 0;
	sregs.cr0 |= 0x80000001;
	sregs.cr3 = PML4;
	sregs.cr4 |= 0x20;
	sregs.efer |= 0x500;
	KVM(vcpu, KVM_SET_SREGS, &sregs);
	KVM(vcpu, KVM_SET_REGS, &regs);
}

static void identify(int vcpu, int id, int vcpus)
{
	struct kvm_cpuid2 *cpuid = calloc(1, sizeof(*cpuid) + 256 * sizeof(struct kvm_cpuid_entry2));
	struct { struct kvm_msrs header; struct kvm_msr_entry entries[2]; } msrs = {
		.header.nmsrs = 2,
		.entries = { { .index = MSR_MISC_ENABLE, .data = 1 }, { .index = MSR_MTRR_DEF_TYPE, .data = 1 << 11 | 6 } },
	};

	cpuid->nent = 256;
	KVM(kvm_fd, KVM_GET_SUPPORTED_CPUID, cpuid);
	for (unsigned i = 0; i < cpuid->nent; i++) {
		struct kvm_cpuid_entry2 *e = &cpuid->entries[i];

		if (e->function == 1)
			e->ebx = (e->ebx & 0xff00) | (uint32_t)id << 24 | (uint32_t)vcpus << 16, e->ecx |= 1u << 31;	/* a hypervisor */
		if (e->function == 0xb)
			e->edx = id;
	}
	KVM(vcpu, KVM_SET_CPUID2, cpuid);
	if (KVM(vcpu, KVM_SET_MSRS, &msrs) != 2)
		errx(1, "KVM_SET_MSRS: not all of them");
	free(cpuid);
}

/* LINT0 takes the PIC's interrupts, LINT1 is NMI. */
static void set_lints(int vcpu)
{
	struct kvm_lapic_state lapic;

	KVM(vcpu, KVM_GET_LAPIC, &lapic);
	*(uint32_t *)(lapic.regs + 0x350) = 0x700;
	*(uint32_t *)(lapic.regs + 0x360) = 0x400;
	KVM(vcpu, KVM_SET_LAPIC, &lapic);
}

static void port(struct kvm_run *run)
{
	uint8_t *data = (uint8_t *)run + run->io.data_offset;
	size_t size = (size_t)run->io.size * run->io.count;

	if (run->io.direction == KVM_EXIT_IO_IN) {
		memset(data, run->io.port == COM1 + 5 ? LSR_IDLE : run->io.port > COM1 && run->io.port < COM1 + 8 ? 0 : 0xff, size);
		return;
	}
	if (run->io.port == POWER)
		_exit(data[0]);
	if (run->io.port == COM1 && write(STDOUT_FILENO, data, size) < 0)
		err(1, "stdout");
}

struct vcpu {
	int fd;
	struct kvm_run *run;
};

static void *run_vcpu(void *argument)
{
	struct vcpu *vcpu = argument;
	struct kvm_run *run = vcpu->run;

	for (;;) {
		if (ioctl(vcpu->fd, KVM_RUN, 0) < 0) {
			if (errno == EAGAIN || errno == EINTR)	/* EAGAIN: INIT or SIPI has come */
				continue;
			err(1, "KVM_RUN");
		}
		switch (run->exit_reason) {
		case KVM_EXIT_IO:
			port(run);
			break;
		case KVM_EXIT_MMIO:
			if (!run->mmio.is_write)
				memset(run->mmio.data, 0xff, sizeof(run->mmio.data));
			break;
		case KVM_EXIT_SHUTDOWN:
			errx(2, "the guest has shut down");
		default: {
			struct kvm_regs regs;

			KVM(vcpu->fd, KVM_GET_REGS, &regs);
			fprintf(stderr, "rip %#llx\n", regs.rip);
			for (unsigned i = 0; run->exit_reason == KVM_EXIT_INTERNAL_ERROR && i < run->internal.ndata; i++)
				fprintf(stderr, "%016llx\n", run->internal.data[i]);
			errx(3, "exit %u", run->exit_reason);
		}
		}
	}
}

int main(int argc, char **argv)
{
	int run_size, vcpus;
	struct kvm_pit_config pit = { .flags = KVM_PIT_SPEAKER_DUMMY };
	uint64_t identity = 0xfffbc000, entry;
	struct vcpu *all;

	if (argc != 6)
		errx(1, "usage: boot64 VMLINUX INITRD MEGABYTES VCPUS COMMAND-LINE");
	ram_size = (size_t)atoi(argv[3]) << 20;
	vcpus = atoi(argv[4]);
	kvm_fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (kvm_fd < 0)
		err(1, "/dev/kvm");
	if (KVM(kvm_fd, KVM_GET_API_VERSION, 0) != KVM_API_VERSION)
		errx(1, "another KVM");
	run_size = KVM(kvm_fd, KVM_GET_VCPU_MMAP_SIZE, 0);
	vm_fd = KVM(kvm_fd, KVM_CREATE_VM, 0);
	KVM(vm_fd, KVM_SET_TSS_ADDR, 0xfffbd000);
	KVM(vm_fd, KVM_SET_IDENTITY_MAP_ADDR, &identity);
	ram = mmap(NULL, ram_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (ram == MAP_FAILED)
		err(1, "%zu bytes of memory", ram_size);
	entry = load_kernel(argv[1]);
	load_zero_page(argv[2], argv[5]);
	map_low_4g();
	mp_table(vcpus);
	KVM(vm_fd, KVM_SET_USER_MEMORY_REGION, (&(struct kvm_userspace_memory_region){
		.memory_size = ram_size, .userspace_addr = (uintptr_t)ram,
	}));
	KVM(vm_fd, KVM_CREATE_IRQCHIP, 0);
	KVM(vm_fd, KVM_CREATE_PIT2, &pit);
	all = calloc(vcpus, sizeof(*all));
	for (int i = 0; i < vcpus; i++) {
		all[i].fd = KVM(vm_fd, KVM_CREATE_VCPU, i);
		all[i].run = mmap(NULL, run_size, PROT_READ | PROT_WRITE, MAP_SHARED, all[i].fd, 0);
		if (all[i].run == MAP_FAILED)
			err(1, "vCPU's kvm_run");
		identify(all[i].fd, i, vcpus);
		set_lints(all[i].fd);
	}
	long_mode(all[0].fd, entry);
	for (int i = 1; i < vcpus; i++) {
		pthread_t thread;

		if (pthread_create(&thread, NULL, run_vcpu, &all[i]))
			errx(1, "no thread");
	}
	run_vcpu(&all[0]);
}
