/* Interrupt controllers in the kernel, as ioctls see them: what state they take, and who gets which message. */
#include "client.h"

enum { CPUS = 3, PIN = 9, EDGE_ENTRY = 0x41, LEVEL = 1 << 15, LOGICAL = 1 << 11, MASKED = 1 << 16, APIC_PAGE = 0xFEE00000 };

static int cpus[CPUS];

static uint32_t get_register(int cpu, int offset)
{
	struct kvm_lapic_state state;
	ioctl(cpus[cpu], KVM_GET_LAPIC, &state);
	return *(uint32_t *)(state.regs + offset);
}

static int set_register(int cpu, int offset, uint32_t value)
{
	struct kvm_lapic_state state;
	ioctl(cpus[cpu], KVM_GET_LAPIC, &state);
	*(uint32_t *)(state.regs + offset) = value;
	return ioctl(cpus[cpu], KVM_SET_LAPIC, &state);
}

static int set_msr(int cpu, uint32_t index, uint64_t value)
{
	struct { struct kvm_msrs head; struct kvm_msr_entry entry; } msrs = { { .nmsrs = 1 }, { .index = index, .data = value } };
	return ioctl(cpus[cpu], KVM_SET_MSRS, &msrs);
}

static void tell_msr(int cpu, uint32_t index)
{
	struct { struct kvm_msrs head; struct kvm_msr_entry entry; } msrs = { { .nmsrs = 1 }, { .index = index } };
	int got = ioctl(cpus[cpu], KVM_GET_MSRS, &msrs);
	printf("  msr %x: %s %llx\n", index, outcome(got), got == 1 ? msrs.entry.data : 0);
}

/* Which vectors each APIC has in its IRR and TMR; they are cleared. */
static void tell_requests(void)
{
	for (int cpu = 0; cpu < CPUS; cpu++) {
		struct kvm_lapic_state state;
		ioctl(cpus[cpu], KVM_GET_LAPIC, &state);
		printf("  cpu %d:", cpu);
		for (int vector = 0; vector < 256; vector++) {
			int at = vector / 32 * 16, bit = vector % 32;
			uint32_t *irr = (uint32_t *)(state.regs + 0x200 + at), *tmr = (uint32_t *)(state.regs + 0x180 + at);
			if (*irr >> bit & 1)
				printf(" %x%s", vector, *tmr >> bit & 1 ? " (level)" : "");
			*irr &= ~(1U << bit);
		}
		printf("\n");
		ioctl(cpus[cpu], KVM_SET_LAPIC, &state);
	}
}

static void message(uint64_t address, uint32_t data)
{
	struct kvm_msi msi = { .address_lo = address, .address_hi = address >> 32, .data = data };
	printf("message %llx %x = %s\n", (unsigned long long)address, data, outcome(ioctl(vm, KVM_SIGNAL_MSI, &msi)));
	tell_requests();
}

static void line(uint32_t gsi, int level)
{
	struct kvm_irq_level irq = { .irq = gsi, .level = level };
	int result = ioctl(vm, KVM_IRQ_LINE_STATUS, &irq);
	printf("line %u %d = %s, status %d\n", gsi, level, outcome(result), (int)irq.status);
}

static void redirect(int pin, uint64_t entry)
{
	struct kvm_irqchip chip = { .chip_id = KVM_IRQCHIP_IOAPIC };
	ioctl(vm, KVM_GET_IRQCHIP, &chip);
	chip.chip.ioapic.redirtbl[pin].bits = entry;
	ioctl(vm, KVM_SET_IRQCHIP, &chip);
	ioctl(vm, KVM_GET_IRQCHIP, &chip);
	printf("redirect %d %llx: %llx irr %x\n", pin, (unsigned long long)entry,
	       (unsigned long long)chip.chip.ioapic.redirtbl[pin].bits, chip.chip.ioapic.irr);
}

static void pic(int number, struct kvm_pic_state state)
{
	struct kvm_irqchip chip = { .chip_id = number };
	memcpy(&chip.chip.pic, &state, sizeof(state));
	printf("pic %d: set %s, ", number, outcome(ioctl(vm, KVM_SET_IRQCHIP, &chip)));
	printf("get %s:", outcome(ioctl(vm, KVM_GET_IRQCHIP, &chip)));
	for (size_t i = 0; i < sizeof(state); i++)
		printf(" %02x", ((uint8_t *)&chip.chip.pic)[i]);
	printf("\n");
}

