#include "monitor.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum {
	MAX_VCPUS = 8, CPUID_ENTRIES = 256, MSR_INDICES = 256, PAUSES = 20, PAUSE_EVERY = 50000 /* us */, KICK_EVERY = 5000,
	HYPERVISOR = 1 << 31, TSC_DEADLINE = 1 << 24,	/* CPUID leaf 1, ECX */
};

/* How a monitor gets a vCPU out of KVM_RUN: by a signal, and ... */
enum kick {
	KICK_BY_HANDLER,	/* whose handler sets immediate_exit (crosvm) */
	KICK_BY_OTHERS,		/* the others set immediate_exit, through a mapping of their own (Firecracker) */
	KICK_BY_SIGNAL,		/* nothing else, sent until it has worked (Cloud Hypervisor, kvmtool) */
};

#define END -1

struct monitor {
	const char *name;
	int capabilities[20];	/* without one of these it does not start */
	bool capabilities_of_vm, memfd, split, identity_map, one_msr_a_call;
	uint32_t pit_flags;
	enum wiring wiring;
	enum kick kick;
	void (*enter)(int vcpu, const struct kernel *kernel);
};

static const struct monitor monitors[] = {
	{
		.name = "firecracker", .enter = enter_elf_64, .wiring = BY_IRQFD, .kick = KICK_BY_OTHERS,
		.pit_flags = KVM_PIT_SPEAKER_DUMMY,
		.capabilities = {
			KVM_CAP_IRQCHIP, KVM_CAP_IOEVENTFD, KVM_CAP_IRQFD, KVM_CAP_USER_MEMORY, KVM_CAP_SET_TSS_ADDR, KVM_CAP_PIT2,
			KVM_CAP_PIT_STATE2, KVM_CAP_ADJUST_CLOCK, KVM_CAP_DEBUGREGS, KVM_CAP_MP_STATE, KVM_CAP_VCPU_EVENTS,
			KVM_CAP_XCRS, KVM_CAP_XSAVE, KVM_CAP_EXT_CPUID, END,
		},
	}, {
		.name = "crosvm", .enter = enter_bzimage_64, .wiring = BY_RESAMPLED_IRQFD, .kick = KICK_BY_HANDLER,
		.capabilities_of_vm = true, .memfd = true, .identity_map = true, .one_msr_a_call = true,
		.capabilities = { KVM_CAP_IMMEDIATE_EXIT, END },
	}, {
		.name = "cloud-hypervisor", .enter = enter_elf_pvh, .wiring = BY_MSI_ROUTE, .kick = KICK_BY_SIGNAL,
		.split = true, .identity_map = true,
		.capabilities = {
			KVM_CAP_ADJUST_CLOCK, KVM_CAP_EXT_CPUID, KVM_CAP_GET_TSC_KHZ, KVM_CAP_IMMEDIATE_EXIT, KVM_CAP_IOEVENTFD,
			KVM_CAP_IRQCHIP, KVM_CAP_IRQFD, KVM_CAP_IRQ_ROUTING, KVM_CAP_MP_STATE, KVM_CAP_SET_IDENTITY_MAP_ADDR,
			KVM_CAP_SET_TSS_ADDR, KVM_CAP_SPLIT_IRQCHIP, KVM_CAP_TSC_DEADLINE_TIMER, KVM_CAP_USER_MEMORY,
			KVM_CAP_USER_NMI, KVM_CAP_VCPU_EVENTS, KVM_CAP_XSAVE, END,
		},
	}, {
		.name = "kvmtool", .enter = enter_bzimage_real, .wiring = BY_IRQ_LINE, .kick = KICK_BY_SIGNAL,
		.capabilities = {
			KVM_CAP_COALESCED_MMIO, KVM_CAP_SET_TSS_ADDR, KVM_CAP_PIT2, KVM_CAP_USER_MEMORY, KVM_CAP_IRQ_ROUTING,
			KVM_CAP_IRQCHIP, KVM_CAP_HLT, KVM_CAP_IRQ_INJECT_STATUS, KVM_CAP_EXT_CPUID, END,
		},
	},
};

int kvm_fd, vm_fd;

static const struct monitor *monitor;

/* Before the VM, and the VM */

static void check_capabilities(int fd)
{
	for (const int *capability = monitor->capabilities; *capability != END; capability++)
		if (KVM(fd, KVM_CHECK_EXTENSION, *capability) == 0)
			errx(1, "%s does not start without capability %d", monitor->name, *capability);
}

static void list_msrs(void)
{
	struct { struct kvm_msr_list header; uint32_t indices[MSR_INDICES]; } list = { .header.nmsrs = MSR_INDICES };

	KVM(kvm_fd, KVM_GET_MSR_INDEX_LIST, &list);
	if (list.header.nmsrs == 0)
		errx(1, "no MSR to save");
}

