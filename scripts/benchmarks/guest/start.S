/*
 * Entry by the PVH boot protocol (an ELF note; 32-bit mode, no paging), which QEMU's -kernel knows.  A 64-bit build goes
 * on to long mode with four levels of page tables: 2 MiB pages, but 4 KiB ones for `field`.
 */
	.section .note.pvh, "a"
	.long	4, 4, 18		/* "Xen", XEN_ELFNOTE_PHYS32_ENTRY */
	.asciz	"Xen"
	.long	entry

	.text
	.code32
	.globl	entry
entry:
	cld
	mov	$stack_end, %esp
#ifdef __x86_64__
	mov	$pml4, %eax
	mov	%eax, %cr3
	mov	%cr4, %eax
	or	$0x620, %eax		/* PAE, OSFXSR, OSXMMEXCPT */
	mov	%eax, %cr4
	mov	$0xc0000080, %ecx	/* EFER.LME */
	rdmsr
	or	$0x100, %eax
	wrmsr
	mov	%cr0, %eax
	and	$~4, %eax		/* EM */
	or	$0x80000002, %eax	/* PG, MP */
	mov	%eax, %cr0
	lgdt	gdt_pointer
	ljmp	$8, $long_mode

	.code64
long_mode:
	xor	%eax, %eax
	mov	%eax, %ss
	mov	%eax, %ds
	mov	%eax, %es
#else
	mov	%cr0, %eax
	and	$~4, %eax
	mov	%eax, %cr0
	fninit
#endif
	call	start

	.data
	.balign	16
stack:	.skip	16384
stack_end:
#ifdef __x86_64__
gdt:	.quad	0, 0x00af9b000000ffff
gdt_pointer:
	.word	. - gdt - 1
	.long	gdt

	.balign	4096
	.globl	pml4
pml4:	.quad	pdpt + 3
	.skip	4088
pdpt:	.quad	pd + 3
	.skip	4088
pd:	.quad	0x83, 0x200083		/* image, then four tables for `field`, at 4 MiB */
	.quad	pt + 3, pt + 0x1003, pt + 0x2003, pt + 0x3003
	.skip	4048
pt:	.set	page, 0x400003
	.rept	2048
	.quad	page
	.set	page, page + 0x1000
	.endr
#endif

	.section .note.GNU-stack, "", @progbits
