/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fuzz target: tables of guest memory, as a VMM sends them, and the addresses that a guest then
 * gives. (The supervisor refuses most of these tables; a worker must survive all of them.)
 *
 * Input: for each step the number of regions, then their numbers, mostly small multiples of a page.
 *
 * What must hold: a table is mapped whole or not at all; two regions do not overlap; an address is
 * translated into the mapping of the region that the address is in, and every byte there can be
 * read.
 */
#include "fuzz.h"

#include "transport/csrc/guest_memory.h"

#include <fcntl.h>

enum {
	PAGE = 4096,
	FILES = 3,
	FILE_BYTES = 16 * PAGE,
	REGIONS_MAX = 12,
	STEPS_MAX = 12,
	LOOKS = 8,
};

static int files[FILES];
static struct guest_memory memory;

static void set_up(void)
{
	if (files[0])
		return;
	for (uint32_t i = 0; i < FILES; i++)
		files[i] = make_memfd(FILE_BYTES);
}

/* A small number of pages, a few bytes more or less, or any number. */
static uint64_t take_number(struct input *in)
{
	uint8_t choice = take_byte(in);

	if (choice < 192)
		return (uint64_t)(choice % 32) * PAGE;
	return choice < 240 ? (uint64_t)(choice % 16) * PAGE - 8 : take_u64(in);
}

static struct device_region take_region(struct input *in)
{
	struct device_region region = {.gpa = take_number(in), .size = take_number(in)};

	region.uva = take_number(in);
	region.offset = take_number(in);
	region.fd = take_byte(in) % (FILES + 1);
	region.fd = region.fd < FILES ? files[region.fd] : -1;
	return region;
}

static void check_table(void)
{
	for (uint32_t i = 0; i < memory.count; i++) {
		const struct guest_mapping *m = &memory.mappings[i];

		CHECK(m->size && m->size <= FILE_BYTES);
		CHECK(m->gpa + m->size > m->gpa);
		CHECK(m->addr >= m->base && m->addr + m->size <= m->base + m->base_len);
		if (i)
			CHECK(memory.mappings[i - 1].gpa + memory.mappings[i - 1].size <= m->gpa);
	}
}

/* Read the first and the last byte. */
static void touch(const void *addr, uint64_t len)
{
	const volatile uint8_t *bytes = addr;

	CHECK(guest_memory_contains(&memory, addr));
	(void)bytes[0];
	(void)bytes[len - 1];
}

static void look(struct input *in)
{
	uint64_t gpa = take_number(in), len = take_number(in), here = 0;
	void *addr = guest_memory_span(&memory, gpa, len, &here);

	if (addr && len) {
		CHECK(here && here <= len);
		touch(addr, here);
	}
	addr = guest_memory_at(&memory, gpa, len);
	CHECK(!addr || !len || here == len);
	addr = guest_memory_at_uva(&memory, gpa, len);
	if (addr && len)
		touch(addr, len);
}

static void step(struct input *in)
{
	struct device_region regions[REGIONS_MAX];
	uint32_t count = take_byte(in) % (REGIONS_MAX + 1);
	int err;

	for (uint32_t i = 0; i < count; i++)
		regions[i] = take_region(in);
	err = guest_memory_update(&memory, regions, count);
	CHECK(err <= 0);
	CHECK(!err || !memory.count);
	check_table();
	for (uint32_t i = 0; i < LOOKS; i++)
		look(in);
	if (take_byte(in) & 1)
		guest_memory_reap(&memory);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input in = {data, data + size};

	set_up();
	for (uint32_t i = 0; i < STEPS_MAX && !is_empty(&in); i++)
		step(&in);
	guest_memory_clear(&memory);
	guest_memory_reap(&memory);
	return 0;
}
