/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fuzz target: what survives a worker's death, with any content. The in-flight record may be the
 * front-end's memory, which the front-end may write at any time; the intents are in a segment that
 * every worker of the sandbox can write.
 *
 * Input: struct header, the intent, the in-flight record, then one byte for each step of a worker
 * that serves the ring.
 *
 * What must hold: whatever the record says, heads are below the ring's size and no head is given
 * twice; a recorded result is an errno or fits the reply of the request that it belongs to.
 */
#include "driver.h"
#include "fuzz.h"

#include "worker/csrc/request/intent.h"
#include "worker/csrc/request/request.h"

#include <stddef.h>

enum {
	SIZE_LOG2_MAX = 5,
	SIZE_MAX_HERE = 1 << SIZE_LOG2_MAX,
	DATA = DRIVER_DATA,
	STEPS_MAX = 256,
	ERRNO_MAX = 4095,
};

struct header {
	uint8_t size_log2;
	uint8_t event_idx;
	uint16_t used_idx;
	uint16_t ahead; /* entries that the driver has offered */
};

struct intent_header {
	uint8_t opcode;
	uint8_t belongs; /* 1: the intent is the request's; 2: so is its note */
	uint8_t from_dead;
};

enum step {
	STEP_POP,
	STEP_PUSH,
	STEP_PUBLISH,
	STEP_ATTACH,
	STEP_WRITE, /* the front-end changes its record */
	STEP_OFFER,
	STEPS,
};

static struct driver d;
static struct request *r;
static struct intent *intent;
static uint8_t
	*record; /* exactly as long as the record of this ring: ASan sees an access beyond it */
static uint64_t record_bytes;
static uint16_t popped[SIZE_MAX_HERE];
static uint32_t popped_count;

static void set_up(void)
{
	struct device_region region;

	if (r)
		return;
	r = calloc(1, sizeof(*r));
	CHECK(r);
	driver_init(&d, SIZE_MAX_HERE);
	region = driver_region(&d);
	CHECK(!guest_memory_update(&d.memory, &region, 1));
}

/* ---- the in-flight record ---- */

/* The front-end may change its record at any time, so a head that the worker already has may be
 * given again: but never twice in one attach, and never a head that the ring does not have. */
static void attach(void)
{
	uint16_t heads[SIZE_MAX_HERE];
	uint8_t seen[SIZE_MAX_HERE] = {0};
	uint32_t count;

	d.inflight = (void *)record;
	count = driver_attach(&d, (uint64_t)d.vring.event_idx * DRIVER_EVENT_IDX, heads);
	CHECK(count <= d.size);
	popped_count = 0;
	for (uint32_t i = 0; i < count; i++) {
		CHECK(heads[i] < d.size && !seen[heads[i]]++);
		popped[popped_count++] = heads[i];
	}
}

static void pop(void)
{
	int got = popped_count < d.size ? driver_pop(&d) : 0;

	CHECK(got == 0 || got == 1 || got == CHAIN_BAD || got == VRING_BROKEN);
	if (got != 1 && got != CHAIN_BAD)
		return;
	CHECK(d.chain.head < d.size);
	popped[popped_count++] = (uint16_t)d.chain.head;
}

static void step(struct input *in)
{
	switch (take_byte(in) % STEPS) {
	case STEP_POP:
		pop();
		break;
	case STEP_PUSH:
		if (popped_count)
			vring_push(&d.vring, popped[--popped_count], 16);
		break;
	case STEP_PUBLISH:
		vring_publish(&d.vring);
		CHECK_EQUAL(driver_used_idx(&d), d.vring.used_idx);
		break;
	case STEP_ATTACH:
		attach();
		break;
	case STEP_WRITE:
		record[take_u16(in) % record_bytes] = take_byte(in);
		break;
	default:
		driver_offer(&d, (uint16_t)(take_byte(in) % (d.size + 1)));
	}
}

static void run_ring(struct input *in, const struct header *header)
{
	memset(d.avail, 0, sizeof(*d.avail) * (SIZE_MAX_HERE + 3));
	memset(d.used, 0, sizeof(struct driver_desc) * (SIZE_MAX_HERE + 1));
	for (uint32_t i = 0; i < d.size; i++)
		driver_set(&d, i, DATA + i * 16, 16, DRIVER_WRITE, 0);
	d.used[1] = header->used_idx;
	d.next_avail = (uint16_t)(header->used_idx);
	for (uint32_t i = 0; i < header->ahead % (d.size + 1u); i++)
		driver_offer(&d, (uint16_t)i);
	d.vring.event_idx = header->event_idx & 1;
	attach();
	for (uint32_t i = 0; i < STEPS_MAX && !is_empty(in); i++)
		step(in);
}

/* ---- the intent ---- */

static void run_intent(const struct intent_header *header)
{
	uint8_t note[INTENT_REPLY_MAX];
	int result = 0;

	memset(&r->in, 0, sizeof(r->in));
	r->in.opcode = header->opcode;
	r->in.unique = 7;
	r->session = 3;
	r->reply = r->small;
	r->intent = intent;
	r->from_dead = header->from_dead & 1;
	if (header->belongs & 1) {
		intent->unique = r->in.unique;
		intent->session = r->session;
		intent->opcode = r->in.opcode;
	}
	if (header->belongs & 2)
		intent->note_unique = r->in.unique;
	(void)intent_noted(r, note, sizeof(note));
	if (intent_settles(r, header->from_dead & 2, &result)) {
		CHECK(result <= INTENT_REPLY_MAX);
		CHECK(result >= -ERRNO_MAX || result == OUTCOME_NO_REPLY);
		return;
	}
	intent_begin(r);
	intent_note(r, note, 8);
	intent_waits(r);
	intent_done(r, header->opcode);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input in = {data, data + size};
	struct intent_header intent_header;
	struct header header;

	set_up();
	take_bytes(&in, &header, sizeof(header));
	d.size = 1u << header.size_log2 % (SIZE_LOG2_MAX + 1);
	record_bytes = inflight_region_bytes(d.size);
	record = malloc(record_bytes);
	intent = malloc(sizeof(*intent));
	CHECK(record && intent);
	take_bytes(&in, &intent_header, sizeof(intent_header));
	take_bytes(&in, intent, offsetof(struct intent, reply));
	memset(intent->reply, 0, sizeof(intent->reply));
	take_bytes(&in, record, record_bytes);
	run_intent(&intent_header);
	run_ring(&in, &header);
	free(intent);
	free(record);
	return 0;
}
