/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/csrc/loop/requests.h"

#include "transport/csrc/clock.h"

void requests_give(struct worker *w, struct request *r)
{
	if (r->kept)
		request_drop_payload(r);
	r->ring = NULL;
	r->next = w->free_requests;
	w->free_requests = r;
}

/* Objects that were never used cost no memory: such an object is handed out only when the free list
 * is empty. */
void requests_give_unused(struct worker *w)
{
	if (w->requests_used < REQUESTS_MAX)
		requests_give(w, &w->requests[w->requests_used++]);
}

struct request *requests_take(struct worker *w)
{
	struct request *r = w->free_requests;

	if (!r)
		return NULL;
	w->free_requests = r->next;
	if (!w->free_requests)
		requests_give_unused(w);
	return r;
}

static uint32_t latency_bucket(uint64_t ns)
{
	uint64_t units = ns >> 8;
	uint32_t bucket = units ? 64 - (uint32_t)__builtin_clzll(units) : 0;

	return bucket < LATENCY_BUCKETS ? bucket : LATENCY_BUCKETS - 1;
}

static void count_op(struct worker *w, const struct request *r, int result)
{
	uint32_t opcode = r->in.opcode < FUSE_OPCODE_MAX ? r->in.opcode : 0;
	struct op_counter *counter = &w->row->ops[opcode];
	uint32_t flags = fuse_op(opcode)->flags;
	uint64_t now = clock_ns();
	uint64_t ns = now - r->start_ns;

	w->fs.now_ns = now;
	counter->count++;
	counter->ns += ns;
	counter->latency[latency_bucket(ns)]++;
	if (result < 0 && result != OUTCOME_NO_REPLY)
		counter->errors++;
	else if (flags & OP_DATA_OUT)
		counter->bytes += (uint64_t)result;
	else if (flags & OP_DATA_IN)
		counter->bytes += r->data_in_len;
}

void requests_finish(struct worker *w, struct request *r, int result)
{
	struct worker_ring *ring = r->ring;
	uint32_t len = 0;

	if (!r->abandoned && r->ring_life == ring->life) {
		if (result != OUTCOME_NO_REPLY)
			len = request_reply(r, result);
		vring_push(&ring->vring, r->chain.head, len);
		count_op(w, r, result);
	}
	requests_give(w, r);
}
