/* adopt DEVICE LENGTH: three threads count in private memory while the main thread has it adopted, and a fourth sits
   in an ioctl of its own all the while. Then we and the adopter take turns in that memory. */
#include "client.h"

#define THREADS 3
#define EVERY (64 << 10)

static atomic_int stop;
static char *memory;
static size_t length;
static long counts[THREADS];

static void *count(void *number)
{
	long mine = 0, id = (long)number;
	atomic_long *shared = (void *)memory, *own = (void *)(memory + length / 2 + id * 4096);
	while (!stop) {
		atomic_fetch_add(shared, 1);
		atomic_fetch_add(own, 1);
		mine++;
	}
	counts[id] = mine;
	return 0;
}

static void *wait_in_ioctl(void *unused)
{
	check(ioctl(device, WAIT, 0) == 7);
	return 0;
}

int main(int argc, char **words)
{
	check(argc == 3);
	device = atoi(words[1]);
	length = strtoull(words[2], 0, 0);
	memory = mmap(0, length + 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	check(memory != MAP_FAILED);
	madvise(memory, length + 8192, MADV_NOHUGEPAGE); /* or a touched page would be 512 of them */
	memory += 4096; /* a part of a mapping only */
	memory[-1] = memory[length] = 'x';
	for (size_t at = EVERY; at < length / 2; at += EVERY)
		*(size_t *)(memory + at) = ~at;
	check(!mprotect(memory + length - 8192, 4096, PROT_READ));
	memory[length - 4096] = 'n';
	check(!mprotect(memory + length - 4096, 4096, PROT_NONE));
	pthread_t threads[THREADS], waiter;
	check(!pthread_create(&waiter, 0, wait_in_ioctl, 0));
	for (long i = 0; i < THREADS; i++)
		check(!pthread_create(&threads[i], 0, count, (void *)i));
	while (*(atomic_long *)memory < 1000)
		;
	uintptr_t range[2] = {(uintptr_t)memory, length};
	check(call((uintptr_t)range) == 0);
	long then = *(atomic_long *)memory;
	while (*(atomic_long *)memory < then + 1000)
		;
	stop = 1;
	long sum = 0;
	for (int i = 0; i < THREADS; i++) {
		check(!pthread_join(threads[i], 0));
		sum += counts[i];
		check(*(long *)(memory + length / 2 + i * 4096) == counts[i]);
	}
	check(*(long *)memory == sum);
	for (size_t at = EVERY; at < length / 2; at += EVERY)
		check(*(size_t *)(memory + at) == ~at);
	check(memory[-1] == 'x' && memory[length] == 'x');
	check(!mprotect(memory + length - 4096, 4096, PROT_READ) && memory[length - 4096] == 'n');
	for (long i = 0; i < 100; i++) {
		((long *)memory)[1] = i * 7;
		check(call(i) == 0);
		check(((long *)memory)[2] == i * 7 + 1);
	}
	check(!pthread_join(waiter, 0));
	puts("done");
	return 0;
}
