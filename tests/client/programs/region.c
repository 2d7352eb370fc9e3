/* region DEVICE HOW: two pieces of filled memory, the second read-only; a call with their address; they must be whole.
   s: the second is a shared mapping; f: it is a private one of a file, every other page of it changed; u: a userfaultfd is at it; w: another thread waits in an ioctl of its own. */
#include "client.h"
#include <linux/userfaultfd.h>

#define LENGTH (1 << 20)

static void *wait_in_ioctl(void *unused)
{
	check(ioctl(device, WAIT, 0) == 7);
	return 0;
}

int main(int count, char **words)
{
	check(count == 3);
	device = atoi(words[1]);
	const char *how = words[2];
	char *memory = mmap(0, 2 * LENGTH, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	check(memory != MAP_FAILED);
	if (strpbrk(how, "sf")) {
		int file = memfd_create("file", 0), kind = strchr(how, 's') ? MAP_SHARED : MAP_PRIVATE;
		check(!ftruncate(file, LENGTH));
		for (int at = 0; at < LENGTH && kind == MAP_PRIVATE; at += sizeof(int)) {
			int value = at / 4096 % 2 ? -1 : at + LENGTH;
			check(pwrite(file, &value, sizeof(int), at) == sizeof(int));
		}
		check(mmap(memory + LENGTH, LENGTH, PROT_READ | PROT_WRITE, kind | MAP_FIXED, file, 0) != MAP_FAILED);
	}
	for (int at = 0; at < 2 * LENGTH; at += sizeof(int))
		if (!strchr(how, 'f') || at < LENGTH || at / 4096 % 2)
			*(int *)(memory + at) = at;
	check(!mprotect(memory + LENGTH, LENGTH, PROT_READ));
	if (strchr(how, 'u')) {
		int fd = syscall(SYS_userfaultfd, O_CLOEXEC);
		struct uffdio_api api = {.api = UFFD_API};
		struct uffdio_register range = {{(uintptr_t)memory + LENGTH, LENGTH}, UFFDIO_REGISTER_MODE_MISSING};
		check(fd >= 0 && !ioctl(fd, UFFDIO_API, &api) && !ioctl(fd, UFFDIO_REGISTER, &range));
	}
	pthread_t thread;
	if (strchr(how, 'w'))
		check(!pthread_create(&thread, 0, wait_in_ioctl, 0));
	int lowest = dup(0);
	check(lowest >= 0 && !close(lowest));
	printf("result %ld\n", call((uintptr_t)memory));
	for (int at = 0; at < 2 * LENGTH; at += sizeof(int))
		check(*(int *)(memory + at) == at);
	for (int at = 0; at < LENGTH; at += 4096)
		memory[at] = 1;
	check(dup(0) == lowest);
	if (strchr(how, 'w'))
		check(!pthread_join(thread, 0));
	return 0;
}
