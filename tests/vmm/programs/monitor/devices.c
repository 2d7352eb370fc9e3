#include "monitor.h"

#include <pthread.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

/* A vCPU's exit and the resampling thread may come at the same time. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static enum wiring wiring;
static int line_fd = -1, resample_fd = -1;

/* The I/O APIC of split mode: each pin that is not masked is a route to a message. */

static struct {
	uint32_t selected;
	uint64_t pins[IOAPIC_PINS];
} ioapic;

enum { MASKED = 1 << 16, IOAPIC_VERSION = (IOAPIC_PINS - 1) << 16 | 0x11 };

static void route(void)
{
	struct { struct kvm_irq_routing header; struct kvm_irq_routing_entry entries[IOAPIC_PINS]; } table = {};

	for (int pin = 0; pin < IOAPIC_PINS; pin++) {
		uint64_t entry = ioapic.pins[pin];

		if (entry & MASKED)
			continue;
		table.entries[table.header.nr++] = (struct kvm_irq_routing_entry){
			.gsi = pin, .type = KVM_IRQ_ROUTING_MSI,
			.u.msi.address_lo = 0xfee00000 | (entry >> 56) << 12 | (entry >> 11 & 1) << 2,
			.u.msi.data = (entry & 0x7ff) | (entry >> 15 & 1) << 15 | 1 << 14,
		};
	}
	KVM(vm_fd, KVM_SET_GSI_ROUTING, &table);
}

static uint32_t *ioapic_pin(void)
{
	uint32_t at = ioapic.selected - 0x10;

	return at < 2 * IOAPIC_PINS ? (uint32_t *)ioapic.pins + at : NULL;
}

static uint32_t ioapic_read(uint32_t offset)
{
	if (offset == 0)
		return ioapic.selected;
	if (offset != 0x10)
		return 0;
	if (ioapic.selected == 1)
		return IOAPIC_VERSION;
	return ioapic_pin() ? *ioapic_pin() : 0;
}

static void ioapic_write(uint32_t offset, uint32_t value)
{
	if (offset == 0) {
		ioapic.selected = value & 0xff;
	} else if (offset == 0x10 && ioapic_pin()) {
		*ioapic_pin() = value;
		route();
	}
}

/* A 16450 that sends in no time. */

static struct {
	uint8_t enabled, line_control, modem_control, scratch, divisor[2];
	bool has_sent;	/* the transmitter has become empty, and nobody has asked yet */
} serial;

enum { ENABLE_SENT = 2, DIVISOR = 0x80, LOOP = 0x10, EMPTY = 0x60, IS_SENT = 2, IS_NOTHING = 1, CONNECTED = 0xb0 };

static bool wants_interrupt(void)
{
	return serial.has_sent && serial.enabled & ENABLE_SENT;
}

static void signal_line(void)
{
	if (eventfd_write(line_fd, 1))
		err(1, "eventfd");
}

/* To be called when wants_interrupt() may have changed; `edge`: to true, or once more. */
static void update_line(bool edge)
{
	if (wiring == BY_IRQ_LINE)
		KVM(vm_fd, KVM_IRQ_LINE, (&(struct kvm_irq_level){ .irq = COM1_IRQ, .level = wants_interrupt() }));
	else if (edge && wants_interrupt())
		signal_line();
}

static void *resample(void *unused)	/* the guest has ended the interrupt: is there another reason for it? */
{
	eventfd_t count;

	(void)unused;
	while (!eventfd_read(resample_fd, &count)) {
		pthread_mutex_lock(&lock);
		update_line(true);
		pthread_mutex_unlock(&lock);
	}
	return NULL;
}

