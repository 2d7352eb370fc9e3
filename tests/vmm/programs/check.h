/* The guests' init: check.c runs the checks and has those of the CPUs, check_devices.c those of virtio devices,
 * check_serial.c the serial port's. */
#ifndef CHECK_H
#define CHECK_H

/* As printf, on the serial port. */
__attribute__((format(printf, 1, 2))) void say(const char *format, ...);

/* Checks: NULL, or what is wrong. */
const char *disk(const char *sum);
const char *net(const char *me);
const char *serial(const char *unused);

#endif