static void pit(struct kvm_pit_state2 state)
{
	printf("pit: set %s, ", outcome(ioctl(vm, KVM_SET_PIT2, &state)));
	memset(&state, 0xAA, sizeof(state));
	printf("get %s: flags %x", outcome(ioctl(vm, KVM_GET_PIT2, &state)), state.flags);
	for (int i = 0; i < 3; i++)
		printf(", %x mode %u gate %u bcd %u", state.channels[i].count, state.channels[i].mode, state.channels[i].gate,
		       state.channels[i].bcd);
	printf("\n");
}

static void route(uint32_t gsi, uint32_t type, uint32_t flags, uint32_t chip, uint32_t pin)
{
	struct { struct kvm_irq_routing head; struct kvm_irq_routing_entry entry; } table = {
		{ .nr = 1 }, { .gsi = gsi, .type = type, .flags = flags, .u.irqchip = { chip, pin } },
	};
	printf("route %u type %u flags %x to %x, %x = %s\n", gsi, type, flags, chip, pin,
	       outcome(ioctl(vm, KVM_SET_GSI_ROUTING, &table)));
}

static void apic_modes(void)
{
	static const uint64_t bases[] = {
		0xFEE00000, 0xFEE00400, 0xFEE00800, 0xFEE00C00, 0xFEE00900, 0xFEC00900, 0xFEE00A00, 0x1FEE00800, 0xFEE00C00, 0xFEE00800,
	};
	printf("-- modes, second vCPU\n");
	for (size_t i = 0; i < sizeof(bases) / sizeof(*bases); i++) {
		printf("base %llx = %s\n", (unsigned long long)bases[i], outcome(set_msr(1, 0x1B, bases[i])));
		tell_msr(1, 0x1B);
		printf("  id %x ldr %x dfr %x\n", get_register(1, 0x20), get_register(1, 0xD0), get_register(1, 0xE0));
		TELL(set_register(1, 0x20, 0x05000000));
		printf("  id %x\n", get_register(1, 0x20));
		TELL(set_register(1, 0x20, 0x01000000));
		tell_msr(1, 0x802);
		tell_msr(1, 0x80D);
	}
}

static void registers(void)
{
	static const int offsets[] = {
		0x20, 0x30, 0x80, 0x90, 0xA0, 0xD0, 0xE0, 0xF0, 0x280, 0x300, 0x310, 0x320, 0x330, 0x340, 0x350, 0x360, 0x370, 0x380,
		0x390, 0x3E0, 0x3F0,
	};
	printf("-- registers\n");
	for (int cpu = 0; cpu < 2; cpu++)
		for (size_t i = 0; i < sizeof(offsets) / sizeof(*offsets); i++)
			printf("cpu %d %x: %x\n", cpu, offsets[i], get_register(cpu, offsets[i]));
	for (size_t i = 3; i < sizeof(offsets) / sizeof(*offsets); i++) {
		printf("%x := ~0: %s", offsets[i], outcome(set_register(2, offsets[i], ~0)));
		printf(", %x\n", offsets[i] == 0x390 ? 0 : get_register(2, offsets[i]));
	}
}

