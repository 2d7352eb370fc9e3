/* KVM_GET_API_VERSION on a descriptor, by a system call of another ABI: its errno is the exit status. */
#include <stdlib.h>
#include <string.h>

static long i386(long number, long first, long second, long third)
{
	long result;

	asm volatile("int $0x80" : "=a"(result) : "a"(number), "b"(first), "c"(second), "d"(third) : "memory");
	return (int)result;
}

static long x32(long number, long first, long second, long third)
{
	long result;

	asm volatile("syscall" : "=a"(result) : "a"(0x40000000 | number), "D"(first), "S"(second), "d"(third)
		     : "rcx", "r11", "memory");
	return result;
}

int main(int argc, char **argv)
{
	long fd = atol(argv[2]);
	long result = strcmp(argv[1], "i386") ? x32(514, fd, 0xAE00, 0) : i386(54, fd, 0xAE00, 0);

	return result < 0 ? -result : 0;
}
