/*
 * Runs single instructions on this processor: the reference of the fuzzer (layout.py describes a case).
 *
 * Every case is one round trip through the kernel: sigreturn loads all of its state, with TF set; the debug trap after
 * the instruction, or the fault that it raises, comes back as a signal with all of the state after it. So any
 * instruction can be run, with any registers, in 64-bit, 32-bit (the kernel's compatibility segment) and 16-bit code
 * (segments of the LDT), and vector, error code and CR2 are what the processor told the kernel.
 *
 * native FD COUNT: FD is a file with room for COUNT states, the data pages, COUNT states for the results, and a word
 * that says which case is being run. Each 4-byte count read from standard input runs that many; a byte answers it.
 */
#define _GNU_SOURCE
#include <asm/ldt.h>
#include <asm/prctl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#include "layout.h"

struct state {
	uint64_t gpr[16], rip, flags, fs_base, gs_base, address, digest, value;
	uint16_t segment[6], fcw, fsw, ftw, fop;
	uint32_t mxcsr, vector, error;
	uint8_t repeat, length;
	uint16_t image;
	uint8_t spare[6];
	uint16_t changed;
	uint8_t code[16], st[8][16];
	uint64_t vec[16][4];
} __attribute__((packed));
_Static_assert(sizeof(struct state) == STATE_SIZE, "layout.py has the same record");

/* The XSAVE image in a signal frame (SDM vol. 1, 13.4): legacy region, header, YMM upper halves at their fixed place. */
struct image {
	uint16_t fcw, fsw, ftw, fop;
	uint64_t fip, fdp;
	uint32_t mxcsr, mxcsr_mask;
	uint8_t st[8][16], xmm[16][16];
	uint8_t reserved[96];
	uint64_t xstate_bv, xcomp_bv, header[6];
	uint8_t ymm[16][16];
} __attribute__((packed));
_Static_assert(offsetof(struct image, ymm) == 576, "component 2 of the standard format");

enum { ES, CS, SS, DS, FS, GS };
enum { TRAP_FLAG = 0x100, RESUME_FLAG = 0x10000, DEBUG = 1, X87 = 1, SSE = 2, AVX = 4 };

static const int REGISTERS[16] = {
	REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
	REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15,
};

static struct state *before, *after;
static uint64_t *pristine, *current;
static uint64_t count, position, repeats;
static int running;
static uint8_t *writable_code; /* the cases themselves can only execute and read it */
static uint64_t home_fs;
static struct image home_image;
static gregset_t home;

/* The words of the data pages that changed, mixed with their places; put back as they were. */
static void compare_memory(struct state *result)
{
	uint64_t *memory = (uint64_t *)WRITABLE, words = WRITABLE_PAGES * 4096 / 8, digest = 0;

	result->changed = result->value = 0;
	if (result->image) /* MXCSR_MASK: what the kernel lets processes have, and ours, is in the low half */
		*(uint16_t *)((uint8_t *)memory + result->image - 1 + offsetof(struct image, mxcsr_mask) + 2) = 0;
	for (uint64_t i = 0; i < words; i += 8) {
		uint64_t any = 0;
		for (int j = 0; j < 8; j++)
			any |= memory[i + j] ^ pristine[i + j];
		for (int j = 0; any && j < 8; j++) {
			if (memory[i + j] == pristine[i + j])
				continue;
			if (digest == 0) {
				result->changed = 8 * (i + j) + 1;
				result->value = memory[i + j];
			}
			digest = (digest ^ memory[i + j]) * 0x9E3779B97F4A7C15 + i + j;
			memory[i + j] = pristine[i + j];
		}
	}
	result->digest = digest;
}