void wire(enum wiring how)
{
	struct kvm_irqfd irqfd = { .gsi = COM1_IRQ };
	pthread_t thread;

	wiring = how;
	for (int pin = 0; pin < IOAPIC_PINS; pin++)
		ioapic.pins[pin] = MASKED;
	if (wiring == BY_IRQ_LINE)
		return;
	irqfd.fd = line_fd = eventfd(0, EFD_CLOEXEC);
	if (wiring == BY_RESAMPLED_IRQFD) {
		irqfd.flags = KVM_IRQFD_FLAG_RESAMPLE;
		irqfd.resamplefd = resample_fd = eventfd(0, EFD_CLOEXEC);
	}
	KVM(vm_fd, KVM_IRQFD, &irqfd);
	if (resample_fd >= 0 && pthread_create(&thread, NULL, resample, NULL))
		errx(1, "no thread");
}

static uint8_t loop_status(void)	/* RTS, DTR, OUT1 and OUT2 come back as CTS, DSR, RI and DCD */
{
	uint8_t control = serial.modem_control;

	return (control & 2) << 3 | (control & 1) << 5 | (control & 4) << 4 | (control & 8) << 4;
}

static uint8_t serial_read(int at)
{
	bool was_sent = wants_interrupt();

	if (at < 2 && serial.line_control & DIVISOR)
		return serial.divisor[at];
	switch (at) {
	case 1:
		return serial.enabled;
	case 2:
		serial.has_sent &= !was_sent;	/* to read it is to end it */
		update_line(false);
		return was_sent ? IS_SENT : IS_NOTHING;
	case 3:
		return serial.line_control;
	case 4:
		return serial.modem_control;
	case 5:
		return EMPTY;
	case 6:
		return serial.modem_control & LOOP ? loop_status() : CONNECTED;
	case 7:
		return serial.scratch;
	}
	return 0;
}

static void serial_write(int at, uint8_t value)
{
	if (at < 2 && serial.line_control & DIVISOR) {
		serial.divisor[at] = value;
		return;
	}
	switch (at) {
	case 0:
		if (!(serial.modem_control & LOOP) && write(STDOUT_FILENO, &value, 1) < 0)
			err(1, "stdout");
		serial.has_sent = true;
		update_line(true);
		break;
	case 1:
		serial.has_sent |= value & ENABLE_SENT && !(serial.enabled & ENABLE_SENT);
		serial.enabled = value & 0xf;
		update_line(true);
		break;
	case 3:
		serial.line_control = value;
		break;
	case 4:
		serial.modem_control = value;
		break;
	case 7:
		serial.scratch = value;
		break;
	}
}

/* Exits */

void port(struct kvm_run *run)
{
	uint8_t *data = (uint8_t *)run + run->io.data_offset;
	size_t size = (size_t)run->io.size * run->io.count;
	bool is_serial = run->io.port >= COM1 && run->io.port < COM1 + 8;

	if (run->io.direction == KVM_EXIT_IO_OUT && run->io.port == POWER)
		power_off(data[0]);
	if (run->io.direction == KVM_EXIT_IO_IN)
		memset(data, 0xff, size);
	if (!is_serial)
		return;
	pthread_mutex_lock(&lock);
	for (size_t i = 0; i < size; i++)
		if (run->io.direction == KVM_EXIT_IO_IN)
			data[i] = serial_read(run->io.port - COM1);
		else
			serial_write(run->io.port - COM1, data[i]);
	pthread_mutex_unlock(&lock);
}

void mmio(struct kvm_run *run)
{
	uint64_t offset = run->mmio.phys_addr - IOAPIC;
	uint32_t value;

	if (wiring != BY_MSI_ROUTE || offset >= PAGE || run->mmio.len != sizeof(value)) {
		if (!run->mmio.is_write)
			memset(run->mmio.data, 0xff, sizeof(run->mmio.data));
		return;
	}
	pthread_mutex_lock(&lock);
	memcpy(&value, run->mmio.data, sizeof(value));
	if (run->mmio.is_write) {
		ioapic_write(offset, value);
	} else {
		value = ioapic_read(offset);
		memcpy(run->mmio.data, &value, sizeof(value));
	}
	pthread_mutex_unlock(&lock);
}
