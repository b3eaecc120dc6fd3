/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/csrc/loop/ring.h"

#include "transport/csrc/page.h"
#include "worker/csrc/loop/records.h"
#include "worker/csrc/request/intent.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static void add_own(struct worker *w, struct worker_ring *ring)
{
	uint32_t at = w->own_ring_count++;

	for (; at > 0 && w->own_rings[at - 1]->vring.index > ring->vring.index; at--)
		w->own_rings[at] = w->own_rings[at - 1];
	w->own_rings[at] = ring;
}

static struct worker_ring *ring_of(struct worker *w, uint32_t index)
{
	struct worker_ring *ring = w->rings[index];

	if (ring)
		return ring;
	ring = calloc(1, sizeof(*ring));
	if (!ring)
		return NULL;
	ring->vring.index = index;
	w->rings[index] = ring;
	add_own(w, ring);
	return ring;
}

static void unmap_frontend_inflight(struct worker_ring *ring)
{
	if (ring->frontend_inflight)
		munmap(ring->frontend_inflight, ring->frontend_inflight_len);
	ring->frontend_inflight = NULL;
}

/* The record must not shrink: a record that is truncated while it is mapped would kill this worker
 * (SIGBUS). */
static bool is_sealed(int fd, uint64_t end)
{
	int seals = fcntl(fd, F_GET_SEALS);
	struct stat st;

	return seals >= 0 && seals & F_SEAL_SHRINK && !fstat(fd, &st) &&
	       (uint64_t)st.st_size >= end;
}

/* The in-flight record that the front-end gave, or else our own. NULL if the front-end's record
 * cannot be mapped. */
static struct inflight_region *find_inflight(struct worker *w, struct worker_ring *ring)
{
	const struct device_vring *device = &ring->device;
	uint64_t slack = device->inflight_offset % PAGE;
	uint64_t len = inflight_region_bytes(device->size) + slack;
	void *base;

	unmap_frontend_inflight(ring);
	if (device->inflight_fd < 0)
		return record_inflight(record_of(w->records, ring->vring.index));
	if (slack % 8 || !is_sealed(device->inflight_fd, device->inflight_offset - slack + len))
		return NULL;
	base = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, device->inflight_fd,
		    (off_t)(device->inflight_offset - slack));
	if (base == MAP_FAILED)
		return NULL;
	ring->frontend_inflight = base;
	ring->frontend_inflight_len = len;
	return (void *)((uint8_t *)base + slack);
}

/* Start the ring; chains that a dead worker had taken come first. Return: NULL, or the reason of a
 * failure. */
static const char *attach(struct worker *w, struct worker_ring *ring)
{
	struct ring_record *record = record_of(w->records, ring->vring.index);
	struct inflight_region *inflight;

	if (record->start != ring->device.start) {
		record_clear(record_of(w->records, ring->vring.index));
		record->start = ring->device.start;
	}
	inflight = find_inflight(w, ring);
	if (!inflight)
		return "the in-flight record cannot be mapped";
	free(ring->replay);
	ring->replay = malloc(ring->vring.size * sizeof(*ring->replay));
	if (!ring->replay)
		return "out of memory";
	ring->intents = record_intents(record);
	ring->life++;
	ring->replay_count = vring_attach(&ring->vring, inflight, ring->replay);
	ring->replay_next = 0;
	return NULL;
}

void ring_adopt(struct worker *w, uint32_t index)
{
	const struct device_vring *next = &w->adopted->vrings[index];
	struct worker_ring *ring;
	bool fresh;

	if (next->worker != w->fs.slot)
		return;
	if (!next->running) {
		/* The record of a ring that never ran is left untouched: then it takes no
		 * memory. */
		if (next->start && record_of(w->records, index)->start)
			record_clear(record_of(w->records, index));
		if (w->rings[index])
			w->rings[index]->device = *next;
		return;
	}
	ring = ring_of(w, index);
	if (!ring)
		return;
	fresh = !ring->runs && ring->device.start != next->start;
	ring->device = *next;
	ring->call_blocks = !(fcntl(next->call_fd, F_GETFL) & O_NONBLOCK);
	if (!ring->runs && !fresh)
		return; /* the ring broke and was not started again */
	ring->runs = false;
	ring->error = NULL;
	if (vring_map(&ring->vring, next, &w->memory, w->adopted->features) < 0)
		ring->error =
			"its addresses are not in guest memory, or its size is not a power of 2";
	else if (fresh)
		ring->error = attach(w, ring);
	ring->runs = !ring->error;
	if (ring->error) {
		ring->life++;		/* requests off the loop have no ring to reply to */
		ring->device.start = 0; /* try again with the next state */
	}
}

bool ring_must_stop(const struct worker *w, uint32_t index, const struct device_state *next)
{
	const struct worker_ring *ring = w->rings[index];
	const struct device_vring *device = &next->vrings[index];

	if (!ring || !ring->runs)
		return false;
	return !device->running || device->start != ring->device.start ||
	       device->worker != w->fs.slot || device->size != ring->device.size;
}

void ring_stop(struct worker *w, struct worker_ring *ring)
{
	ring->runs = false;
	ring->life++;
	ring->replay_count = ring->replay_next = 0;
	ring->device.start = 0;
	if (ring->frontend_inflight)
		memset(ring->vring.inflight, 0, inflight_region_bytes(ring->vring.size));
	unmap_frontend_inflight(ring);
	record_clear(record_of(w->records, ring->vring.index));
}

/* Writing to a full eventfd that blocks would hold up the worker. A full eventfd need not be
 * written: its reader has a signal to read already. */
static void signal_eventfd(int fd, bool blocks)
{
	struct pollfd room = {.fd = fd, .events = POLLOUT};

	if (!blocks || (poll(&room, 1, 0) == 1 && room.revents & POLLOUT))
		(void)!write(fd, &(uint64_t){1}, sizeof(uint64_t));
}

void ring_break(struct worker_ring *ring, const char *reason)
{
	ring->runs = false;
	ring->error = reason;
	ring->broken_unreported = true;
	if (ring->device.err_fd >= 0)
		signal_eventfd(ring->device.err_fd, true);
}

bool ring_has_work(const struct worker_ring *ring)
{
	return ring->replay_next < ring->replay_count || vring_available(&ring->vring);
}

int ring_next(struct worker *w, struct worker_ring *ring, struct request *r)
{
	bool replayed = ring->replay_next < ring->replay_count;
	int got;

	r->ring = ring;
	r->queue = ring->vring.index;
	r->ring_life = ring->life;
	if (replayed)
		r->chain.head = ring->replay[ring->replay_next++];
	got = replayed ? vring_repop(&ring->vring, &w->memory, &r->chain)
		       : vring_pop(&ring->vring, &w->memory, &r->chain);
	r->from_dead = replayed;
	return got;
}

void ring_publish(struct worker *w, struct worker_ring *ring)
{
	struct vring_counter *counter = &w->fs.table->vrings[ring->vring.index];
	bool any = ring->vring.pending;

	counter->batches += any;
	if (!vring_publish(&ring->vring) || ring->device.call_fd < 0)
		return;
	counter->calls++;
	signal_eventfd(ring->device.call_fd, ring->call_blocks);
}

int32_t ring_find_broken(const struct worker *w)
{
	const struct worker_ring *ring;

	for_each_ring (w, ring)
		if (ring->broken_unreported)
			return (int32_t)ring->vring.index;
	return -1;
}
