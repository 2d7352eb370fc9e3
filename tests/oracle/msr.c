/* MSRs: which the VMM can read and write, what the guest's accesses do, and exits for those that KVM refuses. */
#include "client.h"

GUEST(reads, "rdmsr\n hlt");
GUEST(writes, "mov $5, %eax\n xor %edx, %edx\n wrmsr\n hlt");

/* Those that are the same on Intel's and AMD's processors, and without an APIC in the kernel. */
static const uint32_t indices[] = {
	0x10, 0x1B, 0x3B, 0x8B, 0xE1, 0x140, 0x174, 0x175, 0x176, 0x179, 0x17A, 0x17B, 0x198, 0x199, 0x19A, 0x1A0, 0x200, 0x201,
	0x20F, 0x250, 0x258, 0x26F, 0x277, 0x2FF, 0x400, 0x401, 0x403, 0x47F, 0x570, 0x600, 0x802, 0xC0000080, 0xC0000081,
	0xC0000082, 0xC0000083, 0xC0000084, 0xC0000100, 0xC0000101, 0xC0000102, 0xC0000103, 0xC0010015, 0x12345,
	0x4B564D03, 0x4B564D05,
};

static int access_msr(unsigned long request, uint32_t index, uint64_t *value)
{
	struct { struct kvm_msrs head; struct kvm_msr_entry entry; } msrs = { { .nmsrs = 1 }, { .index = index, .data = *value } };
	int result = ioctl(vcpu, request, &msrs);
	*value = msrs.entry.data;
	return result;
}

static void guest(uint32_t index)
{
	printf("-- guest, %x\n", index);
	start(reads, reads_end);
	regs.rcx = index;
	ioctl(vcpu, KVM_SET_REGS, &regs);
	for (int i = 0; i < 3; i++) {
		if (step() != KVM_EXIT_X86_RDMSR)
			break;
		printf("  rdmsr %x reason %x error %d\n", run->msr.index, run->msr.reason, run->msr.error);
		run->msr.error = index & 1;
		run->msr.data = 0x1122334455667788;
	}
	tell_regs();
	tell_stack();
	start(writes, writes_end);
	regs.rcx = index;
	ioctl(vcpu, KVM_SET_REGS, &regs);
	for (int i = 0; i < 3; i++) {
		if (step() != KVM_EXIT_X86_WRMSR)
			break;
		printf("  wrmsr %x reason %x data %llx\n", run->msr.index, run->msr.reason, run->msr.data);
		run->msr.error = index & 1;
	}
	tell_regs();
	tell_stack();
}

int main(void)
{
	make_vm();
	start(reads, reads_end);
	for (size_t i = 0; i < sizeof(indices) / sizeof(indices[0]); i++) {
		uint64_t value = 0, changed;
		int got = access_msr(KVM_GET_MSRS, indices[i], &value);
		printf("msr %x: get %s", indices[i], outcome(got));
		if (indices[i] != 0x10 && indices[i] != 0x8B && indices[i] != 0x198 && indices[i] != 0x10A)
			printf(" %llx", got == 1 ? (unsigned long long)value : 0);
		changed = value;
		printf(", same %s", outcome(access_msr(KVM_SET_MSRS, indices[i], &changed)));
		changed = ~0ULL;
		printf(", ones %s", outcome(access_msr(KVM_SET_MSRS, indices[i], &changed)));
		changed = 0x0FFF123456789000; /* not canonical, with 57 bits neither */
		printf(", address %s\n", outcome(access_msr(KVM_SET_MSRS, indices[i], &changed)));
		changed = value;
		access_msr(KVM_SET_MSRS, indices[i], &changed);
	}
	guest(0x12345);
	guest(0x277);
	guest(0xC0000103);
	struct kvm_enable_cap exits = { .cap = KVM_CAP_X86_USER_SPACE_MSR, .args = { 7 } };
	TELL(ioctl(vm, KVM_ENABLE_CAP, &exits));
	guest(0x12345);
	guest(0x12346);
	guest(0x277);
	exits.args[0] = 0x10;
	TELL(ioctl(vm, KVM_ENABLE_CAP, &exits));
	return 0;
}
