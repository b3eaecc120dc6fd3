/* SPDX-License-Identifier: Apache-2.0 */
#include "driver.h"

#include "transport/csrc/bad_chain.h"

enum {
	SIZE = 16,
	FEATURES = DRIVER_INDIRECT_DESC | DRIVER_EVENT_IDX,
	TABLE = DRIVER_DATA + 0x80000, /* the place of indirect tables */
};

static struct driver d;

static uint8_t *at(uint64_t gpa)
{
	return d.ram + gpa;
}

static void set_table(uint32_t index, uint64_t addr, uint32_t len, uint16_t flags, uint16_t next)
{
	struct driver_desc *table = (void *)at(TABLE);

	table[index] = (struct driver_desc){addr, len, flags, next};
}

/* ---- good chains ---- */

static void test_direct_chain(void)
{
	uint32_t id, len;

	driver_start(&d, SIZE, FEATURES);
	driver_set(&d, 3, DRIVER_DATA, 40, DRIVER_NEXT, 7);
	driver_set(&d, 7, DRIVER_DATA + 0x1000, 24, DRIVER_NEXT, 1);
	driver_set(&d, 1, DRIVER_DATA + 0x2000, 16, DRIVER_NEXT | DRIVER_WRITE, 0);
	driver_set(&d, 0, DRIVER_DATA + 0x3000, 4096, DRIVER_WRITE, 9);
	CHECK_EQUAL(driver_pop(&d), 0);
	driver_offer(&d, 3);
	CHECK_EQUAL(driver_pop(&d), 1);
	CHECK_EQUAL(d.chain.head, 3);
	CHECK_EQUAL(d.chain.readable_count, 2);
	CHECK_EQUAL(d.chain.readable_len, 64);
	CHECK_EQUAL(d.chain.writable_count, 2);
	CHECK_EQUAL(d.chain.writable_len, 4112);
	memset(d.chain.writable[1].iov_base, 0x5a, 4096);
	CHECK_EQUAL(*at(DRIVER_DATA + 0x3000 + 4095), 0x5a);
	CHECK_EQUAL(d.inflight->desc[3].inflight, 1);
	CHECK_EQUAL(driver_pop(&d), 0);
	vring_push(&d.vring, 3, 4112);
	CHECK(!driver_take(&d, &id, &len));
	vring_publish(&d.vring);
	CHECK(driver_take(&d, &id, &len));
	CHECK(id == 3 && len == 4112);
	CHECK_EQUAL(d.inflight->desc[3].inflight, 0);
	driver_end(&d);
}

static void test_indirect_chain(void)
{
	driver_start(&d, SIZE, FEATURES);
	driver_set(&d, 5, TABLE, 3 * 16, DRIVER_INDIRECT | DRIVER_WRITE,
		   0); /* the flag WRITE has no meaning here */
	set_table(0, DRIVER_DATA, 40, DRIVER_NEXT, 2);
	set_table(2, DRIVER_DATA + 0x1000, 16, DRIVER_NEXT | DRIVER_WRITE, 1);
	set_table(1, DRIVER_DATA + 0x3000, 16, DRIVER_WRITE, 0);
	driver_offer(&d, 5);
	CHECK_EQUAL(driver_pop(&d), 1);
	CHECK(d.chain.readable_count == 1 && d.chain.writable_count == 2);
	driver_end(&d);
}

static void test_indirect_after_direct(void)
{
	driver_start(&d, SIZE, FEATURES);
	driver_set(&d, 0, DRIVER_DATA, 40, DRIVER_NEXT, 1);
	driver_set(&d, 1, TABLE, 16, DRIVER_INDIRECT, 0);
	set_table(0, DRIVER_DATA + 0x1000, 16, DRIVER_WRITE, 0);
	driver_offer(&d, 0);
	CHECK_EQUAL(driver_pop(&d), 1);
	CHECK(d.chain.readable_count == 1 && d.chain.writable_count == 1);
	driver_end(&d);
}

/* A table that is longer than the ring: only its own length and VRING_SIZE_MAX bound it. */
static void test_long_indirect_table(void)
{
	driver_start(&d, SIZE, FEATURES);
	for (uint16_t i = 0; i < 1000; i++)
		set_table(i, DRIVER_DATA + UINT64_C(2) * i, 1, i < 999 ? DRIVER_NEXT : 0,
			  (uint16_t)(i + 1));
	driver_set(&d, 0, TABLE, 1000 * 16, DRIVER_INDIRECT, 0);
	driver_offer(&d, 0);
	CHECK_EQUAL(driver_pop(&d), 1);
	CHECK_EQUAL(d.chain.readable_count, 1000);
	driver_end(&d);
}

