#include "check.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <termios.h>
#include <unistd.h>

static long interrupts(void)	/* of the first serial port, on all CPUs */
{
	FILE *file = fopen("/proc/interrupts", "r");
	char line[1024];
	long sum = 0;

	while (file && fgets(line, sizeof(line), file)) {
		char *at = strchr(line, ':'), *end;

		if (!strstr(line, "ttyS0") || !at)
			continue;
		for (at++; sum += strtol(at, &end, 10), end != at; at = end)
			;
	}
	if (file)
		fclose(file);
	return sum;
}

/* The driver sends byte by byte, upon interrupts; or, when they do not come, upon a timer, which takes seconds. */
const char *serial(const char *unused)
{
	static const char text[] = "  sent by interrupts\r\n";
	long before = interrupts();
	int fd;

	(void)unused;
	mknod("/dev/ttyS0", S_IFCHR | 0600, makedev(4, 64));
	fd = open("/dev/ttyS0", O_RDWR | O_NOCTTY);
	if (fd < 0 || write(fd, text, sizeof(text) - 1) != sizeof(text) - 1 || tcdrain(fd))
		return "cannot write";
	close(fd);
	return interrupts() > before ? NULL : "no interrupts";
}
