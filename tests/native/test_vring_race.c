/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A hostile driver writes random values to descriptors, indirect tables and the avail ring while
 * the device pops. Whatever the driver does: no byte outside guest memory is named, and no list is
 * overrun.
 */
#include "driver.h"

#include <pthread.h>

enum {
	SIZE = 64,
	TABLES = DRIVER_DATA,
	TABLE_LEN = 40,
	NANOSECONDS = 1000 * 1000 * 1000,
};

static struct driver d;
static bool stop;

static uint64_t evil_address(uint64_t *random)
{
	switch (random_below(random, 8)) {
	case 0:
		return DRIVER_BYTES - random_below(random, 64);
	case 1:
		return UINT64_MAX - random_below(random, 64);
	case 2:
		return (uint64_t)next_random(random) << random_below(random, 40);
	case 3 ... 4:
		return TABLES + random_below(random, 16) * 0x400;
	default:
		return DRIVER_DATA + random_below(random, 0x100000);
	}
}

static uint32_t evil_len(uint64_t *random)
{
	switch (random_below(random, 8)) {
	case 0:
		return next_random(random);
	case 1:
		return 0;
	case 2 ... 3:
		return random_below(random, TABLE_LEN) * 16;
	default:
		return random_below(random, 5000);
	}
}

static struct driver_desc evil_desc(uint64_t *random)
{
	return (struct driver_desc){
		.addr = evil_address(random),
		.len = evil_len(random),
		.flags = (uint16_t)(random_below(random, 16) ? next_random(random) & 7
							     : next_random(random)),
		.next = (uint16_t)random_below(random, random_below(random, 16) ? SIZE : 65536),
	};
}

/* Mostly an index a little ahead of what the device has taken, so that the device has work. */
static void evil_index(uint64_t *random)
{
	uint16_t taken = __atomic_load_n(&d.vring.last_avail, __ATOMIC_RELAXED);
	uint16_t ahead = (uint16_t)(random_below(random, 500) ? random_below(random, 8)
							      : next_random(random));

	__atomic_store_n(&d.avail[1], (uint16_t)(taken + ahead), __ATOMIC_RELEASE);
}

static void *scribble(void *arg)
{
	uint64_t random = 0x1234567;

	while (!__atomic_load_n(&stop, __ATOMIC_RELAXED)) {
		struct driver_desc evil = evil_desc(&random);
		uint32_t table = random_below(&random, 16),
			 index = random_below(&random, TABLE_LEN);

		d.desc[random_below(&random, SIZE)] = evil;
		evil = evil_desc(&random);
		memcpy(d.ram + TABLES + table * 0x400 + index * 16, &evil, sizeof(evil));
		d.avail[2 + random_below(&random, SIZE)] =
			(uint16_t)random_below(&random, random_below(&random, 500) ? SIZE : 65536);
		evil_index(&random);
		d.used[1 + random_below(&random, 4)] = (uint16_t)next_random(&random);
	}
	return NULL;
}

static uint64_t check_pieces(const struct iovec *iov, uint32_t count)
{
	uint64_t len = 0;

	CHECK(count <= CHAIN_SEGMENTS_MAX);
	for (uint32_t i = 0; i < count; i++) {
		uint64_t at = (uint64_t)((uint8_t *)iov[i].iov_base - d.memory.mappings[0].addr);

		CHECK(iov[i].iov_len && at < DRIVER_BYTES);
		CHECK(iov[i].iov_len <= DRIVER_BYTES - at);
		len += iov[i].iov_len;
	}
	return len;
}

int main(void)
{
	uint64_t until, popped = 0, bad = 0, broken = 0;
	uint16_t heads[SIZE];
	pthread_t thread;

	driver_start(&d, SIZE, DRIVER_INDIRECT_DESC | DRIVER_EVENT_IDX);
	CHECK(!pthread_create(&thread, NULL, scribble, NULL));
	until = test_clock_ns() + NANOSECONDS;
	/* Run until the other thread has done each kind of harm, however long that takes. */
	while (test_clock_ns() < until || !popped || !bad || !broken) {
		int got = driver_pop(&d);

		CHECK(got == 0 || got == 1 || got == CHAIN_BAD || got == VRING_BROKEN);
		if (got == 1) {
			CHECK(check_pieces(d.chain.readable, d.chain.readable_count) ==
			      d.chain.readable_len);
			CHECK(check_pieces(d.chain.writable, d.chain.writable_count) ==
			      d.chain.writable_len);
			popped++;
		}
		bad += got == CHAIN_BAD;
		if (got == 1 || got == CHAIN_BAD)
			vring_push(&d.vring, d.chain.head, 0);
		if (got ==
		    VRING_BROKEN) { /* the daemon would stop the ring here; take it up again */
			CHECK(d.vring.reason);
			CHECK(driver_attach(&d, DRIVER_INDIRECT_DESC | DRIVER_EVENT_IDX, heads) <=
			      SIZE);
			memset(d.inflight->desc, 0, SIZE * sizeof(*d.inflight->desc));
			broken++;
		}
		vring_publish(&d.vring);
		(void)!vring_enable_kicks(&d.vring);
	}
	__atomic_store_n(&stop, true, __ATOMIC_RELAXED);
	pthread_join(thread, NULL);
	printf("%" PRIu64 " chains, %" PRIu64 " bad, %" PRIu64 " times broken\n", popped, bad,
	       broken);
	driver_end(&d);
	return 0;
}