static void test_neighbours_are_merged(void)
{
	driver_start(&d, SIZE, FEATURES);
	driver_set(&d, 0, DRIVER_DATA, 40, DRIVER_NEXT, 1);
	driver_set(&d, 1, DRIVER_DATA + 40, 0, DRIVER_NEXT, 2); /* empty: it becomes no piece */
	driver_set(&d, 2, DRIVER_DATA + 40, 24, DRIVER_NEXT, 3);
	driver_set(&d, 3, DRIVER_DATA + 64, 16, DRIVER_NEXT | DRIVER_WRITE, 4);
	driver_set(&d, 4, DRIVER_DATA + 81, 16, DRIVER_WRITE, 0);
	driver_offer(&d, 0);
	CHECK_EQUAL(driver_pop(&d), 1);
	CHECK_EQUAL(d.chain.readable_count, 1);
	CHECK_EQUAL(d.chain.readable[0].iov_len, 64);
	CHECK_EQUAL(d.chain.writable_count, 2);
	driver_end(&d);
}

static void test_chain_across_regions(void)
{
	struct device_region r[2];
	struct driver_desc half = {DRIVER_DATA, 32, DRIVER_WRITE, 0};

	driver_start(&d, SIZE, FEATURES);
	r[0] = driver_region(&d);
	r[1] = (struct device_region){.gpa = DRIVER_BYTES,
				      .uva = 2 * DRIVER_UVA,
				      .size = 0x10000,
				      .fd = make_memfd(0x10000)};
	CHECK(!guest_memory_update(&d.memory, r, 2));
	driver_set(&d, 0, DRIVER_BYTES - 10, 30, DRIVER_NEXT, 1);
	driver_set(&d, 1, DRIVER_BYTES - 16, 0x10010, DRIVER_WRITE, 0);
	driver_offer(&d, 0);
	CHECK_EQUAL(driver_pop(&d), 1);
	CHECK_EQUAL(d.chain.readable_len, 30);
	CHECK(d.chain.readable_count == 2 || d.chain.readable[0].iov_len == 30);
	CHECK(guest_memory_contains(&d.memory, d.chain.writable[0].iov_base));
	for (uint32_t i = 0; i < d.chain.writable_count; i++)
		memset(d.chain.writable[i].iov_base, 1, d.chain.writable[i].iov_len);
	/* With one byte more the piece reaches outside. */
	driver_set(&d, 2, DRIVER_BYTES - 16, 0x10011, DRIVER_WRITE, 0);
	driver_offer(&d, 2);
	CHECK_EQUAL(driver_pop(&d), CHAIN_BAD);
	/* An indirect table with entries that straddle the regions cannot be read; other tables
	 * can. */
	memcpy(at(DRIVER_BYTES - 16), &half, 16);
	driver_set(&d, 3, DRIVER_BYTES - 16, 32, DRIVER_INDIRECT, 0);
	driver_offer(&d, 3);
	CHECK_EQUAL(driver_pop(&d), 1);
	driver_set(&d, 4, DRIVER_BYTES - 8, 32, DRIVER_INDIRECT, 0);
	driver_offer(&d, 4);
	CHECK_EQUAL(driver_pop(&d), CHAIN_BAD);
	close(r[1].fd);
	driver_end(&d);
}

static void test_unaligned_indirect_table(void)
{
	struct driver_desc entry = {DRIVER_DATA, 32, DRIVER_WRITE, 0};

	driver_start(&d, SIZE, FEATURES);
	memcpy(at(TABLE + 1), &entry, 16);
	driver_set(&d, 0, TABLE + 1, 16, DRIVER_INDIRECT, 0);
	driver_offer(&d, 0);
	CHECK_EQUAL(driver_pop(&d), 1);
	CHECK_EQUAL(d.chain.writable_len, 32);
	driver_end(&d);
}

/* ---- malformed chains ---- */

