/*
 * The guest that scripts/bench times: a few mixes of instructions, each a function that does `rounds` of the same work.
 * Built for 64-bit mode with paging (4 KiB pages where `field` lies) and for 32-bit mode without; start.S has the
 * entry, ROUNDS is given by who builds.
 *
 * Each mix is announced to the debug console at 0xe9, by one byte before it and one after it, so that who runs the
 * machine takes the time; what it computed follows there, for all machines must have come to the same.
 */
#include <stdint.h>

enum { DEBUG_CONSOLE = 0xe9, POWER = 0xf4 };
enum { TABLE = 4096, SORTED = 2048, STRIDE = 4096, LINKS = 2048, WORDS = 32768 };

static uint8_t field[LINKS * STRIDE] __attribute__((section(".field, \"aw\", @nobits#")));
static uint8_t text[TABLE];
static uint32_t keys[SORTED];

static uint32_t random_word(uint32_t *seed)
{
	*seed = *seed * 1664525 + 1013904223;
	return *seed >> 8;
}

static uint32_t crc32(const uint8_t *data, unsigned int size)
{
	static uint32_t table[256];
	uint32_t crc = -1;

	if (!table[1])
		for (uint32_t i = 0; i < 256; i++) {
			uint32_t c = i;

			for (int k = 0; k < 8; k++)
				c = c & 1 ? c >> 1 ^ 0xedb88320 : c >> 1;
			table[i] = c;
		}
	while (size--)
		crc = crc >> 8 ^ table[(crc ^ *data++) & 0xff];
	return ~crc;
}

static void sift(uint32_t *heap, unsigned int root, unsigned int size)
{
	for (unsigned int child; (child = 2 * root + 1) < size; root = child) {
		uint32_t key = heap[root];

		if (child + 1 < size && heap[child + 1] > heap[child])
			child++;
		if (key >= heap[child])
			return;
		heap[root] = heap[child];
		heap[child] = key;
	}
}

static uint32_t sort(void)
{
	for (int i = SORTED / 2 - 1; i >= 0; i--)
		sift(keys, i, SORTED);
	for (unsigned int size = SORTED - 1; size; size--) {
		uint32_t key = keys[0];

		keys[0] = keys[size];
		keys[size] = key;
		sift(keys, 0, size);
	}
	return keys[SORTED / 3];
}

static uint32_t fnv1a(const uint8_t *data, unsigned int size)
{
	uint32_t hash = 2166136261u;

	while (size--)
		hash = (hash ^ *data++) * 16777619;
	return hash;
}

/* CRC of a text, hash of a text, heap sort of words. */
uint32_t integer(uint32_t rounds)
{
	uint32_t sum = 0;

	for (uint32_t round = 0; round < rounds; round++) {
		uint32_t seed = round;

		for (int i = 0; i < TABLE; i++)
			text[i] = random_word(&seed);
		for (int i = 0; i < SORTED; i++)
			keys[i] = random_word(&seed);
		for (int again = 0; again < 8; again++)
			sum += crc32(text, TABLE) + fnv1a(text, TABLE);
		sum += sort();
	}
	return sum;
}

/* Copies word by word, then a chain of pointers with a page to each. */
uint32_t memory(uint32_t rounds)
{
	uintptr_t *from = (uintptr_t *)field, *to = from + WORDS;
	uint32_t sum = 0;

	for (uint32_t round = 0; round < rounds; round++) {
		for (unsigned int i = 0; i < WORDS; i++)
			from[i] = i * 2654435761u + round;
		for (int again = 0; again < 2; again++)
			for (unsigned int i = 0; i < WORDS; i++)
				to[i] = from[i];
		sum += to[round % WORDS];
		for (unsigned int i = 0; i < LINKS; i++)	/* 1221 is odd: the chain visits every page */
			*(uint8_t **)(field + i * STRIDE + i % 64 * 64) =
				field + (i + 1221) % LINKS * STRIDE + (i + 1221) % LINKS % 64 * 64;
		uint8_t *link = field;
		for (unsigned int i = 0; i < 16 * LINKS; i++)
			link = *(uint8_t **)link;
		sum += link - field;
	}
	return sum;
}

struct body { double x[3], v[3], mass; };

static double root(double x)
{
	double y;

#ifdef __SSE2__
	asm("sqrtsd %1, %0" : "=x"(y) : "x"(x));
#else
	asm("fsqrt" : "=t"(y) : "0"(x));
#endif
	return y;
}

/* Five bodies that attract each other. */
uint32_t floating(uint32_t rounds)
{
	struct body bodies[5];
	double energy = 0;

	for (int i = 0; i < 5; i++)
		bodies[i] = (struct body){ { i, i * 0.5 - 1, 3 - i }, { 0.1 * i, 0, -0.1 }, 1.0 / (i + 1) };
	for (uint32_t round = 0; round < rounds * 1000; round++) {
		for (struct body *a = bodies; a < bodies + 5; a++)
			for (struct body *b = a + 1; b < bodies + 5; b++) {
				double d[3], square = 0.01;

				for (int k = 0; k < 3; k++) {
					d[k] = a->x[k] - b->x[k];
					square += d[k] * d[k];
				}
				double pull = 0.001 / (square * root(square));

				for (int k = 0; k < 3; k++) {
					a->v[k] -= d[k] * b->mass * pull;
					b->v[k] += d[k] * a->mass * pull;
				}
			}
		for (struct body *a = bodies; a < bodies + 5; a++)
			for (int k = 0; k < 3; k++)
				a->x[k] += a->v[k] * 0.001;
	}
	for (int i = 0; i < 5; i++)
		energy += bodies[i].v[0] * bodies[i].mass;
	return (int32_t)(energy * 1e6);
}

#ifdef __SSE2__
typedef uint32_t lanes __attribute__((vector_size(16)));

/* xorshift in four lanes, multiplied, shuffled. */
uint32_t vector(uint32_t rounds)
{
	lanes x = { 1, 2, 3, 4 }, sum = { 0 };

	for (uint32_t round = 0; round < rounds * 50000; round++) {
		x ^= x << 13;
		x ^= x >> 17;
		x ^= x << 5;
		sum += x * 2654435761u;
		sum = __builtin_shuffle(sum, (lanes){ 1, 2, 3, 0 });
	}
	return sum[0] ^ sum[1] ^ sum[2] ^ sum[3];
}
#endif

static void out(uint16_t port, uint8_t value)
{
	asm volatile("outb %0, %1" : : "a"(value), "Nd"(port));
}

static void timed(char name, uint32_t (*mix)(uint32_t))
{
	mix(1);		/* pages and code are there */
	out(DEBUG_CONSOLE, name);
	uint32_t result = mix(ROUNDS);
	out(DEBUG_CONSOLE, '=');
	for (int shift = 28; shift >= 0; shift -= 4)
		out(DEBUG_CONSOLE, "0123456789abcdef"[result >> shift & 15]);
	out(DEBUG_CONSOLE, '\n');
}

void start(void)
{
	timed('i', integer);
	timed('m', memory);
	timed('f', floating);
#ifdef __SSE2__
	timed('v', vector);
#endif
	out(POWER, 0);
	for (;;)
		asm volatile("cli; hlt");
}
