#include "monitor.h"

#include <elf.h>
#include <stddef.h>
#include <string.h>

#include <asm/bootparam.h>

/* What a kernel entered by its PVH note finds in EBX (Xen's docs/misc/pvh.pandoc). */
struct start_info {
	uint32_t magic, version, flags, module_count;
	uint64_t modules, command_line, rsdp, memory_map;
	uint32_t memory_map_count, reserved;
};

struct module {
	uint64_t address, size, command_line, reserved;
};

struct memory {
	uint64_t address, size;
	uint32_t type, reserved;
};

enum { START_MAGIC = 0x336ec578, NOTE_PHYS32_ENTRY = 18, STACK = 0x8ff0, E820_RAM = 1, SECTOR = 512, HEAP_END = 0xfe00 };

/* Segments, the same for code of 64 bits and of 32. */

static struct kvm_segment flat(uint16_t selector, uint8_t type, bool is_64)
{
	return (struct kvm_segment){
		.limit = 0xffffffff, .selector = selector, .type = type, .present = 1, .s = 1, .g = 1,
		.l = is_64 && type & 8, .db = !(is_64 && type & 8),
	};
}

static void set_segments(struct kvm_sregs *sregs, bool is_64)
{
	uint64_t *gdt = guest(GDT, 4 * 8);

	gdt[2] = is_64 ? 0x00af9b000000ffff : 0x00cf9b000000ffff;	/* __BOOT_CS */
	gdt[3] = 0x00cf93000000ffff;	/* __BOOT_DS */
	sregs->cs = flat(0x10, 11, is_64);
	sregs->ds = sregs->es = sregs->fs = sregs->gs = sregs->ss = flat(0x18, 3, is_64);
	sregs->gdt.base = GDT;
	sregs->gdt.limit = 4 * 8 - 1;
	sregs->idt.limit = 0;
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

static void long_mode(int vcpu, uint64_t entry)
{
	struct kvm_regs regs = { .rip = entry, .rsi = ZERO_PAGE, .rflags = 2, .rsp = STACK };
	struct kvm_sregs sregs;

	map_low_4g();
	KVM(vcpu, KVM_SET_REGS, &regs);
	KVM(vcpu, KVM_GET_SREGS, &sregs);
	set_segments(&sregs, true);
	sregs.cr0 |= 0x80000001;
	sregs.cr3 = PML4;
	sregs.cr4 |= 0x20;
	sregs.efer |= 0x500;
	KVM(vcpu, KVM_SET_SREGS, &sregs);
}

/* An ELF image */

static const Elf64_Ehdr *load_elf(const struct kernel *kernel)
{
	size_t size;
	const uint8_t *file = map_file(kernel->image, &size);
	const Elf64_Ehdr *header = (const void *)file;
	const Elf64_Phdr *segment = (const void *)(file + header->e_phoff);

	if (size < sizeof(*header) || memcmp(header->e_ident, ELFMAG, SELFMAG))
		errx(1, "%s: not an ELF image", kernel->image);
	for (int i = 0; i < header->e_phnum; i++)
		if (segment[i].p_type == PT_LOAD)
			memcpy(guest(segment[i].p_paddr, segment[i].p_memsz), file + segment[i].p_offset, segment[i].p_filesz);
	return header;
}

void enter_elf_64(int vcpu, const struct kernel *kernel)
{
	const Elf64_Ehdr *header = load_elf(kernel);

	zero_page(kernel);
	long_mode(vcpu, header->e_entry);
}

static uint32_t pvh_entry(const Elf64_Ehdr *header)
{
	const Elf64_Phdr *segment = (const void *)((const uint8_t *)header + header->e_phoff);

	for (int i = 0; i < header->e_phnum; i++) {
		const uint8_t *at = (const uint8_t *)header + segment[i].p_offset, *end = at + segment[i].p_filesz;

		while (segment[i].p_type == PT_NOTE && at < end) {
			const Elf64_Nhdr *note = (const void *)at;
			const uint8_t *name = at + sizeof(*note), *value = name + (note->n_namesz + 3) / 4 * 4;

			if (note->n_type == NOTE_PHYS32_ENTRY && !strcmp((const char *)name, "Xen"))
				return *(const uint32_t *)value;
			at = value + (note->n_descsz + 3) / 4 * 4;
		}
	}
	errx(1, "the image has no PVH entry");
}

/* 32-bit protected mode without paging. */
void enter_elf_pvh(int vcpu, const struct kernel *kernel)
{
	const Elf64_Ehdr *header = load_elf(kernel);
	struct start_info *info = guest(START_INFO, PAGE);
	struct module *module = (void *)(info + 1);
	struct memory *map = (void *)(module + 1);
	struct kvm_regs regs = { .rip = pvh_entry(header), .rbx = START_INFO, .rflags = 2 };
	struct kvm_sregs sregs;

	*module = (struct module){ .address = kernel->initrd_at, .size = kernel->initrd_size };
	map[0] = (struct memory){ .size = EBDA, .type = E820_RAM };
	map[1] = (struct memory){ .address = HIGH, .size = memory_size() - HIGH, .type = E820_RAM };
	*info = (struct start_info){
		.magic = START_MAGIC, .version = 1, .command_line = COMMAND_LINE,
		.module_count = 1, .modules = START_INFO + sizeof(*info),
		.memory_map_count = 2, .memory_map = START_INFO + sizeof(*info) + sizeof(*module),
	};
	KVM(vcpu, KVM_SET_REGS, &regs);
	KVM(vcpu, KVM_GET_SREGS, &sregs);
	set_segments(&sregs, false);
	sregs.cr0 = 1;
	sregs.cr4 = 0;
	KVM(vcpu, KVM_SET_SREGS, &sregs);
}

/* A bzImage: its setup sectors, then what decompresses itself. */

static const uint8_t *load_bzimage(const struct kernel *kernel, struct setup_header *header, size_t *setup_size)
{
	size_t size;
	const uint8_t *file = map_file(kernel->image, &size);

	memcpy(header, file + offsetof(struct boot_params, hdr), sizeof(*header));
	if (size < PAGE || header->boot_flag != 0xaa55 || header->header != 0x53726448)
		errx(1, "%s: not a bzImage", kernel->image);
	*setup_size = (header->setup_sects + 1) * SECTOR;
	memcpy(guest(HIGH, size - *setup_size), file + *setup_size, size - *setup_size);
	return file;
}

void enter_bzimage_64(int vcpu, const struct kernel *kernel)
{
	struct boot_params *params = zero_page(kernel);
	struct setup_header ours = params->hdr;
	size_t setup_size;

	load_bzimage(kernel, &params->hdr, &setup_size);
	if (!(params->hdr.xloadflags & XLF_KERNEL_64))
		errx(1, "%s: no 64-bit entry", kernel->image);
	params->hdr.type_of_loader = ours.type_of_loader;
	params->hdr.cmd_line_ptr = ours.cmd_line_ptr;
	params->hdr.ramdisk_image = ours.ramdisk_image;
	params->hdr.ramdisk_size = ours.ramdisk_size;
	long_mode(vcpu, HIGH + 0x200);
}

/*
 * A BIOS of two services: all interrupts fail, but for the memory map of INT 15h, EAX = E820h.  The carry flag that the
 * caller sees is the one on its stack.
 */
asm(".pushsection .rodata\n.code16\n"
    "bios: push %bp; mov %sp, %bp; orw $1, 6(%bp); pop %bp; iret\n"
    "bios_memory: push %bp; mov %sp, %bp; orw $1, 6(%bp); cmp $0xe820, %eax; jne 9f\n"
    "push %ds; push %si; push %di; push %cs; pop %ds\n"
    "imul $20, %bx, %si; add $(bios_map - bios), %si; mov $20, %ecx; cld; rep movsb\n"
    "pop %di; pop %si; pop %ds; mov $20, %ecx; mov %edx, %eax; andw $~1, 6(%bp)\n"
    "inc %ebx; cmp $2, %ebx; jb 9f; xor %ebx, %ebx\n"
    "9: pop %bp; iret\n"
    "bios_map: .fill 40, 1, 0\n"
    "bios_end: .code64\n.popsection\n");
extern const char bios[], bios_memory[], bios_map[], bios_end[];

static void install_bios(void)
{
	const struct { uint64_t at, size; uint32_t type; } __attribute__((packed)) map[] = {
		{ 0, EBDA, E820_RAM }, { HIGH, memory_size() - HIGH, E820_RAM },
	};
	uint32_t *vectors = guest(0, 256 * 4);

	memcpy(guest(BIOS, bios_end - bios), bios, bios_end - bios);
	memcpy(guest(BIOS + (bios_map - bios), sizeof(map)), map, sizeof(map));
	for (int i = 0; i < 256; i++)
		vectors[i] = BIOS >> 4 << 16;
	vectors[0x15] |= bios_memory - bios;
}

void enter_bzimage_real(int vcpu, const struct kernel *kernel)
{
	struct setup_header header, *loaded;
	struct kvm_regs regs = { .rip = 0x200, .rsp = 0x8000, .rbp = 0x8000, .rflags = 2 };
	struct kvm_segment segment = {
		.selector = REAL_MODE_KERNEL >> 4, .base = REAL_MODE_KERNEL, .limit = 0xffff, .type = 3, .present = 1, .s = 1,
	};
	struct kvm_sregs sregs;
	size_t setup_size;
	const uint8_t *file = load_bzimage(kernel, &header, &setup_size);

	install_bios();
	memcpy(guest(REAL_MODE_KERNEL, setup_size), file, setup_size);
	loaded = guest(REAL_MODE_KERNEL + offsetof(struct boot_params, hdr), sizeof(*loaded));
	loaded->type_of_loader = 0xff;
	loaded->loadflags |= CAN_USE_HEAP;
	loaded->heap_end_ptr = HEAP_END;
	loaded->vid_mode = 0xffff;	/* as it is */
	loaded->cmd_line_ptr = COMMAND_LINE;
	loaded->ramdisk_image = kernel->initrd_at;
	loaded->ramdisk_size = kernel->initrd_size;
	KVM(vcpu, KVM_GET_SREGS, &sregs);
	sregs.cs = sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = segment;
	sregs.cs.type = 11;
	KVM(vcpu, KVM_SET_SREGS, &sregs);
	KVM(vcpu, KVM_SET_REGS, &regs);
}
