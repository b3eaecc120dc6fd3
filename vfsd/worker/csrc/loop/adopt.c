/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Adopting a new device state: rings stop and start, memory is mapped and unmapped. Requests off
 * the loop get some time to end; a request that has not ended by then is answered with an error.
 */
#include "worker/csrc/loop/adopt.h"

#include "transport/csrc/clock.h"
#include "worker/csrc/loop/deferred.h"
#include "worker/csrc/loop/direct_io.h"
#include "worker/csrc/loop/offload.h"
#include "worker/csrc/loop/ring.h"
#include "worker/csrc/loop/turn.h"

#include <errno.h>
#include <poll.h>
#include <string.h>

/* Wait for requests to come back, and push them. Return: false when the deadline has passed. */
static bool wait_for_completions(struct worker *w, uint64_t deadline_ns)
{
	struct pollfd completed[] = {
		{.fd = offload_fd(w->offload), .events = POLLIN},
		{.fd = direct_io_fd(w->direct_io), .events = POLLIN},
	};
	uint64_t now = clock_ns();

	/* No event announces a read that io_submit(2) has refused. */
	if (deferred_completions(w))
		return true;
	if (now >= deadline_ns)
		return false;
	poll(completed, 2, (int)((deadline_ns - now) / NS_PER_MS) + 1);
	direct_io_clear(w->direct_io);
	return true;
}

/* A ring is to stop: wait for its requests to end, at most until the deadline. */
static void drain(struct worker *w, struct worker_ring *ring, uint64_t deadline_ns)
{
	while (ring->replay_next < ring->replay_count && ring->runs && !w->cold &&
	       clock_ns() < deadline_ns)
		if (!turn_ring(w, ring)) /* every request object is with the threads */
			deferred_completions(w);
	deferred_finish(w, lock_wait_cancel(&w->lock_waiters, ring));
	while (ring->outstanding && wait_for_completions(w, deadline_ns))
		continue;
}

/* Answer a request that is still with a thread. The thread's result is dropped, or the thread never
 * begins the request. */
static void abandon_request(struct worker *w, struct request *r)
{
	struct worker_ring *ring = r->ring;

	offload_abandon(w->offload, r);
	ring->outstanding--;
	if (r->ring_life == ring->life) /* else the ring has broken and started again since then */
		vring_push(&ring->vring, r->chain.head, request_reply(r, -EIO));
}

static bool is_off_the_loop(const struct request *r)
{
	return r->ring && r->offloaded && !r->abandoned;
}

static void abandon(struct worker *w, struct worker_ring *ring)
{
	for (uint32_t i = 0; ring->outstanding && i < w->requests_used; i++) {
		struct request *r = &w->requests[i];

		if (r->ring == ring && is_off_the_loop(r))
			abandon_request(w, r);
	}
	if (ring->vring.pending)
		ring_publish(w, ring);
}

static void drop_cold(struct worker *w, const struct worker_ring *ring)
{
	if (!w->cold || w->cold->ring != ring)
		return;
	requests_give(w, w->cold);
	w->cold = NULL;
}

static bool any_outstanding(const struct worker *w)
{
	const struct worker_ring *ring;

	for_each_ring (w, ring)
		if (ring->outstanding)
			return true;
	return false;
}

static void stop_rings(struct worker *w, const struct device_state *next, uint32_t drain_ms)
{
	uint64_t deadline = clock_ns() + (uint64_t)drain_ms * NS_PER_MS;

	for (uint32_t i = 0; i < DEVICE_VRINGS_MAX; i++) {
		if (!ring_must_stop(w, i, next))
			continue;
		drain(w, w->rings[i], deadline);
		w->divert_due |= w->rings[i]->outstanding > 0;
		abandon(w, w->rings[i]);
		drop_cold(w, w->rings[i]);
		ring_stop(w, w->rings[i]);
	}
	/* A late thread must not write to pages that the guest uses again. So the memory is
	 * diverted as soon as no other request uses it, which is when the last ring of a device
	 * that is reset stops. */
	if (w->divert_due && !w->cold && !any_outstanding(w)) {
		guest_memory_divert(&w->memory);
		w->divert_due = false;
	}
}

/* The next request object, from *at on, that is off the loop and loses memory; NULL if there is
 * none. */
static struct request *next_loser(struct worker *w, uint32_t *at)
{
	while (*at < w->requests_used) {
		struct request *r = &w->requests[(*at)++];

		if (is_off_the_loop(r) && request_loses_memory(r, &w->memory))
			return r;
	}
	return NULL;
}

static bool any_loser(struct worker *w)
{
	uint32_t at = 0;

	return next_loser(w, &at);
}

/*
 * Some guest memory is retired. Requests off the loop that point to lost memory get time to end,
 * and are then answered while that memory is still mapped; the other requests continue in the
 * memory that has replaced the retired memory.
 */
static void leave_retired_memory(struct worker *w, uint32_t drain_ms)
{
	uint64_t deadline = clock_ns() + (uint64_t)drain_ms * NS_PER_MS;
	struct worker_ring *ring;
	struct request *r;
	uint32_t at = 0;

	if (!w->memory.retired_count)
		return;
	deferred_finish(w, lock_wait_cancel_lost(&w->lock_waiters, &w->memory));
	if (w->cold && request_loses_memory(w->cold, &w->memory)) {
		requests_finish(w, w->cold, -EIO);
		w->cold = NULL;
	}
	while (any_loser(w) && wait_for_completions(w, deadline))
		continue;
	while ((r = next_loser(w, &at)))
		abandon_request(w, r);
	for_each_ring (w, ring)
		if (ring->runs && ring->vring.pending)
			ring_publish(w, ring);
	guest_memory_redirect(&w->memory);
}

int64_t worker_adopt(struct worker *w, uint32_t drain_ms)
{
	struct device_state *next = w->next_state;
	int err = device_state_read(w->device, next);

	if (err)
		return err;
	if (next->layout != DEVICE_STATE_LAYOUT || next->region_count > DEVICE_REGIONS_MAX)
		return -EINVAL;
	reclaim_quiescent(&w->fs.reclaim);
	stop_rings(w, next, drain_ms);
	memcpy(w->adopted, next, sizeof(*next));
	err = guest_memory_update(&w->memory, next->regions, next->region_count);
	leave_retired_memory(w, drain_ms);
	for (uint32_t i = 0; i < DEVICE_VRINGS_MAX; i++)
		ring_adopt(w, i);
	deferred_reap_memory(w);
	reclaim_offline(&w->fs.reclaim);
	return err ? err : (int64_t)next->generation;
}

uint32_t worker_generation(const struct worker *w)
{
	return w->adopted->generation;
}
