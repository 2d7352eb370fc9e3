/* once DEVICE HOW [ARGUMENT]: makes one call in the way named, and tells what it gave. */
#include "client.h"
#include <sys/ptrace.h>

static atomic_long go; /* the argument of the call tells where it is */

static void *wait_in_ioctl(void *unused)
{
	ioctl(device, WAIT, 0);
	return 0;
}

static void *call_and_tell(void *unused)
{
	printf("result %ld\n", call((uintptr_t)&go));
	fflush(stdout);
	return 0;
}

static void *execute(void *unused)
{
	while (!go)
		;
	execl("/bin/echo", "echo", "executed", (char *)0);
	return 0;
}

/* With `free` descriptor numbers left under the limit. */
static void call_near_the_limit(int free)
{
	int last = dup(0);
	struct rlimit limit, now;
	check(!getrlimit(RLIMIT_NOFILE, &limit));
	limit.rlim_cur = last + 1 + free;
	check(!setrlimit(RLIMIT_NOFILE, &limit));
	printf("result %ld of %d\n", call(0), last + 1);
	check(!getrlimit(RLIMIT_NOFILE, &now) && now.rlim_cur == limit.rlim_cur && now.rlim_max == limit.rlim_max);
}

static void call_as_i386(void)
{
	int result = 54; /* ioctl */
	asm volatile("int $0x80" : "+a"(result) : "b"(device), "c"(CALL), "d"(0) : "memory", "r8", "r9", "r10", "r11");
	printf("result %d\n", result);
}

static void call_while_traced(void)
{
	pid_t child = fork();
	if (!child) {
		while (!go)
			usleep(1000);
		call_and_tell(0);
		_exit(0);
	}
	check(!ptrace(PTRACE_SEIZE, child, 0, 0) && !ptrace(PTRACE_INTERRUPT, child, 0, 0));
	int status;
	check(waitpid(child, &status, 0) == child && WIFSTOPPED(status));
	check(!ptrace(PTRACE_POKEDATA, child, &go, 1) && !ptrace(PTRACE_CONT, child, 0, 0));
	check(waitpid(child, &status, 0) == child && WIFEXITED(status));
}

int main(int count, char **words)
{
	pthread_t thread;
	device = atoi(words[1]);
	switch (words[2][0]) {
	case 'w': /* another thread waits in an ioctl meanwhile */
		check(!pthread_create(&thread, 0, wait_in_ioctl, 0));
		call_and_tell(0);
		check(!pthread_join(thread, 0));
		break;
	case 'l':
		call_near_the_limit(atoi(words[3]));
		break;
	case 'i':
		call_as_i386();
		break;
	case 't':
		call_while_traced();
		break;
	case 'e': /* another thread executes a program when `go` is set */
		check(!pthread_create(&thread, 0, execute, 0));
		call((uintptr_t)&go);
		pause();
		break;
	case 'E': /* the same from the main thread, with the call in another */
		check(!pthread_create(&thread, 0, call_and_tell, 0));
		execute(0);
		break;
	default:
		call_and_tell(0);
	}
	fflush(stdout);
	return 0;
}