/* Pop the head `head`: the chain is refused and completed with length 0, and the ring lives on. */
static void expect_bad(uint16_t head)
{
	uint32_t id, len;

	driver_offer(&d, head);
	CHECK_EQUAL(driver_pop(&d), CHAIN_BAD);
	CHECK_EQUAL(d.chain.head, head);
	vring_push(&d.vring, d.chain.head, 0);
	vring_publish(&d.vring);
	CHECK(driver_take(&d, &id, &len) && id == head && len == 0);
	driver_set(&d, 15, DRIVER_DATA, 8, 0, 0);
	driver_offer(&d, 15);
	CHECK_EQUAL(driver_pop(&d), 1);
	vring_push(&d.vring, 15, 0);
	vring_publish(&d.vring);
	CHECK(driver_take(&d, &id, &len) && id == 15);
}

static void test_malformed_direct_chains(void)
{
	driver_start(&d, SIZE, FEATURES);
	driver_set(&d, 0, DRIVER_DATA, 8, DRIVER_NEXT, 0);
	expect_bad(0); /* a loop */
	driver_set(&d, 0, DRIVER_DATA, 0, DRIVER_NEXT, 1);
	driver_set(&d, 1, DRIVER_DATA, 0, DRIVER_NEXT, 0);
	expect_bad(0); /* a loop of empty descriptors */
	driver_set(&d, 0, DRIVER_DATA, 8, DRIVER_NEXT, SIZE);
	expect_bad(0);
	driver_set(&d, 0, DRIVER_DATA, 8, DRIVER_NEXT, 0xffff);
	expect_bad(0);
	driver_set(&d, 0, DRIVER_DATA, 8, DRIVER_NEXT | DRIVER_WRITE, 1);
	driver_set(&d, 1, DRIVER_DATA, 8, 0, 0);
	expect_bad(0); /* readable after writable */
	driver_set(&d, 0, DRIVER_BYTES - 8, 9, 0, 0);
	expect_bad(0);
	driver_set(&d, 0, DRIVER_BYTES, 1, 0, 0);
	expect_bad(0);
	driver_set(&d, 0, UINT64_MAX, 2, 0, 0);
	expect_bad(0);
	driver_set(&d, 0, UINT64_MAX - 7, UINT32_MAX, DRIVER_WRITE, 0);
	expect_bad(0);
	driver_set(&d, 0, DRIVER_DATA, UINT32_MAX, 0, 0);
	expect_bad(0);
	driver_end(&d);
}

static void test_malformed_indirect_chains(void)
{
	driver_start(&d, SIZE, FEATURES);
	set_table(0, DRIVER_DATA, 8, 0, 0);
	driver_set(&d, 0, TABLE, 16, DRIVER_INDIRECT | DRIVER_NEXT, 1);
	driver_set(&d, 1, DRIVER_DATA, 8, 0, 0);
	expect_bad(0);
	for (uint32_t len = 0; len < 48; len++) {
		driver_set(&d, 0, TABLE, len, DRIVER_INDIRECT, 0);
		if (len % 16 || !len)
			expect_bad(0);
	}
	driver_set(&d, 0, TABLE, UINT32_MAX, DRIVER_INDIRECT, 0);
	expect_bad(0);
	driver_set(&d, 0, DRIVER_BYTES - 8, 16, DRIVER_INDIRECT, 0);
	expect_bad(0);
	driver_set(&d, 0, UINT64_MAX - 7, 16, DRIVER_INDIRECT, 0);
	expect_bad(0);
	driver_set(&d, 0, TABLE, 16, DRIVER_INDIRECT, 0);
	set_table(0, TABLE, 16, DRIVER_INDIRECT, 0);
	expect_bad(0); /* a nested table */
	set_table(0, DRIVER_DATA, 8, DRIVER_NEXT, 1);
	expect_bad(0); /* next beyond the table */
	set_table(0, DRIVER_DATA, 0, DRIVER_NEXT, 0);
	expect_bad(0); /* a loop */
	driver_set(&d, 0, TABLE, UINT32_MAX & ~15u, DRIVER_INDIRECT, 0);
	expect_bad(0); /* a loop in a table that claims 2^28 entries */
	driver_end(&d);
}

static void test_indirect_needs_its_feature(void)
{
	driver_start(&d, SIZE, 0);
	set_table(0, DRIVER_DATA, 8, 0, 0);
	driver_set(&d, 0, TABLE, 16, DRIVER_INDIRECT, 0);
	expect_bad(0);
	driver_end(&d);
}