int main(void)
{
	struct kvm_pit_config config = { .flags = 2 };
	make_vm();
	TELL(ioctl(vm, KVM_CREATE_IRQCHIP, 0));	/* too late: there is a vCPU */
	vm = ioctl(kvm, KVM_CREATE_VM, 0);
	TELL(ioctl(vm, KVM_CREATE_PIT2, &config));
	TELL(ioctl(vm, KVM_CREATE_IRQCHIP, 0));
	TELL(ioctl(vm, KVM_CREATE_IRQCHIP, 0));
	TELL(ioctl(vm, KVM_CREATE_PIT2, &config));
	config.flags = 1;
	TELL(ioctl(vm, KVM_CREATE_PIT2, &config));
	TELL(ioctl(vm, KVM_CREATE_PIT2, &config));
	for (int cpu = 0; cpu < CPUS; cpu++) {
		vcpu = cpus[cpu] = ioctl(vm, KVM_CREATE_VCPU, cpu);
		require(vcpu >= 0, "KVM_CREATE_VCPU");
		set_cpuid();
	}
	registers();
	set_register(2, 0xF0, 0xFF);
	for (int cpu = 0; cpu < CPUS; cpu++) {
		set_register(cpu, 0xE0, 0xFFFFFFFF);
		set_register(cpu, 0xD0, 1 << (24 + cpu));
		set_register(cpu, 0xF0, 0x1FF);
		set_register(cpu, 0x80, 0);
	}
	printf("-- messages\n");
	tell_requests();
	for (unsigned int mode = 0; mode < 8; mode++)
		/* SMI: as with a KVM without CONFIG_KVM_SMM. INIT, SIPI: what a vCPU makes of them it does in KVM_RUN */
		if (mode != 2 && mode != 5 && mode != 6)
			message(APIC_PAGE, 0x41 | mode << 8);
	message(APIC_PAGE | 1 << 12, 0x05);
	message(APIC_PAGE | 1 << 12, 0x8042);
	message(APIC_PAGE | 1 << 12, 0xC043);
	message(APIC_PAGE | 7 << 12, 0x44);
	message(APIC_PAGE | 0xFF << 12, 0x45);
	message(APIC_PAGE | 6 << 12 | 4, 0x46);
	message(APIC_PAGE | 6 << 12 | 12, 0x147);
	message(APIC_PAGE | 0 << 12 | 4, 0x48);
	message(0x100000000 | APIC_PAGE, 0x49);
	message(0x12345000, 0x4A);
	printf("-- lines\n");
	line(PIN, 1);
	line(PIN, 0);
	redirect(PIN, EDGE_ENTRY);
	line(PIN, 1);
	line(PIN, 1);
	line(PIN, 0);
	tell_requests();
	redirect(PIN, EDGE_ENTRY | MASKED);
	line(PIN, 1);
	redirect(PIN, EDGE_ENTRY);
	tell_requests();
	line(PIN, 0);
	redirect(PIN, EDGE_ENTRY | LEVEL | LOGICAL | 5ULL << 56);
	line(PIN, 1);
	tell_requests();
	line(PIN, 1);
	line(PIN, 0);
	redirect(PIN, ~0ULL);
	redirect(PIN, EDGE_ENTRY | LEVEL | 1 << 14);
	line(24, 1);
	line(4096, 1);
	printf("-- pics\n");
	pic(0, (struct kvm_pic_state){ .imr = 0xFE, .irq_base = 0x20, .elcr = 0xFF, .elcr_mask = 0xF8, .init4 = 1 });
	pic(1, (struct kvm_pic_state){ .imr = 0xFF, .irq_base = 0x28, .elcr = 0xFF, .elcr_mask = 0xDE, .irr = 0xF0, .isr = 3 });
	pic(3, (struct kvm_pic_state){});
	printf("-- pit\n");
	pit((struct kvm_pit_state2){ .channels = { { .count = 0x10000, .mode = 0xFF }, { .count = 18, .mode = 2, .gate = 1 } } });
	pit((struct kvm_pit_state2){ .channels = { { .mode = 0xFF }, {}, { .count = 7, .mode = 3, .gate = 1 } }, .flags = ~0 });
	printf("-- routes\n");
	route(5, KVM_IRQ_ROUTING_IRQCHIP, 0, KVM_IRQCHIP_IOAPIC, 5);
	route(5, KVM_IRQ_ROUTING_IRQCHIP, 0, KVM_IRQCHIP_IOAPIC, 24);
	route(5, KVM_IRQ_ROUTING_IRQCHIP, 0, KVM_IRQCHIP_PIC_SLAVE, 7);
	route(5, KVM_IRQ_ROUTING_IRQCHIP, 0, KVM_IRQCHIP_PIC_SLAVE, 8);
	route(5, KVM_IRQ_ROUTING_IRQCHIP, 0, 3, 0);
	route(5, KVM_IRQ_ROUTING_IRQCHIP, 1, KVM_IRQCHIP_IOAPIC, 5);
	route(4096, KVM_IRQ_ROUTING_IRQCHIP, 0, KVM_IRQCHIP_IOAPIC, 5);
	route(5, KVM_IRQ_ROUTING_MSI, 0, APIC_PAGE, 0);
	route(5, KVM_IRQ_ROUTING_MSI, KVM_MSI_VALID_DEVID, APIC_PAGE, 0);
	route(5, 77, 0, 0, 0);
	line(5, 1);
	apic_modes();
	return 0;
}
