/*
 * A virtual machine monitor that makes the calls of Firecracker, crosvm, Cloud Hypervisor or kvmtool, in their order, and
 * boots Linux as they do.
 *
 *	main.c		which of them, and its sequence of ioctls
 *	memory.c	the guest's memory, and what stands in it before it runs
 *	entry.c		the ways into a kernel (Documentation/arch/x86/boot.rst, pvh)
 *	devices.c	a serial port with interrupts, a power switch, an I/O APIC for split mode
 */
#define _GNU_SOURCE
#include <err.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/ioctl.h>

#include <linux/kvm.h>

enum {
	PAGE = 4096,
	GDT = 0x500, START_INFO = 0x6000, ZERO_PAGE = 0x7000, PML4 = 0x9000, PDPT = 0xa000, PD = 0xb000,	/* and 3 more */
	REAL_MODE_KERNEL = 0x10000, COMMAND_LINE = 0x20000, EBDA = 0x9fc00, BIOS = 0xf0000, HIGH = 0x100000,
	IOAPIC = 0xfec00000, IOAPIC_PINS = 24, COM1 = 0x3f8, COM1_IRQ = 4, POWER = 0xf4,
};

/* How interrupts of devices get to the guest. */
enum wiring { BY_IRQFD, BY_RESAMPLED_IRQFD, BY_IRQ_LINE, BY_MSI_ROUTE };

struct kernel {
	const char *image, *initrd, *command_line;
	uint64_t initrd_at, initrd_size;
};

extern int kvm_fd, vm_fd;

static inline int kvm(int fd, unsigned long request, void *argument, const char *what)
{
	int result = ioctl(fd, request, argument);

	if (result < 0)
		err(1, "%s", what);
	return result;
}
#define KVM(fd, request, argument) kvm(fd, request, (void *)(uintptr_t)(argument), #request)

/* memory.c */
void make_memory(size_t size, bool memfd);
void *guest(uint64_t gpa, size_t size);		/* where that is here */
uint64_t memory_size(void);
const void *map_file(const char *path, size_t *size);
void load_initrd(struct kernel *kernel);
void write_mp_table(int vcpus, bool level);
struct boot_params *zero_page(const struct kernel *kernel);

/* entry.c: put the kernel into memory, and the vCPU where it begins */
void enter_elf_64(int vcpu, const struct kernel *kernel);
void enter_elf_pvh(int vcpu, const struct kernel *kernel);
void enter_bzimage_64(int vcpu, const struct kernel *kernel);
void enter_bzimage_real(int vcpu, const struct kernel *kernel);

/* main.c */
void power_off(int status);

/* devices.c */
void wire(enum wiring wiring);
void port(struct kvm_run *run);
void mmio(struct kvm_run *run);
