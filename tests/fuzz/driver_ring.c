/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fuzz target: our own driver (vfsd mount, vfsd bench) with a device that writes anything into the
 * used ring, and into the rest of guest memory.
 *
 * Input: struct header, then one byte for each step, followed by the bytes that the step needs.
 *
 * What must hold: each chain comes back once and to its owner, with no more bytes than it has room
 * for; when all chains are back there are as many free descriptors as before.
 */
#include "fuzz.h"

#include "frontend/csrc/driver_ring.h"

enum {
	SIZE_LOG2_MAX = 5,
	SIZE_MAX_HERE = 1 << SIZE_LOG2_MAX,
	MEMORY_BYTES = 0x4000,
	GPA = 0x100000,
	AVAIL = 0x400,
	USED = 0x800,
	TABLES = 0x1000,
	TABLE_BYTES = 8 * DRIVER_RING_DESC_BYTES,
	DATA = 0x3000,
	SEGMENTS_MAX = 6,
	STEPS_MAX = 256,
};

struct header {
	uint8_t size_log2;
	uint8_t event_idx;
};

enum step {
	STEP_ADD,
	STEP_KICK,
	STEP_TAKE,
	STEP_CALLS,
	STEP_COMPLETE, /* the device behaves well */
	STEP_WRITE,    /* the device writes anything */
	STEPS,
};

static uint8_t *memory;
static struct driver_ring ring;
static uint32_t rooms[SIZE_MAX_HERE]; /* of the chains with the device; 0: the token is free */
static uint32_t tokens;		      /* number of chains with the device */

static void set_up(const struct header *header)
{
	struct driver_ring_config config = {
		.size = 1u << header->size_log2 % (SIZE_LOG2_MAX + 1),
		.event_idx = header->event_idx & 1,
		.kick_fd = -1,
		.avail = AVAIL,
		.used = USED,
	};

	memory = calloc(1, MEMORY_BYTES);
	CHECK(memory);
	config.memory = (struct driver_memory){memory, MEMORY_BYTES, GPA};
	CHECK(!driver_ring_init(&ring, &config));
	memset(rooms, 0, sizeof(rooms));
	tokens = 0;
}

static uint32_t free_token(void)
{
	uint32_t token = 0;

	while (token < SIZE_MAX_HERE && rooms[token])
		token++;
	return token;
}

static void add(struct input *in)
{
	struct driver_segment segments[SEGMENTS_MAX];
	uint8_t shape = take_byte(in);
	struct driver_chain chain = {.segments = segments,
				     .readable = shape % 3,
				     .writable = 1 + (shape >> 2) % 3,
				     .token = free_token()};
	uint32_t room = 0;

	if (chain.token == SIZE_MAX_HERE)
		return;
	if (shape & 128)
		chain.table = memory + TABLES + chain.token * TABLE_BYTES;
	for (uint32_t i = 0; i < chain.readable + chain.writable; i++) {
		segments[i] = (struct driver_segment){memory + DATA + i * 64, 1u + shape % 64};
		room += i >= chain.readable ? segments[i].len : 0;
	}
	if (driver_ring_add(&ring, &chain))
		return;
	rooms[chain.token] = room;
	tokens++;
}

static void take(void)
{
	struct driver_used used;
	int got = driver_ring_take(&ring, &used);

	CHECK(got == 0 || got == 1 || got == DRIVER_RING_BROKEN);
	if (got != 1)
		return;
	CHECK(used.token < SIZE_MAX_HERE && rooms[used.token]);
	CHECK(used.len <= rooms[used.token]);
	rooms[used.token] = 0;
	tokens--;
}

/* Write one used element, and the index that includes it. */
static void complete(struct input *in)
{
	uint16_t *idx = (uint16_t *)(void *)(memory + USED + 2);
	uint32_t *element = (uint32_t *)(void *)(memory + USED + 4) + *idx % ring.size * 2;

	element[0] = take_byte(in) % SIZE_MAX_HERE;
	element[1] = take_byte(in);
	++*idx;
}

static void step(struct input *in)
{
	uint32_t at;

	switch (take_byte(in) % STEPS) {
	case STEP_ADD:
		add(in);
		break;
	case STEP_KICK:
		driver_ring_kick(&ring);
		break;
	case STEP_TAKE:
		take();
		break;
	case STEP_CALLS:
		(void)!driver_ring_enable_calls(&ring);
		driver_ring_disable_calls(&ring);
		break;
	case STEP_COMPLETE:
		complete(in);
		break;
	default:
		at = take_u16(in) % MEMORY_BYTES;
		memory[at] = take_byte(in);
	}
	CHECK_EQUAL(ring.outstanding, tokens);
	CHECK(ring.free_count <= ring.size);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input in = {data, data + size};
	struct header header;

	take_bytes(&in, &header, sizeof(header));
	set_up(&header);
	for (uint32_t i = 0; i < STEPS_MAX && !is_empty(&in); i++)
		step(&in);
	if (!tokens)
		CHECK_EQUAL(ring.free_count, ring.size);
	driver_ring_deinit(&ring);
	free(memory);
	return 0;
}
