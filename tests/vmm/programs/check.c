/*
 * The guests' init: checks what a guest sees of its machine, one line a check on the serial port, and powers off with
 * the number of failed checks as the exit status.  Checks are named on the kernel's command line: check=cpus:2,timer,...
 *
 *	cpus:N		N CPUs are online, and each of them runs threads
 *	timer		sleeping takes as long as it should, by two clocks
 *	preempt		a thread that never sleeps lets others run
 *	fpu		floating point survives context switches
 *	tlb		what one CPU unmaps no other can touch any more
 *	alive		the clock goes on, and no state is lost, until somebody types `quit`
 *	disk:SUM	/dev/vda's Adler-32
 *	serial		what is written to the first serial port is sent, upon interrupts
 *	net:N		the other one of 10.0.0.1 and 10.0.0.2 answers pings, and a megabyte comes through
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/io.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "check.h"

enum { SERIAL = 0x3f8, SERIAL_STATUS = 0x3fd, IDLE = 0x20, POWER = 0xf4 };

/* The port itself: a tty needs interrupts, and those may be what is broken. */
void say(const char *format, ...)
{
	char line[256];
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(line, sizeof(line), format, arguments);
	va_end(arguments);
	for (const char *c = line; *c; c++) {
		while (!(inb(SERIAL_STATUS) & IDLE))
			;
		outb(*c, SERIAL);
	}
}

