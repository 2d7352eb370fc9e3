/* storm DEVICE ROUNDS: makes calls while a timer and another thread rain signals on it; no handler restarts anything. */
#include "client.h"

static volatile long ticks, got, wrong;
static atomic_int stop;
static pthread_t target;
static long sent;

static void tick(int signal)
{
	ticks++;
}

static void take(int signal, siginfo_t *info, void *context)
{
	if (info->si_code != SI_QUEUE || info->si_value.sival_int != got || info->si_pid != getpid())
		wrong++;
	got++;
}

static void *rain(void *unused)
{
	while (!stop) {
		union sigval value = {.sival_int = sent};
		if (!pthread_sigqueue(target, SIGRTMIN, value))
			sent++;
		usleep(50);
	}
	return 0;
}

int main(int count, char **words)
{
	device = atoi(words[1]);
	int rounds = atoi(words[2]), interrupted = 0;
	struct sigaction on_tick = {.sa_handler = tick};
	struct sigaction on_queued = {.sa_sigaction = take, .sa_flags = SA_SIGINFO};
	check(!sigaction(SIGALRM, &on_tick, 0) && !sigaction(SIGRTMIN, &on_queued, 0));
	struct itimerval every = {{0, 200}, {0, 200}};
	check(!setitimer(ITIMER_REAL, &every, 0));
	pthread_t thread;
	target = pthread_self();
	check(!pthread_create(&thread, 0, rain, 0));
	for (int i = 0; i < rounds; i++) {
		sigset_t before, after;
		long fd = call(0);
		if (fd == -EINTR)
			interrupted++;
		check(fd > 2 && fcntl(fd, F_GETFD) == FD_CLOEXEC && !close(fd));
		check(!pthread_sigmask(SIG_SETMASK, 0, &after));
		sigemptyset(&before);
		check(!memcmp(&before, &after, sizeof(long)));
	}
	stop = 1;
	check(!pthread_join(thread, 0));
	check(got == sent && !wrong && ticks > 0);
	printf("%d interrupted\n", interrupted);
	return 0;
}
