/*
 * The floor: how long an ioctl takes that a FUSE server in C answers at once.  What kvmfs is measured against.
 *
 *	floor COUNT		(as root)	prints nanoseconds per round trip, the best of fifty batches
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <linux/fuse.h>

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static void reply(int fd, uint64_t unique, int error, const void *data, size_t size)
{
	struct {
		struct fuse_out_header header;
		char data[256];
	} out = { .header = { .len = sizeof(out.header) + size, .error = error, .unique = unique } };

	if (size)
		memcpy(out.data, data, size);
	if (write(fd, &out, out.header.len) < 0 && errno != ENOENT)
		die("write");
}

/* The only file is the root of the mount, a regular file. */
static void serve(int fd)
{
	static char request[1 << 17];

	for (;;) {
		struct fuse_in_header *in = (void *)request;

		if (read(fd, request, sizeof(request)) < 0) {
			if (errno == ENODEV)
				exit(0);
			if (errno == EINTR || errno == ENOENT)
				continue;
			die("read");
		}
		switch (in->opcode) {
		case FUSE_IOCTL: {
			struct fuse_ioctl_out out = { .result = 0 };

			reply(fd, in->unique, 0, &out, sizeof(out));
			break;
		}
		case FUSE_INIT: {
			struct fuse_init_out out = { .major = 7, .minor = 31, .max_write = 65536, .max_pages = 16 };

			reply(fd, in->unique, 0, &out, sizeof(out));
			break;
		}
		case FUSE_GETATTR: {
			struct fuse_attr_out out = { .attr_valid = 3600 };

			out.attr.ino = 1;
			out.attr.mode = S_IFREG | 0600;
			out.attr.nlink = 1;
			reply(fd, in->unique, 0, &out, sizeof(out));
			break;
		}
		case FUSE_OPEN: {
			struct fuse_open_out out = { .open_flags = FOPEN_DIRECT_IO };

			reply(fd, in->unique, 0, &out, sizeof(out));
			break;
		}
		case FUSE_RELEASE:
		case FUSE_FLUSH:
			reply(fd, in->unique, 0, NULL, 0);
			break;
		case FUSE_FORGET:
		case FUSE_INTERRUPT:
			break;
		default:
			reply(fd, in->unique, -ENOSYS, NULL, 0);
		}
	}
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e9 + t.tv_nsec;
}

int main(int argc, char **argv)
{
	char place[] = "/tmp/floor-XXXXXX", options[100];
	int count = argc > 1 ? atoi(argv[1]) : 4000, fd, file;
	double best = 0;
	pid_t server;

	fd = mkstemp(place);
	if (fd < 0)
		die(place);
	close(fd);
	if (unshare(CLONE_NEWNS) || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL))
		die("unshare");
	fd = open("/dev/fuse", O_RDWR | O_CLOEXEC);
	if (fd < 0)
		die("/dev/fuse");
	snprintf(options, sizeof(options), "fd=%d,rootmode=100600,user_id=0,group_id=0", fd);
	if (mount("floor", place, "fuse", MS_NOSUID | MS_NODEV, options))
		die("mount");
	server = fork();
	if (server < 0)
		die("fork");
	if (!server)
		serve(fd);
	close(fd);

	file = open(place, O_RDWR);
	if (file < 0)
		die("open");
	for (int batch = 0; batch < 50; batch++) {
		double start = now(), each;

		for (int i = 0; i < count; i++)
			if (ioctl(file, _IO(0xae, 0x80), 0))
				die("ioctl");
		each = (now() - start) / count;
		if (!batch || each < best)
			best = each;
	}
	printf("%.0f\n", best);
	close(file);
	umount(place);
	unlink(place);
	waitpid(server, NULL, 0);
	return 0;
}
