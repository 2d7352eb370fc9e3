/* What every client here starts with: it is told the number of an fd whose ioctls the test answers. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#define CALL _IO(0xAE, 0x01)
#define WAIT _IO(0xAE, 0x80)

static int device;

#define check(condition)                                                                    \
	do {                                                                                    \
		if (!(condition)) {                                                                 \
			printf("%s:%d: %s: %s\n", __FILE__, __LINE__, #condition, strerror(errno));     \
			fflush(stdout);                                                                 \
			_exit(1);                                                                       \
		}                                                                                   \
	} while (0)

static inline long call(uintptr_t argument)
{
	long result = ioctl(device, CALL, argument);
	return result < 0 ? -errno : result;
}