static void test_more_pieces_than_preadv_takes(void)
{
	driver_start(&d, SIZE, FEATURES);
	for (uint16_t i = 0; i < CHAIN_SEGMENTS_MAX; i++)
		set_table(i, DRIVER_DATA + UINT64_C(2) * i, 1, DRIVER_NEXT, (uint16_t)(i + 1));
	set_table(CHAIN_SEGMENTS_MAX - 1, DRIVER_DATA, 1, 0, 0);
	driver_set(&d, 0, TABLE, (CHAIN_SEGMENTS_MAX + 1) * 16, DRIVER_INDIRECT, 0);
	driver_offer(&d, 0);
	CHECK_EQUAL(driver_pop(&d), 1);
	CHECK_EQUAL(d.chain.readable_count, CHAIN_SEGMENTS_MAX);
	vring_push(&d.vring, 0, 0);
	vring_publish(&d.vring);
	d.last_used++;
	set_table(CHAIN_SEGMENTS_MAX - 1, DRIVER_DATA, 1, DRIVER_NEXT, CHAIN_SEGMENTS_MAX);
	set_table(CHAIN_SEGMENTS_MAX, DRIVER_DATA + 5, 1, 0, 0);
	expect_bad(0);
	driver_end(&d);
}

/* The sum of many large pieces: sums have 64 bits, and the readable part has less than 4 GiB. */
static void test_huge_claims(void)
{
	driver_start(&d, SIZE, FEATURES);
	for (uint16_t i = 0; i < 2000; i++)
		set_table(i, 0, DRIVER_BYTES, i < 1999 ? DRIVER_NEXT : 0, (uint16_t)(i + 1));
	driver_set(&d, 0, TABLE, 2000 * 16, DRIVER_INDIRECT, 0);
	expect_bad(0); /* 8 GiB in 2000 pieces */
	for (uint16_t i = 0; i < 1024; i++)
		set_table(i, 0, DRIVER_BYTES, i < 1023 ? DRIVER_NEXT : 0, (uint16_t)(i + 1));
	expect_bad(0); /* 4 GiB */
	set_table(1022, 0, DRIVER_BYTES, 0, 0);
	driver_offer(&d, 0);
	CHECK_EQUAL(driver_pop(&d), 1); /* 4 GiB - 4 MiB */
	CHECK_EQUAL(d.chain.readable_len, UINT64_C(1023) * DRIVER_BYTES);
	set_table(0, 0, 40, DRIVER_NEXT, 1);
	for (uint16_t i = 1; i < 1025; i++)
		set_table(i, 0, DRIVER_BYTES, DRIVER_WRITE | (i < 1024 ? DRIVER_NEXT : 0),
			  (uint16_t)(i + 1));
	driver_set(&d, 0, TABLE, 1025 * 16, DRIVER_INDIRECT, 0);
	vring_push(&d.vring, 0, 0);
	vring_publish(&d.vring);
	driver_offer(&d, 0);
	CHECK_EQUAL(driver_pop(&d), 1);
	CHECK_EQUAL(d.chain.writable_len, UINT64_C(1024) * DRIVER_BYTES); /* 4 GiB */
	driver_end(&d);
}

/* ---- the sound pieces of a bad chain ---- */

/* Pop the chain and read its sound pieces: they have `readable` and `writable` bytes. */
static void expect_sound(uint16_t head, uint64_t readable, uint64_t writable, uint64_t outside)
{
	struct bad_chain bad;

	driver_offer(&d, head);
	CHECK_EQUAL(driver_pop(&d), CHAIN_BAD);
	bad_chain_read(&d.vring, &d.memory, &d.chain, &bad);
	CHECK_EQUAL(d.chain.readable_len, readable);
	CHECK_EQUAL(d.chain.writable_len, writable);
	CHECK_EQUAL(bad.is_outside, outside != 0);
	if (outside)
		CHECK_EQUAL(bad.gpa, outside);
	vring_push(&d.vring, d.chain.head, 0);
	vring_publish(&d.vring);
}