static void make_interrupt_controllers(void)
{
	struct kvm_pit_config pit = { .flags = monitor->pit_flags };

	if (monitor->split) {
		KVM(vm_fd, KVM_ENABLE_CAP, (&(struct kvm_enable_cap){ .cap = KVM_CAP_SPLIT_IRQCHIP, .args = { IOAPIC_PINS } }));
	} else {
		KVM(vm_fd, KVM_CREATE_IRQCHIP, 0);
		KVM(vm_fd, KVM_CREATE_PIT2, &pit);
	}
}

/* vCPUs */

static struct vcpu {
	int fd;
	struct kvm_run *run, *others_run;
	pthread_t thread;
	bool is_paused;
} vcpus[MAX_VCPUS];
static int vcpu_count;

static void set_cpuid(int vcpu, int id)
{
	struct { struct kvm_cpuid2 header; struct kvm_cpuid_entry2 entries[CPUID_ENTRIES]; } cpuid = { .header.nent = CPUID_ENTRIES };

	KVM(kvm_fd, KVM_GET_SUPPORTED_CPUID, &cpuid);
	for (unsigned i = 0; i < cpuid.header.nent; i++) {
		struct kvm_cpuid_entry2 *e = &cpuid.entries[i];

		if (e->function == 1) {
			e->ebx = (e->ebx & 0xff00) | (uint32_t)id << 24 | (uint32_t)vcpu_count << 16;
			e->ecx |= HYPERVISOR;
			if (KVM(kvm_fd, KVM_CHECK_EXTENSION, KVM_CAP_TSC_DEADLINE_TIMER))
				e->ecx |= TSC_DEADLINE;
		}
		if (e->function == 0xb)
			e->edx = id;
	}
	KVM(vcpu, KVM_SET_CPUID2, &cpuid);
}

static void set_msrs(int vcpu)	/* Firecracker's boot list; the others' hold the same */
{
	static const struct kvm_msr_entry boot[] = {
		{ .index = 0x174 }, { .index = 0x175 }, { .index = 0x176 },		/* SYSENTER */
		{ .index = 0xc0000081 }, { .index = 0xc0000082 }, { .index = 0xc0000083 }, { .index = 0xc0000084 },
		{ .index = 0xc0000102 }, { .index = 0x10 },				/* kernel's GS base, TSC */
		{ .index = 0x1a0, .data = 1 }, { .index = 0x2ff, .data = 1 << 11 | 6 },	/* MISC_ENABLE, MTRRs */
	};
	const int count = sizeof(boot) / sizeof(*boot), step = monitor->one_msr_a_call ? 1 : count;

	for (int i = 0; i < count; i += step) {
		struct { struct kvm_msrs header; struct kvm_msr_entry entries[sizeof(boot) / sizeof(*boot)]; } msrs;

		msrs.header.nmsrs = step;
		memcpy(msrs.entries, boot + i, step * sizeof(*boot));
		if (KVM(vcpu, KVM_SET_MSRS, &msrs) != step)
			errx(1, "KVM_SET_MSRS: not all of them");
	}
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

static struct kvm_run *map_run(int vcpu)
{
	size_t size = KVM(kvm_fd, KVM_GET_VCPU_MMAP_SIZE, 0);
	struct kvm_run *run = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);

	if (run == MAP_FAILED)
		err(1, "vCPU's kvm_run");
	return run;
}

static void make_vcpu(struct vcpu *vcpu, int id)
{
	struct kvm_fpu fpu = { .fcw = 0x37f, .mxcsr = 0x1f80 };

	vcpu->fd = KVM(vm_fd, KVM_CREATE_VCPU, id);
	vcpu->run = map_run(vcpu->fd);
	if (monitor->kick == KICK_BY_OTHERS)
		vcpu->others_run = map_run(dup(vcpu->fd));
	set_cpuid(vcpu->fd, id);
	set_msrs(vcpu->fd);
	KVM(vcpu->fd, KVM_SET_FPU, &fpu);
	set_lints(vcpu->fd);
}

/* Pausing: now and then all vCPUs are made to leave KVM_RUN, and to wait. */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static bool pausing;
static int pauses;
static __thread struct kvm_run *own_run;

static void on_kick(int signal)
{
	(void)signal;
	if (own_run && monitor->kick == KICK_BY_HANDLER)
		own_run->immediate_exit = 1;
}

static void pause_if_wanted(struct vcpu *vcpu)
{
	pthread_mutex_lock(&lock);
	if (pausing) {
		/* An instruction that waits for its data is finished, and nothing else. */
		vcpu->run->immediate_exit = 1;
		if (ioctl(vcpu->fd, KVM_RUN, 0) == 0 || (errno != EINTR && errno != EAGAIN))
			err(1, "KVM_RUN with immediate_exit");
		vcpu->is_paused = true;
		pthread_cond_broadcast(&changed);
		while (pausing)
			pthread_cond_wait(&changed, &lock);
		vcpu->is_paused = false;
		pthread_cond_broadcast(&changed);
		if (ioctl(vcpu->fd, KVM_KVMCLOCK_CTRL, 0) && errno != EINVAL)	/* EINVAL: the guest has no kvmclock yet */
			err(1, "KVM_KVMCLOCK_CTRL");
	}
	vcpu->run->immediate_exit = 0;
	pthread_mutex_unlock(&lock);
}

