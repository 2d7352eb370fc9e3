/* poison DEVICE caught|blocked: makes one call, and tells of the SIGBUS that came with it. */
#include "client.h"

static volatile sig_atomic_t code, width;
static void *volatile address;

static void note(int number, siginfo_t *info, void *context)
{
	code = info->si_code;
	address = info->si_addr;
	width = info->si_addr_lsb;
}

int main(int count, char **words)
{
	struct sigaction action = {.sa_sigaction = note, .sa_flags = SA_SIGINFO};
	siginfo_t info;
	sigset_t bus;

	check(count == 3);
	device = atoi(words[1]);
	sigemptyset(&bus);
	sigaddset(&bus, SIGBUS);
	if (words[2][0] == 'b')
		check(!sigprocmask(SIG_BLOCK, &bus, 0));
	else
		check(!sigaction(SIGBUS, &action, 0));
	printf("result %ld\n", call(0));
	if (words[2][0] == 'b') {
		check(sigwaitinfo(&bus, &info) == SIGBUS);
		note(SIGBUS, &info, 0);
	}
	printf("code %d address %p width %d\n", code, address, width);
	return 0;
}