static void test_what_is_sound_of_a_bad_chain(void)
{
	driver_start(&d, SIZE, FEATURES);
	driver_set(&d, 0, DRIVER_DATA, 40, DRIVER_NEXT, 1);
	driver_set(&d, 1, DRIVER_BYTES - 10, 30, DRIVER_NEXT,
		   2); /* reaches beyond the end of memory */
	driver_set(&d, 2, DRIVER_DATA + 100, 7, DRIVER_NEXT, 3);
	driver_set(&d, 3, DRIVER_DATA + 200, 16, DRIVER_NEXT | DRIVER_WRITE, 4);
	driver_set(&d, 4, DRIVER_BYTES + 5, 16, DRIVER_NEXT | DRIVER_WRITE, 5);
	driver_set(&d, 5, DRIVER_DATA + 300, 16, DRIVER_WRITE, 0);
	expect_sound(0, 50, 16, DRIVER_BYTES);
	driver_set(&d, 1, DRIVER_DATA + 50, 30, DRIVER_NEXT, 2);
	expect_sound(0, 77, 16, DRIVER_BYTES + 5);
	driver_set(&d, 4, DRIVER_DATA + 250, 1, DRIVER_NEXT, 5); /* readable after writable */
	expect_sound(0, 77, 32, 0);
	driver_set(&d, 5, DRIVER_DATA + 300, 16, DRIVER_NEXT | DRIVER_WRITE, 0); /* a loop */
	driver_offer(&d, 0);
	CHECK_EQUAL(driver_pop(&d), CHAIN_BAD);
	driver_set(&d, 6, DRIVER_BYTES + 64, 32, DRIVER_INDIRECT, 0);
	expect_sound(6, 0, 0, DRIVER_BYTES + 64);
	driver_end(&d);
}

/* ---- broken rings ---- */

static void expect_broken(void)
{
	CHECK_EQUAL(driver_pop(&d), VRING_BROKEN);
	CHECK(d.vring.reason);
	driver_end(&d);
}

static void test_avail_index_too_far_ahead(void)
{
	driver_start(&d, SIZE, FEATURES);
	d.avail[1] = SIZE + 1;
	expect_broken();
	driver_start(&d, SIZE, FEATURES);
	d.avail[1] = 0xffff; /* the index went backwards */
	expect_broken();
}

static void test_head_out_of_range(void)
{
	driver_start(&d, SIZE, FEATURES);
	driver_offer(&d, SIZE);
	expect_broken();
	driver_start(&d, SIZE, FEATURES);
	driver_offer(&d, 0xffff);
	expect_broken();
}

static void test_head_offered_twice(void)
{
	driver_start(&d, SIZE, FEATURES);
	driver_set(&d, 2, DRIVER_DATA, 8, 0, 0);
	driver_offer(&d, 2);
	driver_offer(&d, 2);
	CHECK_EQUAL(driver_pop(&d), 1);
	expect_broken();
	driver_start(&d, SIZE, FEATURES);
	driver_set(&d, 2, DRIVER_DATA, 8, 0, 0);
	driver_offer(&d, 2);
	CHECK_EQUAL(driver_pop(&d), 1);
	vring_push(&d.vring, 2, 0); /* pushed and not published: still in flight */
	driver_offer(&d, 2);
	expect_broken();
}

/* ---- finding the ring ---- */

static int map_with(uint64_t desc, uint64_t avail, uint64_t used, uint32_t size)
{
	struct device_vring device = driver_vring(&d);
	struct vring v = {0};

	device.desc = DRIVER_UVA + desc;
	device.avail = DRIVER_UVA + avail;
	device.used = DRIVER_UVA + used;
	device.size = size;
	return vring_map(&v, &device, &d.memory, FEATURES);
}

static void test_ring_addresses(void)
{
	const uint64_t end = DRIVER_BYTES;

	driver_start(&d, SIZE, FEATURES);
	CHECK(!map_with(0x10000, 0x20000, 0x30000, SIZE));
	CHECK(map_with(0x10000, 0x20000, 0x30000, 0) == -EINVAL);
	CHECK(map_with(0x10000, 0x20000, 0x30000, 3) == -EINVAL);
	CHECK(map_with(0, 0x200000, 0x300000, VRING_SIZE_MAX) == 0);
	CHECK(map_with(0, 0x200000, 0x300000, 2 * VRING_SIZE_MAX) == -EINVAL);
	CHECK(map_with(0x10008, 0x20000, 0x30000, SIZE) == -EINVAL);
	CHECK(map_with(0x10000, 0x20001, 0x30000, SIZE) == -EINVAL);
	CHECK(map_with(0x10000, 0x20000, 0x30002, SIZE) == -EINVAL);
	/* The last byte of each part must be inside a region, including the event words. */
	CHECK(!map_with(end - SIZE * 16, 0x20000, 0x30000, SIZE));
	CHECK(map_with(end - SIZE * 16 + 16, 0x20000, 0x30000, SIZE) == -EINVAL);
	CHECK(!map_with(0x10000, end - 6 - SIZE * 2, 0x30000, SIZE));
	CHECK(map_with(0x10000, end - 4 - SIZE * 2, 0x30000, SIZE) == -EINVAL);
	CHECK(!map_with(0x10000, 0x20000, end - 8 - SIZE * 8, SIZE));
	CHECK(map_with(0x10000, 0x20000, end - 4 - SIZE * 8, SIZE) == -EINVAL);
	CHECK(map_with(end, 0x20000, 0x30000, SIZE) == -EINVAL);
	driver_end(&d);
}