static bool all_are(bool paused)
{
	for (int i = 0; i < vcpu_count; i++)
		if (vcpus[i].is_paused != paused)
			return false;
	return true;
}

static void kick_all(void)
{
	for (int i = 0; i < vcpu_count; i++) {
		if (vcpus[i].others_run)
			vcpus[i].others_run->immediate_exit = 1;
		pthread_kill(vcpus[i].thread, SIGRTMIN);
	}
}

static void *pause_often(void *unused)
{
	(void)unused;
	for (; pauses < PAUSES; pauses++) {
		usleep(PAUSE_EVERY);
		pthread_mutex_lock(&lock);
		pausing = true;
		while (!all_are(true)) {
			pthread_mutex_unlock(&lock);
			kick_all();
			usleep(KICK_EVERY);
			pthread_mutex_lock(&lock);
		}
		pausing = false;
		pthread_cond_broadcast(&changed);
		while (!all_are(false))
			pthread_cond_wait(&changed, &lock);
		pthread_mutex_unlock(&lock);
	}
	return NULL;
}

void power_off(int status)
{
	printf("\n%d pauses\n", pauses);
	fflush(stdout);
	_exit(status);
}

/* Running */

static void fail(struct vcpu *vcpu)
{
	struct kvm_run *run = vcpu->run;
	struct kvm_regs regs;

	KVM(vcpu->fd, KVM_GET_REGS, &regs);
	fprintf(stderr, "rip %#llx\n", regs.rip);
	for (unsigned i = 0; run->exit_reason == KVM_EXIT_INTERNAL_ERROR && i < run->internal.ndata; i++)
		fprintf(stderr, "%016llx\n", run->internal.data[i]);
	errx(3, "exit %u", run->exit_reason);
}

static void *run_vcpu(void *argument)
{
	struct vcpu *vcpu = argument;

	own_run = vcpu->run;
	for (;;) {
		if (ioctl(vcpu->fd, KVM_RUN, 0) < 0) {
			if (errno != EAGAIN && errno != EINTR)	/* EAGAIN: INIT or SIPI has come */
				err(1, "KVM_RUN");
			pause_if_wanted(vcpu);
			continue;
		}
		switch (vcpu->run->exit_reason) {
		case KVM_EXIT_IO:
			port(vcpu->run);
			break;
		case KVM_EXIT_MMIO:
			mmio(vcpu->run);
			break;
		case KVM_EXIT_IOAPIC_EOI:	/* split: our I/O APIC has edges only */
			break;
		default:
			fail(vcpu);
		}
	}
}

int main(int argc, char **argv)
{
	uint64_t identity_map = 0xfffbc000;
	struct sigaction action = { .sa_handler = on_kick };
	struct kernel kernel;
	pthread_t pauser;

	if (argc != 7)
		errx(1, "usage: monitor LIKE-WHOM KERNEL INITRD MEGABYTES VCPUS COMMAND-LINE");
	for (size_t i = 0; i < sizeof(monitors) / sizeof(*monitors); i++)
		if (!strcmp(argv[1], monitors[i].name))
			monitor = &monitors[i];
	vcpu_count = atoi(argv[5]);
	if (!monitor || vcpu_count < 1 || vcpu_count > MAX_VCPUS)
		errx(1, "no such monitor, or too many vCPUs");
	kernel = (struct kernel){ .image = argv[2], .initrd = argv[3], .command_line = argv[6] };

	kvm_fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (kvm_fd < 0)
		err(1, "/dev/kvm");
	if (KVM(kvm_fd, KVM_GET_API_VERSION, 0) != KVM_API_VERSION)
		errx(1, "another KVM");
	if (!monitor->capabilities_of_vm)
		check_capabilities(kvm_fd);
	list_msrs();
	vm_fd = KVM(kvm_fd, KVM_CREATE_VM, 0);
	if (monitor->capabilities_of_vm)
		check_capabilities(vm_fd);
	KVM(vm_fd, KVM_SET_TSS_ADDR, 0xfffbd000);
	if (monitor->identity_map)
		KVM(vm_fd, KVM_SET_IDENTITY_MAP_ADDR, &identity_map);
	make_memory((size_t)atoi(argv[4]) << 20, monitor->memfd);
	make_interrupt_controllers();
	for (int i = 0; i < vcpu_count; i++)
		make_vcpu(&vcpus[i], i);
	wire(monitor->wiring);
	load_initrd(&kernel);
	write_mp_table(vcpu_count, monitor->wiring == BY_RESAMPLED_IRQFD);
	monitor->enter(vcpus[0].fd, &kernel);

	sigaction(SIGRTMIN, &action, NULL);
	for (int i = 0; i < vcpu_count; i++)
		if (pthread_create(&vcpus[i].thread, NULL, run_vcpu, &vcpus[i]))
			errx(1, "no thread");
	if (pthread_create(&pauser, NULL, pause_often, NULL))
		errx(1, "no thread");
	pthread_join(vcpus[0].thread, NULL);
}
