/*
 * Checks of virtio devices.  Their drivers are modules with Debian's kernels: /modules/order names the files, those that
 * others need first.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <netinet/ip_icmp.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "check.h"

enum { PINGS = 100, PORT = 7, MEGABYTE = 1 << 20 };

static void load_modules(void)
{
	static bool done;
	FILE *order = done ? NULL : fopen("/modules/order", "r");
	char name[64], path[80];

	done = true;
	while (order && fscanf(order, "%63s", name) == 1) {
		int fd;

		snprintf(path, sizeof(path), "/modules/%s.ko", name);
		fd = open(path, O_RDONLY);
		if (fd < 0 || syscall(SYS_finit_module, fd, "", 0))
			say("  %s: %s\n", path, strerror(errno));
		close(fd);
	}
	if (order)
		fclose(order);
}

/* The number that a driver of block devices was given. */
static int block_major(const char *driver)
{
	FILE *devices = fopen("/proc/devices", "r");
	char line[80], name[64];
	int major, found = 0;
	bool block = false;

	while (devices && fgets(line, sizeof(line), devices)) {
		block |= !strncmp(line, "Block", 5);
		if (block && sscanf(line, "%d %63s", &major, name) == 2 && !strcmp(name, driver))
			found = major;
	}
	if (devices)
		fclose(devices);
	return found;
}

const char *disk(const char *wanted)
{
	uint32_t a = 1, b = 0;
	static uint8_t block[1 << 16];
	ssize_t size;
	int fd;

	load_modules();
	mknod("/dev/vda", S_IFBLK | 0600, makedev(block_major("virtblk"), 0));
	fd = open("/dev/vda", O_RDONLY);
	if (fd < 0)
		return strerror(errno);
	while ((size = read(fd, block, sizeof(block))) > 0)
		for (ssize_t i = 0; i < size; i++) {
			a = (a + block[i]) % 65521;
			b = (b + a) % 65521;
		}
	close(fd);
	if (size < 0)
		return strerror(errno);
	return (b << 16 | a) == strtoul(wanted, NULL, 16) ? NULL : "another checksum";
}

static struct sockaddr_in address(int host)
{
	struct sockaddr_in result = { .sin_family = AF_INET, .sin_port = htons(PORT) };

	result.sin_addr.s_addr = htonl(10 << 24 | host);
	return result;
}

/* eth0 gets the address and is up. */
static bool configure(int host)
{
	struct ifreq request = { .ifr_name = "eth0" };
	int fd = socket(AF_INET, SOCK_DGRAM, 0);
	struct sockaddr_in mine = address(host), mask = { .sin_family = AF_INET };
	bool done;

	mask.sin_addr.s_addr = htonl(0xffffff00);
	memcpy(&request.ifr_addr, &mine, sizeof(mine));
	done = !ioctl(fd, SIOCSIFADDR, &request);
	memcpy(&request.ifr_netmask, &mask, sizeof(mask));
	done = done && !ioctl(fd, SIOCSIFNETMASK, &request);
	request.ifr_flags = IFF_UP | IFF_RUNNING;
	done = done && !ioctl(fd, SIOCSIFFLAGS, &request);
	close(fd);
	return done;
}

static uint16_t checksum(const void *data, size_t size)
{
	const uint16_t *words = data;
	uint32_t sum = 0;

	for (size_t i = 0; i < size / 2; i++)
		sum += words[i];
	sum = (sum & 0xffff) + (sum >> 16);
	return ~(sum + (sum >> 16));
}

/* Echo requests until one is answered: the other guest may still be booting. */
static bool ping(int host)
{
	struct { struct icmphdr header; char data[48]; } request = { .header.type = ICMP_ECHO };
	struct sockaddr_in other = address(host);
	int fd = socket(AF_INET, SOCK_RAW, IPPROTO_ICMP);
	struct pollfd answer = { .fd = fd, .events = POLLIN };
	bool answered = false;

	request.header.un.echo.id = htons(host);
	for (int i = 0; i < PINGS && !answered; i++) {
		char packet[256];

		request.header.un.echo.sequence = htons(i);
		request.header.checksum = 0;
		request.header.checksum = checksum(&request, sizeof(request));
		sendto(fd, &request, sizeof(request), 0, (void *)&other, sizeof(other));
		while (!answered && poll(&answer, 1, 1000) == 1) {
			ssize_t size = recv(fd, packet, sizeof(packet), 0);
			struct iphdr *ip = (void *)packet;
			struct icmphdr *icmp = (void *)(packet + ip->ihl * 4);

			answered = size >= ip->ihl * 4 + (ssize_t)sizeof(*icmp) && icmp->type == ICMP_ECHOREPLY &&
				icmp->un.echo.id == request.header.un.echo.id;
		}
	}
	close(fd);
	return answered;
}

static uint8_t expected(size_t at) { return at * 7 + (at >> 10); }

/* Send a megabyte, or see it come. */
static bool exchange(int fd, bool sends)
{
	static uint8_t data[MEGABYTE];
	size_t done = 0;

	for (size_t i = 0; sends && i < MEGABYTE; i++)
		data[i] = expected(i);
	while (done < MEGABYTE) {
		ssize_t size = sends ? send(fd, data + done, MEGABYTE - done, 0) : recv(fd, data + done, MEGABYTE - done, 0);

		if (size <= 0)
			return false;
		done += size;
	}
	for (size_t i = 0; i < MEGABYTE; i++)
		if (data[i] != expected(i))
			return false;
	return true;
}

/* 10.0.0.1 listens and sends first, so that neither leaves before the other has all. */
const char *net(const char *argument)
{
	int me = atoi(argument), fd = socket(AF_INET, SOCK_STREAM, 0), connection = fd;
	struct sockaddr_in mine = address(me), other = address(3 - me);
	const char *problem = NULL;
	char nothing;

	load_modules();
	if (!configure(me))
		return strerror(errno);
	if (me == 1 && (bind(fd, (void *)&mine, sizeof(mine)) || listen(fd, 1)))
		return strerror(errno);
	if (!ping(3 - me))
		return "no answer";
	if (me == 1)
		connection = accept(fd, NULL, NULL);
	else if (connect(fd, (void *)&other, sizeof(other)))
		return strerror(errno);
	if (!exchange(connection, me == 1) || !exchange(connection, me == 2))
		problem = "not what was sent";
	shutdown(connection, SHUT_WR);
	while (recv(connection, &nothing, 1, 0) > 0)
		;
	return problem;
}
