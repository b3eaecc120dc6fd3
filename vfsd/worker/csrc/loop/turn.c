/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/csrc/loop/turn.h"

#include "transport/csrc/bad_chain.h"
#include "transport/csrc/clock.h"
#include "worker/csrc/fs/keep_cache.h"
#include "worker/csrc/fs/label.h"
#include "worker/csrc/loop/deferred.h"
#include "worker/csrc/loop/direct_io.h"
#include "worker/csrc/loop/requests.h"
#include "worker/csrc/loop/ring.h"
#include "worker/csrc/request/intent.h"

#include <errno.h>
#include <string.h>

enum {
	BATCH = 64,
	PUBLISH = 8, /* publish before the end of a turn once this number of replies waits */
	WAKE_NS = 20 * 1000,   /* time from the call of a sleeping driver to its next request */
	BATCH_NS = 100 * 1000, /* a turn ends earlier when requests are slow */
	UNSHARED_NS = 1000 * 1000 * 1000, /* between two reports of memory that is not shared */
};

/* ---- one request, from header to reply ---- */

/* INIT and DESTROY wait for Python with a private copy of their argument. */
static void park_cold(struct worker *w, struct request *r)
{
	uint32_t arg = fuse_op(r->in.opcode)->arg_size;

	memcpy(w->cold_arg, r->arg, arg);
	memcpy(w->cold_arg + arg, r->payload, r->payload_len);
	w->cold_len = arg + r->payload_len;
	w->cold = r;
}

static void serve_request(struct worker *w, struct request *r)
{
	int result = request_parse(r, w->fs.session, w->payload);

	r->start_ns = w->fs.now_ns;
	r->session = w->fs.session->number;
	r->offloaded = false;
	r->intent = &r->ring->intents[r->chain.head];
	if (result < 0) {
		requests_finish(w, r, ops_error(fuse_op(r->in.opcode), result));
		return;
	}
	if (r->from_dead && intent_settles(r, w->row->faulted, &result)) {
		label_forsake(&w->fs, r);
		keep_cache_forsake(&w->fs, r);
		requests_finish(w, r, result);
		return;
	}
	if (fuse_op(r->in.opcode)->flags & OP_COLD) {
		park_cold(w, r);
		return;
	}
	deferred_run(w, r);
}

/* ---- rings ---- */

static void break_ring(struct worker *w, struct worker_ring *ring)
{
	ring_break(ring, ring->vring.reason);
	w->any_broken = true;
}

/* Count a chain that points to unshared memory; such chains are reported now and then. */
static void note_unshared(struct worker *w, uint64_t gpa)
{
	w->unshared_count++;
	w->unshared_gpa = gpa;
	if (!w->unshared_at_ns || w->fs.now_ns - w->unshared_at_ns >= UNSHARED_NS)
		w->unshared_due = true;
}

/* Refuse a chain that is malformed or points to memory that the VMM does not share with us: answer
 * EIO, if the place of the reply's header can be reached. A function of its own, so that good
 * chains do not pay for it. */
static __attribute__((noinline, cold)) void refuse_chain(struct worker *w, struct request *r)
{
	struct worker_ring *ring = r->ring;
	struct bad_chain bad;
	uint32_t len = 0;

	bad_chain_read(&ring->vring, &w->memory, &r->chain, &bad);
	if (bad.is_outside)
		note_unshared(w, bad.gpa);
	request_parse_header(r);
	if (!(fuse_op(r->in.opcode)->flags & OP_NO_REPLY))
		len = request_reply(r, -EIO);
	vring_push(&ring->vring, r->chain.head, len);
	w->fs.table->vrings[ring->vring.index].bad_chains++;
	requests_give(w, r);
}

/* Should replies be published before the end of the turn? The turn began at `start` and has served
 * `served` chains. */
static bool publish_is_due(const struct worker *w, const struct worker_ring *ring, uint64_t start,
			   uint32_t served)
{
	if (ring->vring.pending < PUBLISH)
		return false;
	if (!vring_driver_sleeps(&ring->vring))
		return true;
	return vring_available(&ring->vring) * (w->fs.now_ns - start) <= WAKE_NS * (uint64_t)served;
}

uint32_t turn_ring(struct worker *w, struct worker_ring *ring)
{
	struct vring_counter *counter = &w->fs.table->vrings[ring->vring.index];
	uint64_t start = w->fs.now_ns;
	uint32_t served = 0;

	while (served < BATCH && !w->cold && w->fs.now_ns - start < BATCH_NS &&
	       ring_has_work(ring)) {
		struct request *r = requests_take(w);
		int got;

		if (!r)
			break;
		got = ring_next(w, ring, r);
		if (got == 1) {
			served++;
			vring_prefetch(&ring->vring, &w->memory);
			serve_request(w, r);
			if (publish_is_due(w, ring, start, served))
				ring_publish(w, ring);
			continue;
		}
		if (got == CHAIN_BAD) {
			served++;
			refuse_chain(w, r);
			continue;
		}
		requests_give(w, r);
		if (got == VRING_BROKEN)
			break_ring(w, ring);
		break;
	}
	counter->requests += served;
	direct_io_submit(w->direct_io);
	if (ring->vring.pending || ring->vring.call_due)
		ring_publish(w, ring);
	return served;
}

uint32_t turn_rings(struct worker *w)
{
	struct worker_ring *ring;
	uint32_t served = 0;

	w->fs.now_ns = clock_ns();
	for_each_ring (w, ring)
		if (ring->runs && !w->cold)
			served += turn_ring(w, ring);
	return served;
}