/* An address may be aligned in the front-end's mapping and not in ours: its region may begin at an
 * odd offset of its file. Atomic access to a misaligned word faults on some machines. */
static void test_ring_that_is_misaligned_here(void)
{
	struct device_region r;

	driver_init(&d, SIZE);
	r = driver_region(&d);
	for (uint64_t offset = 1; offset < 16; offset++) {
		r.offset = offset;
		r.size = DRIVER_BYTES - 16;
		CHECK(!guest_memory_update(&d.memory, &r, 1));
		CHECK(map_with(0x10000, 0x20000, 0x30000, SIZE) == -EINVAL);
	}
	driver_end(&d);
}

/* ---- calls and kicks ---- */

/* Push and publish `count` chains that were offered. Return: whether the driver was called. */
static bool complete(uint32_t count)
{
	bool sleeps, due, called;

	for (uint32_t i = 0; i < count; i++) {
		driver_set(&d, i, DRIVER_DATA, 8, 0, 0);
		driver_offer(&d, (uint16_t)i);
		CHECK_EQUAL(driver_pop(&d), 1);
		vring_push(&d.vring, d.chain.head, 0);
	}
	sleeps = vring_driver_sleeps(&d.vring);
	due = d.vring.call_due;
	called = vring_publish(&d.vring);
	CHECK_EQUAL(called, sleeps || due);
	return called;
}

static void test_calls_with_event_idx(void)
{
	driver_start(&d, SIZE, FEATURES);
	driver_set_used_event(&d, 0); /* call when entry 0 is there */
	CHECK(complete(1));
	CHECK(!complete(1)); /* the driver has not asked again */
	driver_set_used_event(&d, 5);
	CHECK(!complete(3)); /* entries 2, 3, 4 */
	CHECK(complete(1));  /* entry 5 */
	driver_set_used_event(&d, 8);
	CHECK(complete(4)); /* entries 6 to 9: entry 8 was passed on the way */
	CHECK(!vring_publish(&d.vring));
	driver_end(&d);
}

static void test_calls_without_event_idx(void)
{
	driver_start(&d, SIZE, 0);
	CHECK(complete(1));
	CHECK(complete(2));
	d.avail[0] = 1; /* VRING_AVAIL_F_NO_INTERRUPT */
	CHECK(!complete(1));
	d.avail[0] = 0;
	CHECK(complete(1));
	CHECK(!vring_publish(&d.vring)); /* there is no new entry */
	driver_end(&d);
}

static void test_kicks(void)
{
	driver_start(&d, SIZE, FEATURES);
	complete(3);
	CHECK(!vring_enable_kicks(&d.vring));
	CHECK_EQUAL(driver_avail_event(&d), 3);
	driver_offer(&d, 9);
	CHECK(vring_enable_kicks(&d.vring));
	vring_disable_kicks(&d.vring);
	driver_end(&d);

	driver_start(&d, SIZE, 0);
	vring_disable_kicks(&d.vring);
	CHECK_EQUAL(d.used[0], 1);
	CHECK(!vring_enable_kicks(&d.vring));
	CHECK_EQUAL(d.used[0], 0);
	driver_end(&d);
}

/* ---- many chains ---- */

static void test_indices_wrap(void)
{
	uint32_t id, len;

	driver_start(&d, SIZE, FEATURES);
	for (uint32_t i = 0; i < 3 * 65536; i++) {
		uint16_t head = (uint16_t)(i % SIZE);

		driver_set(&d, head, DRIVER_DATA, 8, 0, 0);
		driver_set_used_event(&d, d.last_used);
		driver_offer(&d, head);
		CHECK_EQUAL(vring_available(&d.vring), 1);
		CHECK_EQUAL(driver_pop(&d), 1);
		vring_push(&d.vring, head, i);
		CHECK(vring_publish(&d.vring));
		CHECK(driver_take(&d, &id, &len));
		CHECK(id == head && len == i);
		CHECK_EQUAL(d.inflight->used_idx, d.last_used);
	}
	driver_end(&d);
}

