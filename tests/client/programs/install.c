/* install DEVICE ROUNDS FLAGS: asks for an fd ROUNDS times, from the main thread or, by FLAGS, otherwise.
   t: from another thread; u: which has a descriptor table of its own; x: the main thread has exited;
   v: from a vforked child; s: under a seccomp filter that allows what this program does and kills it for the rest;
   S: under one that allows everything. */
#include "client.h"
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>

static int rounds;
static int unshared, alone;

static uint64_t callee_saved(void)
{
	/* Values that the compiler keeps in registers, in the red zone and on the stack across the call. */
	volatile uint64_t stack[64];
	for (int i = 0; i < 64; i++)
		stack[i] = i * 0x0101010101010101ull;
	register uint64_t rbx asm("rbx") = 0x1111, r12 asm("r12") = 0x2222, r15 asm("r15") = 0x5555;
	uint64_t red_zone, result = SYS_ioctl, argument = 0, xmm = 0x0123456789abcdef;
	asm volatile("movq %[xmm], %%xmm7\n"
		     "movq $0x7777, -8(%%rsp)\n"
		     "movq $0x8888, -128(%%rsp)\n"
		     "syscall\n"
		     "movq -8(%%rsp), %[red]\n"
		     "addq -128(%%rsp), %[red]\n"
		     "movq %%xmm7, %[xmm]\n"
		     : [red] "=&r"(red_zone), "+a"(result), [xmm] "+r"(xmm), "+r"(rbx), "+r"(r12), "+r"(r15)
		     : "D"((long)device), "S"((long)CALL), "d"(argument)
		     : "rcx", "r11", "memory", "xmm7");
	check(red_zone == 0x7777 + 0x8888 && rbx == 0x1111 && r12 == 0x2222 && r15 == 0x5555);
	check(xmm == 0x0123456789abcdef);
	for (int i = 0; i < 64; i++)
		check(stack[i] == i * 0x0101010101010101ull);
	return result;
}

static void wait_for_the_leader_to_exit(void)
{
	char text[100] = "";
	while (!strstr(text, ") Z")) {
		char path[40];
		sprintf(path, "/proc/%d/stat", getpid());
		int file = open(path, O_RDONLY);
		check(file >= 0 && read(file, text, sizeof(text) - 1) > 0 && !close(file));
	}
}

static void *ask(void *unused)
{
	if (alone)
		wait_for_the_leader_to_exit();
	if (unshared)
		check(!unshare(CLONE_FILES) && dup2(0, 500) == 500);
	for (int i = 0; i < rounds; i++) {
		int lowest = dup(0);
		check(lowest > 2 && !close(lowest));
		long fd = callee_saved();
		check(fd == lowest);
		check(fcntl(fd, F_GETFD) == FD_CLOEXEC);
		char text[6] = "";
		check(pread(fd, text, 5, 0) == 5 && !strcmp(text, "hello"));
		check(!close(fd));
		int next = dup(0);
		check(next == lowest && !close(next)); /* nothing else was left open */
	}
	puts("done");
	fflush(stdout);
	_exit(0);
}

static void filter(int all)
{
#define ALLOW(n) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_##n, 0, 1), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		ALLOW(ioctl), ALLOW(dup), ALLOW(close), ALLOW(fcntl), ALLOW(pread64), ALLOW(write), ALLOW(exit_group),
		ALLOW(newfstatat), ALLOW(fstat), ALLOW(brk), ALLOW(mmap), ALLOW(getrandom), ALLOW(prctl), ALLOW(seccomp),
		BPF_STMT(BPF_RET | BPF_K, all ? SECCOMP_RET_ALLOW : SECCOMP_RET_KILL_PROCESS),
	};
	struct sock_fprog program = {sizeof(code) / sizeof(*code), code};
	check(!prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	check(!syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program));
}

int main(int count, char **words)
{
	check(count == 4);
	device = atoi(words[1]);
	rounds = atoi(words[2]);
	const char *flags = words[3];
	unshared = !!strchr(flags, 'u');
	alone = !!strchr(flags, 'x');
	if (strchr(flags, 'S'))
		filter(1);
	if (strchr(flags, 's'))
		filter(0);
	if (strchr(flags, 't')) {
		pthread_t thread;
		check(!pthread_create(&thread, 0, ask, 0));
		if (alone)
			pthread_exit(0);
		check(!pthread_join(thread, 0));
	} else if (strchr(flags, 'v')) {
		pid_t child = vfork();
		if (!child)
			ask(0);
		int status;
		check(waitpid(child, &status, 0) == child && !status);
	} else
		ask(0);
	return 0;
}