static void store_result(struct state *result, const ucontext_t *context)
{
	const greg_t *g = context->uc_mcontext.gregs;
	const struct image *image = (const struct image *)context->uc_mcontext.fpregs;

	for (int i = 0; i < 16; i++)
		result->gpr[i] = g[REGISTERS[i]];
	result->rip = g[REG_RIP];
	result->flags = g[REG_EFL] & ~(uint64_t)TRAP_FLAG;
	result->segment[CS] = g[REG_CSGSFS];
	result->segment[SS] = g[REG_CSGSFS] >> 48;
	result->vector = g[REG_TRAPNO] == DEBUG ? NO_FAULT : g[REG_TRAPNO];
	result->error = g[REG_TRAPNO] == DEBUG ? 0 : g[REG_ERR];
	result->address = g[REG_TRAPNO] == 14 ? g[REG_CR2] : 0;
	result->fcw = image->fcw;
	result->fsw = image->fsw;
	result->ftw = image->ftw;
	result->fop = image->fop;
	result->mxcsr = image->mxcsr;
	for (int i = 0; i < 8; i++)
		memcpy(result->st[i], image->st[i], 10);
	for (int i = 0; i < 16; i++) {
		memcpy(result->vec[i], image->xmm[i], 16);
		if (image->xstate_bv & AVX)
			memcpy(&result->vec[i][2], image->ymm[i], 16);
		else
			memset(&result->vec[i][2], 0, 16);
	}
}

/* Where to write a case's instruction: RIP counts from a segment's base, which is CODE or 0. */
static uint8_t *code_of(const struct state *start)
{
	return writable_code + (start->rip < CODE ? start->rip : start->rip - CODE);
}

static void load_case(const struct state *start, ucontext_t *context)
{
	greg_t *g = context->uc_mcontext.gregs;
	struct image *image = (struct image *)context->uc_mcontext.fpregs;
	uint64_t cs = start->segment[CS], ss = start->segment[SS];

	for (int i = 0; i < 16; i++)
		g[REGISTERS[i]] = start->gpr[i];
	g[REG_RIP] = start->rip;
	g[REG_EFL] = start->flags | TRAP_FLAG;
	g[REG_CSGSFS] = (g[REG_CSGSFS] & 0x0000FFFFFFFF0000) | cs | ss << 48;
	memset(image, 0, offsetof(struct image, reserved));
	image->fcw = start->fcw;
	image->fsw = start->fsw;
	image->ftw = start->ftw;
	image->fop = start->fop;
	image->mxcsr = start->mxcsr;
	for (int i = 0; i < 8; i++)
		memcpy(image->st[i], start->st[i], 10);
	for (int i = 0; i < 16; i++) {
		memcpy(image->xmm[i], start->vec[i], 16);
		memcpy(image->ymm[i], &start->vec[i][2], 16);
	}
	image->xstate_bv = X87 | SSE | AVX;
	memcpy(code_of(start), start->code, start->length);
}

static void clear_code(const struct state *start)
{
	memset(code_of(start), 0x90, start->length);
}

#define GET_SEGMENT(name, to) __asm__ volatile("mov %%" name ", %0" : "=r"(to))
#define SET_SEGMENT(name, from) __asm__ volatile("mov %0, %%" name : : "r"((uint32_t)(from)))

static void load_segments(const struct state *start)
{
	SET_SEGMENT("es", start->segment[ES]);
	SET_SEGMENT("ds", start->segment[DS]);
	SET_SEGMENT("fs", start->segment[FS]);
	SET_SEGMENT("gs", start->segment[GS]);
	if (start->segment[CS] == USER64_CS) {
		__asm__ volatile("wrfsbase %0" : : "r"(start->fs_base));
		__asm__ volatile("wrgsbase %0" : : "r"(start->gs_base));
	}
}

static void on_signal(int number, siginfo_t *information, void *context_pointer)
{
	/* AC would fault here; sigreturn leaves ID and NT as they are. */
	__asm__ volatile("pushfq; andl $~0x244000, (%%rsp); popfq" : : : "memory", "cc");
	ucontext_t *context = context_pointer;
	greg_t *g = context->uc_mcontext.gregs;
	(void)number, (void)information;

	if (!running) {
		running = 1;
		position = 0;
		memcpy(home, g, sizeof(home));
		memcpy(&home_image, context->uc_mcontext.fpregs, sizeof(home_image));
		__asm__ volatile("rdfsbase %0" : "=r"(home_fs));
	} else {
		struct state *result = &after[position];
		const struct state *start = &before[position];
		if (start->repeat && g[REG_TRAPNO] == DEBUG && (uint64_t)g[REG_RIP] == start->rip && ++repeats < REPEATS)
			return;
		__asm__ volatile("rdfsbase %0" : "=r"(result->fs_base));
		__asm__ volatile("rdgsbase %0" : "=r"(result->gs_base));
		GET_SEGMENT("es", result->segment[ES]);
		GET_SEGMENT("ds", result->segment[DS]);
		GET_SEGMENT("fs", result->segment[FS]);
		GET_SEGMENT("gs", result->segment[GS]);
		store_result(result, context);
		compare_memory(result);
		clear_code(start);
		position++;
	}
	*current = position;
	repeats = 0;
	if (position < count) {
		load_case(&before[position], context);
		load_segments(&before[position]);
		return;
	}
	running = 0;
	memcpy(g, home, sizeof(home));
	memcpy(context->uc_mcontext.fpregs, &home_image, sizeof(home_image));
	SET_SEGMENT("es", 0);
	SET_SEGMENT("ds", 0);
	SET_SEGMENT("gs", 0);
	SET_SEGMENT("fs", 0);
	__asm__ volatile("wrfsbase %0" : : "r"(home_fs));
}