/* The whole ring is in flight, and is completed in another order, again and again. */
static void test_batches_out_of_order(void)
{
	uint64_t random = 3;
	uint32_t id, len;

	driver_start(&d, SIZE, FEATURES);
	for (uint32_t round = 0; round < 5000; round++) {
		uint16_t order[SIZE];

		for (uint16_t i = 0; i < SIZE; i++) {
			driver_set(&d, i, DRIVER_DATA, 8, 0, 0);
			driver_offer(&d, i);
			CHECK_EQUAL(driver_pop(&d), 1);
			order[i] = i;
		}
		CHECK_EQUAL(driver_pop(&d), 0);
		for (uint32_t i = SIZE; i > 0; i--) {
			uint32_t pick = random_below(&random, i);
			uint16_t head = order[pick];

			order[pick] = order[i - 1];
			vring_push(&d.vring, head, head);
			if (random_below(&random, 4) == 0)
				vring_publish(&d.vring);
		}
		vring_publish(&d.vring);
		for (uint32_t i = 0, seen = 0; i < SIZE; i++) {
			CHECK(driver_take(&d, &id, &len) && id == len && !(seen & 1u << id));
			seen |= 1u << id;
			CHECK_EQUAL(d.inflight->desc[id].inflight, 0);
		}
		CHECK(!driver_take(&d, &id, &len));
	}
	driver_end(&d);
}

static void test_attach_goes_on_where_it_was(void)
{
	uint16_t heads[SIZE];
	uint32_t id, len;

	driver_start(&d, SIZE, FEATURES);
	complete(7);
	while (driver_take(&d, &id, &len))
		continue;
	for (uint16_t i = 12; i > 8; i--) {
		driver_set(&d, i, DRIVER_DATA + i * UINT64_C(8), 8, 0, 0);
		driver_offer(&d, i);
	}
	CHECK_EQUAL(driver_pop(&d), 1);
	CHECK_EQUAL(driver_pop(&d), 1);
	vring_push(&d.vring, 12, 0); /* and never published, since the worker dies */
	CHECK_EQUAL(driver_attach(&d, FEATURES, heads), 2);
	CHECK(heads[0] == 12 && heads[1] == 11); /* the oldest first */
	CHECK_EQUAL(vring_available(&d.vring), 2);
	d.chain.head = 11;
	CHECK_EQUAL(vring_repop(&d.vring, &d.memory, &d.chain), 1);
	CHECK(d.chain.readable[0].iov_base == guest_memory_at(&d.memory, DRIVER_DATA + 11 * 8, 8));
	CHECK_EQUAL(driver_pop(&d), 1);
	CHECK_EQUAL(d.chain.head, 10);
	vring_push(&d.vring, 11, 0);
	vring_push(&d.vring, 12, 0);
	CHECK(vring_publish(&d.vring));
	CHECK(driver_take(&d, &id, &len) && id == 11);
	CHECK(driver_take(&d, &id, &len) && id == 12);
	CHECK_EQUAL(driver_attach(&d, FEATURES, heads), 1);
	CHECK_EQUAL(heads[0], 10);
	driver_end(&d);
}

int main(void)
{
	RUN(test_direct_chain);
	RUN(test_indirect_chain);
	RUN(test_indirect_after_direct);
	RUN(test_long_indirect_table);
	RUN(test_neighbours_are_merged);
	RUN(test_chain_across_regions);
	RUN(test_unaligned_indirect_table);
	RUN(test_malformed_direct_chains);
	RUN(test_malformed_indirect_chains);
	RUN(test_indirect_needs_its_feature);
	RUN(test_more_pieces_than_preadv_takes);
	RUN(test_huge_claims);
	RUN(test_what_is_sound_of_a_bad_chain);
	RUN(test_avail_index_too_far_ahead);
	RUN(test_head_out_of_range);
	RUN(test_head_offered_twice);
	RUN(test_ring_addresses);
	RUN(test_ring_that_is_misaligned_here);
	RUN(test_calls_with_event_idx);
	RUN(test_calls_without_event_idx);
	RUN(test_kicks);
	RUN(test_indices_wrap);
	RUN(test_batches_out_of_order);
	RUN(test_attach_goes_on_where_it_was);
	return 0;
}
