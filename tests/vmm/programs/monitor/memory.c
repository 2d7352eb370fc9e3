#include "monitor.h"

#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <asm/bootparam.h>

enum { ACTIVE_HIGH = 1, LEVEL = 3 << 2 };

static uint8_t *ram;
static size_t ram_size;

void make_memory(size_t size, bool memfd)
{
	int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, fd = -1;

	if (memfd) {	/* as crosvm has it: sealed, shared */
		fd = memfd_create("guest", MFD_CLOEXEC | MFD_ALLOW_SEALING);
		if (fd < 0 || ftruncate(fd, size) || fcntl(fd, F_ADD_SEALS, F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL))
			err(1, "memfd");
		flags = MAP_SHARED;
	}
	ram_size = size;
	ram = mmap(NULL, size, PROT_READ | PROT_WRITE, flags, fd, 0);
	if (ram == MAP_FAILED)
		err(1, "%zu bytes of memory", size);
	if (fd >= 0)
		close(fd);
	KVM(vm_fd, KVM_SET_USER_MEMORY_REGION, (&(struct kvm_userspace_memory_region){
		.memory_size = size, .userspace_addr = (uintptr_t)ram,
	}));
}

void *guest(uint64_t gpa, size_t size)
{
	if (gpa > ram_size || size > ram_size - gpa)
		errx(1, "%zu bytes at %#lx do not fit into memory", size, (unsigned long)gpa);
	return ram + gpa;
}

uint64_t memory_size(void)
{
	return ram_size;
}

const void *map_file(const char *path, size_t *size)
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

void load_initrd(struct kernel *kernel)
{
	size_t size;
	const void *image = map_file(kernel->initrd, &size);

	kernel->initrd_size = size;
	kernel->initrd_at = (ram_size - size) & -(uint64_t)PAGE;
	memcpy(guest(kernel->initrd_at, size), image, size);
	strcpy(guest(COMMAND_LINE, strlen(kernel->command_line) + 1), kernel->command_line);
}

/* struct boot_params with all that does not come from the kernel's own header. */
struct boot_params *zero_page(const struct kernel *kernel)
{
	struct boot_params *params = guest(ZERO_PAGE, sizeof(*params));
	const struct boot_e820_entry map[] = { { 0, EBDA, 1 }, { HIGH, ram_size - HIGH, 1 } };

	params->hdr.boot_flag = 0xaa55;
	params->hdr.header = 0x53726448;	/* "HdrS" */
	params->hdr.type_of_loader = 0xff;
	params->hdr.cmd_line_ptr = COMMAND_LINE;
	params->hdr.cmdline_size = strlen(kernel->command_line);
	params->hdr.ramdisk_image = kernel->initrd_at;
	params->hdr.ramdisk_size = kernel->initrd_size;
	params->e820_entries = 2;
	memcpy(params->e820_table, map, sizeof(map));
	return params;
}

/* One I/O APIC, the vCPUs, the ISA bus (MultiProcessor Specification 1.4, ch. 4). `level`: so the serial port's line. */
void write_mp_table(int vcpus, bool level)
{
	struct { char magic[4]; uint32_t table; uint8_t length, revision, checksum, features[5]; } *floating = guest(EBDA, 16);
	uint8_t *table = guest(EBDA + 16, 44 + 20 * vcpus + 8 + 8 + 16 * 8 + 2 * 8), *p = table + 44, sum = 0;

	for (int i = 0; i < vcpus; i++, p += 20)
		memcpy(p, (uint8_t[20]){ 0, i, 0x14, 1 | (i == 0 ? 2 : 0), 0, 6, 0, 0, 1, 2 }, 20);
	memcpy(p, (uint8_t[8]){ 1, 0, 'I', 'S', 'A', ' ', ' ', ' ' }, 8), p += 8;
	memcpy(p, (uint8_t[8]){ 2, vcpus + 1, 0x11, 1, 0, 0, 0xc0, 0xfe }, 8), p += 8;
	for (int i = 0; i < 16; i++, p += 8)
		memcpy(p, (uint8_t[8]){ 3, 0, level && i == COM1_IRQ ? ACTIVE_HIGH | LEVEL : 0, 0, 0, i, vcpus + 1, i }, 8);
	memcpy(p, (uint8_t[8]){ 4, 3, 0, 0, 0, 0, 0xff, 0 }, 8), p += 8;
	memcpy(p, (uint8_t[8]){ 4, 1, 0, 0, 0, 0, 0xff, 1 }, 8), p += 8;
	memcpy(table, "PCMP", 4);
	*(uint16_t *)(table + 4) = p - table;
	table[6] = 4;
	memcpy(table + 8, "KVMFS   MONITOR     ", 20);
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
