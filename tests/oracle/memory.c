/* Memory slots: what is refused; read-only slots, holes, memory that is not there, immediate_exit. */
#include "client.h"
#include <signal.h>
#include <sys/time.h>

GUEST(touches, "mov (%rbx), %eax\n mov %eax, 8(%rbx)\n hlt");
GUEST(reads, "mov (%r8), %eax\n hlt");
GUEST(writes, "movl $0x55667788, (%r8)\n mov (%r8), %eax\n hlt");
GUEST(adds, "addl $1, (%r8)\n hlt");
GUEST(jumps, "jmp *%r8");
GUEST(copies, "mov %r8, %rdi\n rep movsq\n hlt");
GUEST(crosses, "mov %rax, -4(%r8)\n hlt");
GUEST(spins, "1: jmp 1b");

static uint8_t *page;

static int region(uint32_t slot, uint32_t flags, uint64_t gpa, uint64_t size, void *at)
{
	int result = set_region(slot, flags, gpa, size, at);
	printf("region slot %x flags %x gpa %llx size %llx at %s = %s\n", slot, flags, (unsigned long long)gpa,
	       (unsigned long long)size, at == NULL ? "0" : (uintptr_t)at & 0xFFF ? "odd" : "memory", outcome(result));
	return result;
}

static void test_errors(void)
{
	uint8_t *more = mmap(NULL, 0x10000, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	region(1, 0, 0x200000, 0x1800, more);
	region(1, 0, 0x200800, 0x1000, more);
	region(1, 0, 0x200000, 0x1000, more + 1);
	region(1, 0, 0x200000, 0, more);
	region(1, 0x80, 0x200000, 0x1000, more);
	region(1, 1, 0x200000, 0x1000, more);
	region(1, 2, 0x200000, 0x1000, more);
	region(1, 0, 0x200000, 0x1000, more);
	region(1, 0, 0x200000, 0x2000, more);
	region(1, 0, 0x200000, 0x1000, more + 0x1000);
	region(1, 0, 0x201000, 0x1000, more);
	region(2, 0, 0x201000, 0x1000, more);
	region(2, 0, 0x202000, 0x1000, more);
	region(2, 0, 0xFF000, 0x2000, more);
	region(1, 0, 0, 0, NULL);
	region(1, 0, 0, 0, NULL);
	region(2, 0, 0, 0, NULL);
	region(0x20000, 0, 0x200000, 0x1000, more);
	region(40000, 0, 0x200000, 0x1000, more);
	region(1, 0, 0xFFFFFFFFFFFFF000, 0x2000, more);
	region(1, 0, 1ULL << 52, 0x1000, more);
	region(1, 0, 0x200000, 0x1000, (void *)0xFFFF800000000000);
	region(1, 0, 0x200000, 0x1000, (void *)0x7FFFFFFFF000);
	region(1, 0, 0x200000, 0x1000, (void *)0x10000);
	region(1, 0, 0, 0, NULL);
	struct { uint32_t slot, padding; uint64_t bitmap; } log = { 0 };
	struct kvm_dirty_log dirty = { .slot = 0, .dirty_bitmap = &log };
	TELL(ioctl(vm, KVM_GET_DIRTY_LOG, &dirty));
	dirty.slot = 5;
	TELL(ioctl(vm, KVM_GET_DIRTY_LOG, &dirty));
	dirty.slot = 0x7FFFFFFF;
	TELL(ioctl(vm, KVM_GET_DIRTY_LOG, &dirty));
}

static void test_absent(const char *what, void *at)
{
	printf("== %s\n", what);
	region(1, 0, MMIO, 0x1000, at);
	START(reads), finish();
	START(writes), finish();
	START(adds), finish();
	START(copies), finish();
	START(crosses), finish();
	START(jumps), finish();
	region(1, 0, 0, 0, NULL);
}

static void on_alarm(int number)
{
	(void)number;
	run->immediate_exit = 1;
}

int main(void)
{
	make_vm();
	START(touches), finish();
	test_errors();
	page = mmap(NULL, 0x1000, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	memset(page, 0xF4, 0x1000);
	test_absent("memory", page);

	printf("== read-only slot\n");
	memset(page, 0xF4, 0x1000);
	region(1, KVM_MEM_READONLY, MMIO, 0x1000, page);
	START(reads), finish();
	START(writes), finish();
	START(adds), finish();
	START(copies), finish();
	START(crosses), finish();
	START(jumps), finish();
	tell_bytes("page", page, 8);
	region(1, 0, 0, 0, NULL);

	void *none = mmap(NULL, 0x1000, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	test_absent("memory that may not be touched", none);
	void *readable = mmap(NULL, 0x1000, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	test_absent("memory that may only be read", readable);
	munmap(none, 0x1000);
	test_absent("memory that is not mapped", none);

	printf("== immediate_exit and signals\n");
	start(spins, spins_end);
	run->immediate_exit = 1;
	step();
	step();
	run->immediate_exit = 0;
	struct sigaction action = { .sa_handler = on_alarm };
	struct itimerval soon = { .it_value = { .tv_usec = 100000 } };
	sigaction(SIGALRM, &action, NULL);
	setitimer(ITIMER_REAL, &soon, NULL);
	step();
	tell_regs();
	step();
	run->immediate_exit = 0;
	START(touches), finish();
	return 0;
}
