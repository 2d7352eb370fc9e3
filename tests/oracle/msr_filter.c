/* The MSR filter: which ranges are taken, what the guest's accesses to filtered MSRs do, with exits and without. */
#include "client.h"

GUEST(reads, "rdmsr\n hlt");
GUEST(writes, "mov $5, %eax\n xor %edx, %edx\n wrmsr\n hlt");

static uint8_t bitmap[0x800];

static void filter(uint32_t flags, uint32_t range_flags, uint32_t base, uint32_t count, void *at)
{
	struct kvm_msr_filter f = { .flags = flags };
	f.ranges[0] = (struct kvm_msr_filter_range){ .flags = range_flags, .base = base, .nmsrs = count, .bitmap = at };
	printf("filter %x, range %x %x+%x = %s\n", flags, range_flags, base, count, outcome(ioctl(vm, KVM_X86_SET_MSR_FILTER, &f)));
}

static void ranges(void)
{
	printf("== ranges\n");
	filter(0, 0, 0x174, 3, bitmap);
	filter(0, 4, 0x174, 3, bitmap);
	filter(0, 1, 0x174, 0, bitmap);
	filter(0, 1, 0x174, 3, NULL);
	filter(0, 3, 0x174, 0x3000, bitmap);
	filter(0, 3, 0x174, 0x3001, bitmap);
	filter(0, 3, 0xFFFFFFFF, 2, bitmap);
	filter(2, 3, 0x174, 3, bitmap);
	filter(1, 3, 0x174, 0, bitmap);
	filter(1, 3, 0x174, 3, bitmap);
	filter(0, 0, 0, 0, NULL);
}

static void guest(uint32_t index)
{
	printf("-- guest, %x\n", index);
	for (int write = 0; write < 2; write++) {
		write ? start(writes, writes_end) : start(reads, reads_end);
		regs.rcx = index;
		ioctl(vcpu, KVM_SET_REGS, &regs);
		for (int i = 0; i < 2; i++) {
			int reason = step();
			if (reason != KVM_EXIT_X86_RDMSR && reason != KVM_EXIT_X86_WRMSR)
				break;
			printf("  %s %x reason %x error %d pad %d", reason == KVM_EXIT_X86_RDMSR ? "rdmsr" : "wrmsr", run->msr.index,
			       run->msr.reason, run->msr.error, run->msr.pad[0]);
			printf(reason == KVM_EXIT_X86_WRMSR ? " data %llx\n" : "\n", run->msr.data);
			run->msr.error = 0;
			run->msr.data = 0x1234567800000000 + index;
		}
		tell_regs();
		tell_stack();
	}
}

static void exits(uint64_t reasons)
{
	struct kvm_enable_cap cap = { .cap = KVM_CAP_X86_USER_SPACE_MSR, .args = { reasons } };
	printf("exits for %llx = %s\n", (unsigned long long)reasons, outcome(ioctl(vm, KVM_ENABLE_CAP, &cap)));
}

static void guests(void)
{
	static const uint32_t indices[] = { 0x174, 0x175, 0x277, 0xC0000081, 0xC0000103, 0x12345 };
	for (size_t i = 0; i < sizeof(indices) / sizeof(indices[0]); i++)
		guest(indices[i]);
}

int main(void)
{
	make_vm();
	ranges();
	memset(bitmap, 0, sizeof(bitmap));
	bitmap[0] = 2; /* 175 is allowed */
	printf("== 174 to 176 but for 175, not told\n");
	filter(0, KVM_MSR_FILTER_READ | KVM_MSR_FILTER_WRITE, 0x174, 3, bitmap);
	guests();
	printf("== told\n");
	exits(KVM_MSR_EXIT_REASON_FILTER);
	guests();
	printf("== told, with what KVM does not know\n");
	exits(KVM_MSR_EXIT_REASON_FILTER | KVM_MSR_EXIT_REASON_UNKNOWN | KVM_MSR_EXIT_REASON_INVAL);
	guests();
	printf("== writes only\n");
	filter(0, KVM_MSR_FILTER_WRITE, 0x174, 3, bitmap);
	guest(0x174);
	printf("== all but a range, by default\n");
	filter(KVM_MSR_FILTER_DEFAULT_DENY, KVM_MSR_FILTER_READ | KVM_MSR_FILTER_WRITE, 0x174, 3, bitmap);
	guest(0x175);
	guest(0xC0000081);
	guest(0x802); /* x2APIC MSRs are not filtered */
	filter(0, 0, 0, 0, NULL);
	guest(0x174);
	return 0;
}
