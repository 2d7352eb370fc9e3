/* Getting and setting state: what is refused, and how what was set reads back. */
#include "client.h"

GUEST(nops, "nop\n hlt");

static void try_sregs(const char *what, const struct kvm_sregs *changed)
{
	struct kvm_sregs back;
	printf("sregs: %s = %s", what, outcome(ioctl(vcpu, KVM_SET_SREGS, changed)));
	ioctl(vcpu, KVM_GET_SREGS, &back);
	printf(" -> cr0 %llx cr3 %llx cr4 %llx efer %llx cr8 %llx apic %llx\n", back.cr0, back.cr3, back.cr4, back.efer,
	       back.cr8, back.apic_base);
	ioctl(vcpu, KVM_SET_SREGS, &sregs);
}

#define SREGS(change)                                                                           \
	do {                                                                                        \
		struct kvm_sregs s = sregs;                                                             \
		change;                                                                                 \
		try_sregs(#change, &s);                                                                 \
	} while (0)

static void test_sregs(void)
{
	SREGS(s.cr0 &= ~0x80000000);
	SREGS(s.cr0 &= ~1);
	SREGS(s.cr0 |= 0x20000000);
	SREGS(s.cr0 |= 0x40000000);
	SREGS(s.cr0 |= 0x100000000);
	SREGS(s.cr0 |= 0x8);
	SREGS(s.cr4 &= ~0x20);
	SREGS(s.cr4 |= 0x80000000);
	SREGS(s.cr4 |= 1 << 15);
	SREGS(s.cr4 |= 1 << 13);
	SREGS(s.efer = 0);
	SREGS(s.efer &= ~0x400);
	SREGS(s.efer &= ~0x100);
	SREGS(s.efer |= 1 << 20);
	SREGS(s.efer |= 2);
	SREGS(s.cs.l = 0; s.cs.db = 1);
	SREGS(s.cs.l = 1; s.cs.db = 1);
	SREGS(s.cs.unusable = 1);
	SREGS(s.cr3 = 0xFFF0000000000000);
	SREGS(s.cr3 |= 8);
	SREGS(s.cr8 = 15);
	SREGS(s.cr8 = 16);
	SREGS(s.apic_base = 0);
	SREGS(s.apic_base |= 1 << 10);
	SREGS(s.apic_base |= 1 << 8);
	SREGS(s.interrupt_bitmap[1] = 2);
	SREGS(s.interrupt_bitmap[1] = 2; s.interrupt_bitmap[3] = 4);
	SREGS(s.cr0 = 0x10; s.cr4 = 0; s.efer = 0; s.cs.l = 0);
	SREGS(s.cr0 = 0x80000011; s.cr4 = 0; s.efer = 0; s.cs.l = 0);
	SREGS(s.cr0 = 0x80000011; s.cr4 = 0x20; s.efer = 0; s.cs.l = 0);
}

static void test_segments(void)
{
	struct kvm_sregs s = sregs, back;
	s.ds = (struct kvm_segment){ .base = 0x123456789ABCDEF0, .limit = 0xFFFFFFFF, .selector = 0xFFFF, .type = 15, .present = 1,
				     .dpl = 3, .db = 1, .s = 1, .l = 1, .g = 1, .avl = 1, .unusable = 1 };
	s.es = (struct kvm_segment){ .limit = 0x12345, .type = 0xFF, .dpl = 0xFF };
	s.gdt.limit = 0xFFFF, s.idt.base = 0xFFFF800000001234;
	TELL(ioctl(vcpu, KVM_SET_SREGS, &s));
	ioctl(vcpu, KVM_GET_SREGS, &back);
	for (struct kvm_segment *g = &back.cs; g <= &back.ldt; g++)
		printf("  base %llx limit %x sel %x type %x p %d dpl %d db %d s %d l %d g %d avl %d unusable %d\n", g->base,
		       g->limit, g->selector, g->type, g->present, g->dpl, g->db, g->s, g->l, g->g, g->avl, g->unusable);
	printf("  gdt %llx %x idt %llx %x\n", back.gdt.base, back.gdt.limit, back.idt.base, back.idt.limit);
	ioctl(vcpu, KVM_SET_SREGS, &sregs);
}

static void test_regs(void)
{
	struct kvm_regs r = { .rip = 0xFFFF123412341234, .rflags = ~0ULL }, back;
	TELL(ioctl(vcpu, KVM_SET_REGS, &r));
	ioctl(vcpu, KVM_GET_REGS, &back);
	printf("  rip %llx rflags %llx\n", back.rip, back.rflags);
	r.rflags = 0;
	ioctl(vcpu, KVM_SET_REGS, &r);
	ioctl(vcpu, KVM_GET_REGS, &back);
	printf("  rip %llx rflags %llx\n", back.rip, back.rflags);
}

static void test_fpu(void)
{
	struct kvm_fpu f, back;
	struct kvm_xsave x;
	ioctl(vcpu, KVM_GET_FPU, &f);
	printf("fpu: fcw %x fsw %x ftwx %x mxcsr %x\n", f.fcw, f.fsw, f.ftwx, f.mxcsr);
	memset(&f, 0xA5, sizeof(f));
	f.fsw = 0x2525; /* no exception that is not masked */
	TELL(ioctl(vcpu, KVM_SET_FPU, &f));
	ioctl(vcpu, KVM_GET_FPU, &back);
	printf("  fcw %x fsw %x ftwx %x op %x ip %llx dp %llx mxcsr %x st %02x xmm %02x\n", back.fcw, back.fsw, back.ftwx,
	       back.last_opcode, back.last_ip, back.last_dp, back.mxcsr, back.fpr[7][9], back.xmm[15][15]);
	f.mxcsr = 0x1F80, f.fcw = 0x27F, f.fsw = 0x3800;
	TELL(ioctl(vcpu, KVM_SET_FPU, &f));
	ioctl(vcpu, KVM_GET_FPU, &back);
	printf("  fcw %x fsw %x ftwx %x mxcsr %x\n", back.fcw, back.fsw, back.ftwx, back.mxcsr);
	/* KVM_SET_FPU marks no component as in use (XSTATE_BV): what follows sets all of them. */
	ioctl(vcpu, KVM_GET_XSAVE, &x);
	printf("xsave: bv %x comp %x\n", x.region[129], x.region[131]);
	memset(x.region, 0, 512);
	x.region[0] = 0x0000027F, x.region[6] = 0xFFFFFFFF, x.region[128] = 3;
	memset(&x.region[8], 0x3C, 128), memset(&x.region[40], 0x5A, 256);
	TELL(ioctl(vcpu, KVM_SET_XSAVE, &x));
	x.region[6] = 0x1F80, x.region[131] = 0x80000000;
	TELL(ioctl(vcpu, KVM_SET_XSAVE, &x));
	x.region[131] = 0, x.region[129] = 0x40000000;
	TELL(ioctl(vcpu, KVM_SET_XSAVE, &x));
	x.region[129] = 0;
	TELL(ioctl(vcpu, KVM_SET_XSAVE, &x));
	ioctl(vcpu, KVM_GET_FPU, &back);
	printf("  fcw %x fsw %x ftwx %x mxcsr %x st %02x xmm %02x\n", back.fcw, back.fsw, back.ftwx, back.mxcsr, back.fpr[7][9],
	       back.xmm[15][15]);
	x.region[128] = 2;
	TELL(ioctl(vcpu, KVM_SET_XSAVE, &x));
	ioctl(vcpu, KVM_GET_XSAVE, &x);
	printf("  fcw %x st %x xmm %x\n", x.region[0] & 0xFFFF, x.region[8], x.region[40]);
	struct kvm_xcrs c = { .nr_xcrs = 1 };
	ioctl(vcpu, KVM_GET_XCRS, &c);
	printf("xcrs: %u flags %x, %x %llx\n", c.nr_xcrs, c.flags, c.xcrs[0].xcr, c.xcrs[0].value);
	for (uint64_t value = 0; value < 8; value++) {
		struct kvm_xcrs set = { .nr_xcrs = 1, .xcrs = { { .xcr = 0, .value = value } } };
		printf("xcr0 = %d: %s\n", (int)value, outcome(ioctl(vcpu, KVM_SET_XCRS, &set)));
	}
	struct kvm_xcrs odd = { .nr_xcrs = 17 };
	TELL(ioctl(vcpu, KVM_SET_XCRS, &odd));
	odd.nr_xcrs = 1, odd.flags = 1;
	TELL(ioctl(vcpu, KVM_SET_XCRS, &odd));
}

static void test_debugregs(void)
{
	struct kvm_debugregs d = { .db = { 1, ~0ULL, 3, 4 }, .dr6 = 0xFFFF0FF0, .dr7 = 0x400 }, back;
	TELL(ioctl(vcpu, KVM_SET_DEBUGREGS, &d));
	ioctl(vcpu, KVM_GET_DEBUGREGS, &back);
	printf("  %llx %llx %llx %llx dr6 %llx dr7 %llx flags %llx\n", back.db[0], back.db[1], back.db[2], back.db[3], back.dr6,
	       back.dr7, back.flags);
	d.dr6 = 0;
	TELL(ioctl(vcpu, KVM_SET_DEBUGREGS, &d));
	d.dr6 = 1ULL << 32;
	TELL(ioctl(vcpu, KVM_SET_DEBUGREGS, &d));
	d.dr6 = 0, d.dr7 = 1ULL << 32;
	TELL(ioctl(vcpu, KVM_SET_DEBUGREGS, &d));
	d.dr7 = 0xFFFFFFFF;
	TELL(ioctl(vcpu, KVM_SET_DEBUGREGS, &d));
	ioctl(vcpu, KVM_GET_DEBUGREGS, &back);
	printf("  dr6 %llx dr7 %llx\n", back.dr6, back.dr7);
	d.flags = 1;
	TELL(ioctl(vcpu, KVM_SET_DEBUGREGS, &d));
}

static void test_mp_state(void)
{
	for (unsigned value = 0; value < 12; value++) {
		struct kvm_mp_state s = { value }, back = { 99 };
		int result = ioctl(vcpu, KVM_SET_MP_STATE, &s);
		printf("mp_state %u = %s", value, outcome(result));
		ioctl(vcpu, KVM_GET_MP_STATE, &back);
		printf(" -> %u\n", back.mp_state);
	}
}

static void test_events(void)
{
	for (int bit = -1; bit < 8; bit++) {
		struct kvm_vcpu_events e;
		ioctl(vcpu, KVM_GET_VCPU_EVENTS, &e);
		e.flags = bit < 0 ? 0 : 1 << bit;
		printf("events flags %x = %s\n", e.flags, outcome(ioctl(vcpu, KVM_SET_VCPU_EVENTS, &e)));
	}
	struct kvm_vcpu_events e;
	e = (struct kvm_vcpu_events){ .nmi = { .masked = 7, .pending = 3 }, .flags = 1 };
	TELL(ioctl(vcpu, KVM_SET_VCPU_EVENTS, &e));
	ioctl(vcpu, KVM_GET_VCPU_EVENTS, &e);
	printf("  nmi pending %d masked %d\n", e.nmi.pending, e.nmi.masked);
	e = (struct kvm_vcpu_events){ .flags = 5 };
	TELL(ioctl(vcpu, KVM_SET_VCPU_EVENTS, &e));
}

static void test_translate(void)
{
	const uint64_t addresses[] = { 0, 0x1234, MMIO + 5, EDGE, 0x600000, 0xFFFF800000000000, 0x800000000000 };
	for (size_t i = 0; i < sizeof(addresses) / sizeof(addresses[0]); i++) {
		struct kvm_translation t = { .linear_address = addresses[i] };
		printf("translate %llx = %s", t.linear_address, outcome(ioctl(vcpu, KVM_TRANSLATE, &t)));
		printf(" -> %llx valid %d writeable %d usermode %d\n", t.physical_address, t.valid, t.writeable, t.usermode);
	}
}

int main(void)
{
	make_vm();
	start(nops, nops_end);
	test_sregs();
	test_segments();
	test_regs();
	start(nops, nops_end);
	test_fpu();
	test_debugregs();
	test_mp_state();
	test_events();
	test_translate();
	struct kvm_mp_state runnable = { 0 };
	ioctl(vcpu, KVM_SET_MP_STATE, &runnable);
	start(nops, nops_end);
	finish();
	return 0;
}