static double now(clockid_t clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

static void on_cpu(int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	sched_setaffinity(0, sizeof(set), &set);
}

static void *report_cpu(void *cpu)
{
	on_cpu((intptr_t)cpu);
	return (void *)(intptr_t)sched_getcpu();
}

static const char *cpus(const char *wanted)
{
	int online = sysconf(_SC_NPROCESSORS_ONLN);

	if (online != atoi(wanted))
		return "another number is online";
	for (intptr_t cpu = 0; cpu < online; cpu++) {
		pthread_t thread;
		void *ran_on;

		if (pthread_create(&thread, NULL, report_cpu, (void *)cpu) || pthread_join(thread, &ran_on))
			return "no thread";
		if ((intptr_t)ran_on != cpu)
			return "a thread ran elsewhere";
	}
	return NULL;
}

static const char *timer(const char *unused)
{
	double monotonic = now(CLOCK_MONOTONIC), real = now(CLOCK_REALTIME);
	struct timespec moment = { .tv_nsec = 2000000 };

	(void)unused;
	for (int i = 0; i < 50; i++)
		nanosleep(&moment, NULL);
	monotonic = now(CLOCK_MONOTONIC) - monotonic;
	real = now(CLOCK_REALTIME) - real;
	say("  50 x 2 ms: %.1f ms\n", monotonic * 1000);
	if (monotonic < 0.1)
		return "woken too early";
	return fabs(monotonic - real) < 0.01 ? NULL : "the clocks disagree";
}

static volatile int stop;

static void *spin(void *cpu)
{
	on_cpu((intptr_t)cpu);
	while (!stop)
		;
	return NULL;
}

static const char *preempt(const char *unused)
{
	struct timespec moment = { .tv_nsec = 1000000 };
	pthread_t thread;

	(void)unused;
	on_cpu(0);
	stop = 0;
	if (pthread_create(&thread, NULL, spin, (void *)0))
		return "no thread";
	for (int i = 0; i < 20; i++)
		nanosleep(&moment, NULL);
	stop = 1;
	pthread_join(thread, NULL);
	return NULL;
}

static void *series(void *argument)	/* e, in x87, SSE and whatever vectors the C library likes */
{
	long double extended = 0, term = 1;
	double sum = 0, one = 1;
	char text[512], copy[512];

	for (int round = 0; round < 200; round++) {
		extended = 0, term = 1, sum = 0, one = 1;
		for (int i = 1; i < 25; i++) {
			extended += term, term /= i;
			sum += one, one /= i;
		}
		memset(text, 'a' + (intptr_t)argument, sizeof(text));
		memcpy(copy, text, sizeof(text));
		if (round % 16 == 0)
			sched_yield();
		if (memcmp(copy, text, sizeof(text)) || fabsl(extended - 2.718281828459045235L) > 1e-17L || fabs(sum - M_E) > 1e-15)
			return "wrong result";
	}
	return NULL;
}

static const char *fpu(const char *unused)
{
	pthread_t threads[4];
	void *problem, *first = NULL;

	(void)unused;
	for (intptr_t i = 0; i < 4; i++)
		if (pthread_create(&threads[i], NULL, series, (void *)i))
			return "no thread";
	for (int i = 0; i < 4; i++) {
		pthread_join(threads[i], &problem);
		first = first ? first : problem;
	}
	return first;
}

static volatile char *window;
static volatile int going, gone;	/* about to be unmapped; munmap has returned */
static __thread sigjmp_buf before;

static void on_fault(int signal)
{
	(void)signal;
	siglongjmp(before, 1);
}

static void *touch(void *cpu)
{
	on_cpu((intptr_t)cpu);
	if (sigsetjmp(before, 1))
		return going ? NULL : "a fault while it was mapped";
	for (;;) {
		int was_gone = gone;

		*window;
		if (was_gone)
			return "read what is not mapped";
	}
}

static const char *tlb(const char *unused)
{
	int online = sysconf(_SC_NPROCESSORS_ONLN);

	(void)unused;
	signal(SIGSEGV, on_fault);
	for (int round = 0; round < 20; round++) {
		struct timespec moment = { .tv_nsec = 500000 };
		const char *first = NULL;
		pthread_t threads[online];
		void *problem;

		going = gone = 0;
		window = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		*window = 1;
		for (intptr_t i = 0; i < online; i++)
			if (pthread_create(&threads[i], NULL, touch, (void *)i))
				return "no thread";
		nanosleep(&moment, NULL);
		going = 1;
		munmap((void *)window, 4096);
		gone = 1;
		for (int i = 0; i < online; i++) {
			pthread_join(threads[i], &problem);
			first = first ? first : problem;
		}
		if (first)
			return first;
	}
	return NULL;
}

/* A beat every 100 ms until `quit` is typed on the console: a machine that others stop, save, move and set going again. */
static const char *alive(const char *unused)
{
	struct timespec moment = { .tv_nsec = 100000000 };
	double before = now(CLOCK_MONOTONIC);
	char typed[16];

	(void)unused;
	fcntl(0, F_SETFL, O_NONBLOCK);
	for (int beat = 0; read(0, typed, sizeof(typed)) < 4 || memcmp(typed, "quit", 4); beat++) {
		double monotonic = now(CLOCK_MONOTONIC);

		if (monotonic < before)
			return "the clock went back";
		before = monotonic;
		say("beat %d at %.3f real %.3f\n", beat, monotonic, now(CLOCK_REALTIME));
		if (series((void *)(intptr_t)(beat % 26)))
			return "wrong result";
		nanosleep(&moment, NULL);
	}
	return NULL;
}

static const struct {
	const char *name;
	const char *(*run)(const char *argument);	/* NULL, or what is wrong */
} checks[] = {
	{ "cpus", cpus }, { "timer", timer }, { "preempt", preempt }, { "fpu", fpu }, { "tlb", tlb }, { "alive", alive },
	{ "disk", disk }, { "net", net }, { "serial", serial },
};

static int run(char *name)
{
	char *argument = strchr(name, ':');

	if (argument)
		*argument++ = 0;
	for (size_t i = 0; i < sizeof(checks) / sizeof(*checks); i++)
		if (!strcmp(checks[i].name, name)) {
			const char *problem = checks[i].run(argument ? argument : "");

			say("check %s: %s\n", name, problem ? problem : "ok");
			return problem ? 1 : 0;
		}
	say("check %s: there is no such check\n", name);
	return 1;
}

int main(void)
{
	char line[4096] = "", *list;
	int failed = 0, fd;

	iopl(3);
	mkdir("/proc", 0755);
	mount("proc", "/proc", "proc", 0, NULL);
	fd = open("/proc/cmdline", O_RDONLY);
	if (fd < 0 || read(fd, line, sizeof(line) - 1) < 0)
		say("/proc/cmdline: %s\n", strerror(errno));
	list = strstr(line, "check=");
	list = list ? strtok(list + strlen("check="), " \n") : NULL;
	for (char *name = list ? strtok(list, ",") : NULL; name; name = strtok(NULL, ","))
		failed += run(name);
	say("checks done: %d failed\n", failed);
	outb(failed, POWER);
	for (;;)
		pause();
}