static void require(int condition, const char *what)
{
	if (!condition) {
		perror(what);
		_exit(1);
	}
}

static void map_at(uint64_t address, uint64_t size, int protection, int flags, int fd)
{
	void *at = mmap((void *)address, size, protection, flags | MAP_FIXED_NOREPLACE, fd, 0);
	require(at == (void *)address, "mmap");
}

/* A stray system call ends the process; the parent reports the case. */
static void allow_little(void)
{
	struct sock_filter filter[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AUDIT_ARCH_X86_64, 1, 0),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_rt_sigreturn, 4, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_read, 3, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_write, 2, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_exit_group, 1, 0),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = { sizeof(filter) / sizeof(filter[0]), filter };

	require(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0, "no_new_privs");
	require(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0, "seccomp");
}

int main(int argc, char **argv)
{
	require(argc == 3, "usage: native FD COUNT");
	uint64_t room = strtoul(argv[2], NULL, 10), states = room * sizeof(struct state);
	uint64_t data = (WRITABLE_PAGES + 1) * 4096;
	uint8_t *shared = mmap(NULL, 2 * states + data + 4096, PROT_READ | PROT_WRITE, MAP_SHARED, atoi(argv[1]), 0);
	static const struct user_desc ldt[] = { LDT_SEGMENTS };
	static uint8_t stack[1 << 16];
	stack_t alternate = { .ss_sp = stack, .ss_size = sizeof(stack) };
	struct sigaction action = { .sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER };
	const int signals[] = { SIGTRAP, SIGSEGV, SIGBUS, SIGILL, SIGFPE };
	uint32_t wanted;

	require(shared != MAP_FAILED, "mmap of the cases");
	before = (struct state *)shared;
	pristine = (uint64_t *)(shared + states);
	after = (struct state *)(shared + states + data);
	current = (uint64_t *)(shared + 2 * states + data);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (uint64_t i = 0; i < sizeof(ldt) / sizeof(ldt[0]); i++)
		require(syscall(SYS_modify_ldt, 0x11, &ldt[i], sizeof(ldt[i])) == 0, "modify_ldt");
	int code = memfd_create("code", MFD_CLOEXEC);
	require(code >= 0 && ftruncate(code, CODE_PAGES * 4096) == 0, "memfd");
	writable_code = mmap(NULL, CODE_PAGES * 4096, PROT_READ | PROT_WRITE, MAP_SHARED, code, 0);
	require(writable_code != MAP_FAILED, "mmap");
	memset(writable_code, 0x90, CODE_PAGES * 4096);
	map_at(CODE, CODE_PAGES * 4096, PROT_READ | PROT_EXEC, MAP_SHARED, code);
	map_at(WRITABLE, data, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	require(sigaltstack(&alternate, NULL) == 0, "sigaltstack");
	for (uint64_t i = 0; i < sizeof(signals) / sizeof(signals[0]); i++)
		require(sigaction(signals[i], &action, NULL) == 0, "sigaction");
	require(write(1, "r", 1) == 1, "write");
	require(read(0, &wanted, sizeof(wanted)) == sizeof(wanted), "read");
	memcpy((void *)WRITABLE, pristine, data);
	require(mprotect((void *)READABLE, 4096, PROT_READ) == 0, "mprotect");
	allow_little();
	do {
		/* The data pages of one process never change but for what the cases do to them. */
		count = wanted;
		memcpy((void *)WRITABLE, pristine, WRITABLE_PAGES * 4096);
		if (count)
			__asm__ volatile("int3" : : : "memory");
		if (write(1, "d", 1) != 1)
			break;
	} while (read(0, &wanted, sizeof(wanted)) == sizeof(wanted));
	return 0;
}
