/* SPDX-License-Identifier: Apache-2.0 */
/*
 * THEORY
 *
 * A request that finds its worker asleep costs a kick (the guest leaves to the VMM), a wake-up and
 * a context switch: tens of microseconds. One that finds it polling costs a cache miss. But a
 * polling worker takes a CPU that the VM may need more. So a worker polls only while that pays:
 *
 * - It keeps a running mean of how long its rings stay empty (idle_gap_ns). Only where that is
 *   below GAP_WORTH_NS does it poll at all, for twice as long as that, at least BUDGET_NS: a driver
 *   that has to be woken for each reply is back after such a time, more or less.
 * - Polling that found nothing twice in a row pauses; each further miss doubles the pause, up to
 *   PAUSE_MAX_NS; polling that found something ends that. So an idle VM costs nothing after a few
 *   misses, and one late request does not stop the polling of a busy one.
 * - Between looks the CPU is offered to whoever waits for it (sched_yield). It is often the driver,
 *   woken by our last reply: polling in its way would find nothing. Getting the CPU back from it
 *   costs less than being woken.
 * - If somebody else takes it for longer than AWAY_NS, none of our own threads: no polling for
 *   AWAY_PAUSE_NS, unless the driver is back sooner when we poll (polled_gap_ns against
 *   slept_gap_ns; every TRIAL_NS one gap is slept through, to know). Then it is the driver that
 *   shares our CPU, and that gains by it; one who computes keeps it longer than it would take to
 *   wake us.
 * - With one CPU the guest cannot run while we poll: never.
 *
 * `--poll-us N` is a fixed budget instead, the CPU is offered all the same; 0 never polls.
 *
 * Sleeping: ask every ring for kicks, look once more (vring_enable_kicks has the barrier), then
 * poll(2) on kicks, the thread pool, direct reads, and Python's control fd.
 */
#include "worker/csrc/loop/poll.h"

#include "transport/csrc/clock.h"
#include "transport/csrc/cpu_relax.h"
#include "worker/csrc/loop/closing.h"
#include "worker/csrc/loop/direct_io.h"
#include "worker/csrc/loop/offload.h"
#include "worker/csrc/loop/ring.h"
#include "worker/csrc/loop/worker_config.h"

#include <poll.h>
#include <sched.h>
#include <unistd.h>

enum {
	BUDGET_NS = 50 * 1000,
	GAP_WORTH_NS = 150 * 1000,
	GAP_CAP_NS = 1000 * 1000,
	PAUSE_MIN_NS = 1000 * 1000,
	PAUSE_MAX_NS = 256 * 1000 * 1000,
	AWAY_NS = 20 * 1000,
	AWAY_PAUSE_NS = 20 * 1000 * 1000,
	TRIAL_NS = 20 * 1000 * 1000, /* sleep now and then, to see what polling is good for */
	LOOKS_PER_YIELD = 32,	     /* looks at the rings before others may have the CPU */
	UNKICKED_MS = 1,	     /* a ring without a kick eventfd is looked at this often */
	RECLAIM_MS = 10,	     /* retired fds wait for another worker's quiescent point */
};

void poll_init(struct worker *w, int32_t poll_us)
{
	cpu_set_t cpus;

	w->poll_us = poll_us;
	if (poll_us == POLL_AUTO && !sched_getaffinity(0, sizeof(cpus), &cpus) &&
	    CPU_COUNT(&cpus) < 2)
		w->poll_us = 0;
	w->idle_gap_ns = w->polled_gap_ns = GAP_CAP_NS;
	w->slept_gap_ns = 0; /* until it is known, who takes the CPU stops polling */
}

/* While every request object is off the loop, only a completion helps. */
static bool may_serve(const struct worker *w, const struct worker_ring *ring)
{
	return w->free_requests && ring_has_work(ring);
}

static bool anything(const struct worker *w)
{
	const struct worker_ring *ring;

	for_each_ring (w, ring)
		if (ring->runs && may_serve(w, ring))
			return true;
	return offload_has_completed(w->offload) || direct_io_has_completed(w->direct_io) ||
	       device_state_generation(w->device) != w->adopted->generation;
}

/* The driver is back sooner when we poll. */
static bool polling_pays(const struct worker *w)
{
	return w->polled_gap_ns < w->slept_gap_ns;
}

static uint64_t budget(const struct worker *w)
{
	if (w->poll_us != POLL_AUTO)
		return (uint64_t)w->poll_us * 1000;
	if (w->idle_gap_ns > GAP_WORTH_NS || w->fs.now_ns < w->no_spin_until_ns ||
	    (polling_pays(w) && w->fs.now_ns - w->slept_at_ns > TRIAL_NS))
		return 0;
	return w->idle_gap_ns * 2 > BUDGET_NS ? w->idle_gap_ns * 2 : BUDGET_NS;
}

static void missed(struct worker *w)
{
	w->no_spin_until_ns = w->fs.now_ns + w->poll_pause_ns;
	if (!w->poll_pause_ns)
		w->poll_pause_ns = PAUSE_MIN_NS;
	else if (w->poll_pause_ns < PAUSE_MAX_NS)
		w->poll_pause_ns *= 2;
}

static bool look_often(const struct worker *w)
{
	for (int i = 0; i < LOOKS_PER_YIELD; i++) {
		if (anything(w))
			return true;
		cpu_relax();
	}
	return false;
}

/* Offer the CPU. Return: true if somebody who is not us took it. */
static bool give_way(struct worker *w)
{
	uint64_t start = clock_ns();

	sched_yield();
	w->fs.now_ns = clock_ns();
	return w->fs.now_ns - start > AWAY_NS && !offload_ran(w->offload);
}

/* Poll for so many ns, not 0. Return: true if there is work. */
static bool spin(struct worker *w, uint64_t limit)
{
	uint64_t start = w->fs.now_ns;
	bool found = look_often(w), taken = false;

	while (!found && !taken && w->fs.now_ns - start < limit) {
		taken = give_way(w) && w->poll_us == POLL_AUTO && !polling_pays(w);
		found = look_often(w);
	}
	w->fs.now_ns = clock_ns();
	if (found)
		w->poll_pause_ns = 0;
	else
		w->row->spins_ns += w->fs.now_ns - start;
	if (taken)
		w->no_spin_until_ns = w->fs.now_ns + AWAY_PAUSE_NS;
	else if (!found)
		missed(w);
	return found;
}

struct poll_set {
	struct pollfd fds[DEVICE_VRINGS_MAX + 3];
	struct worker_ring *rings[DEVICE_VRINGS_MAX + 3];
	nfds_t count;
	int timeout; /* ms */
};

static void add_fd(struct poll_set *set, int fd, struct worker_ring *ring)
{
	set->rings[set->count] = ring;
	set->fds[set->count++] = (struct pollfd){.fd = fd, .events = POLLIN};
}

static void wait_at_most(struct poll_set *set, int ms)
{
	if (set->timeout < 0 || set->timeout > ms)
		set->timeout = ms;
}

static int ms_until(const struct worker *w, uint64_t ns)
{
	return ns > w->fs.now_ns ? (int)((ns - w->fs.now_ns) / 1000000) + 1 : 0;
}

/* Ask for kicks. Return: false if a ring got work meanwhile. */
static bool arm(struct worker *w, struct poll_set *set)
{
	struct worker_ring *ring;
	bool quiet = true;

	set->count = 0;
	set->timeout = lock_wait_timeout(&w->lock_waiters, &w->fs);
	if (w->fs.reclaim.count)
		wait_at_most(set, RECLAIM_MS);
	if (w->fs.sweep_at_ns)
		wait_at_most(set, ms_until(w, w->fs.sweep_at_ns));
	add_fd(set, w->control_fd, NULL);
	add_fd(set, offload_fd(w->offload), NULL);
	add_fd(set, direct_io_fd(w->direct_io), NULL);
	for_each_ring (w, ring) {
		if (!ring->runs)
			continue;
		if (ring->device.kick_fd >= 0)
			add_fd(set, ring->device.kick_fd, ring);
		else if (set->timeout)
			set->timeout = UNKICKED_MS;
		if ((vring_enable_kicks(&ring->vring) && w->free_requests) || may_serve(w, ring))
			quiet = false;
	}
	return quiet;
}

static void disarm(struct worker *w)
{
	struct worker_ring *ring;

	for_each_ring (w, ring)
		if (ring->runs)
			vring_disable_kicks(&ring->vring);
}

/* Empty the eventfds of those who kicked. */
static void take_kicks(struct worker *w, const struct poll_set *set)
{
	uint64_t value;

	for (nfds_t i = 0; i < set->count; i++) {
		if (!set->rings[i] || !set->fds[i].revents)
			continue;
		w->fs.table->vrings[set->rings[i]->vring.index].kicks++;
		if (read(set->fds[i].fd, &value, sizeof(value)) < 0 &&
		    set->fds[i].revents & (POLLERR | POLLHUP | POLLNVAL))
			set->rings[i]->device.kick_fd = -1; /* no eventfd: look now and then */
	}
}

static void sleep_until_kicked(struct worker *w)
{
	struct poll_set set;

	closing_begin(w);
	if (w->fs.reclaim.count) { /* lent files that were repaid just now */
		reclaim_quiescent(&w->fs.reclaim);
		closing_begin(w);
	}
	direct_io_clear(w->direct_io); /* what polling has found was announced, too */
	if (arm(w, &set) && !offload_has_completed(w->offload) &&
	    !direct_io_has_completed(w->direct_io) &&
	    device_state_generation(w->device) == w->adopted->generation) {
		reclaim_offline(&w->fs.reclaim);
		w->row->sleeps++;
		if (poll(set.fds, set.count, set.timeout) > 0) {
			take_kicks(w, &set);
			w->control_ready = set.fds[0].revents;
			if (set.fds[2].revents)
				direct_io_clear(w->direct_io);
		}
		reclaim_quiescent(&w->fs.reclaim);
	}
	disarm(w);
}

static void note(uint64_t *mean, uint64_t gap)
{
	if (gap > GAP_CAP_NS)
		gap = GAP_CAP_NS;
	*mean += (gap >> 3) - (*mean >> 3);
}

/* A gap that is slept through says something about polling only if that might have ended it. */
static void note_gap(struct worker *w, uint64_t gap, bool polled, bool found)
{
	note(&w->idle_gap_ns, gap);
	if (found)
		note(&w->polled_gap_ns, gap);
	else if (!polled && gap < GAP_WORTH_NS)
		note(&w->slept_gap_ns, gap);
	if (!polled)
		w->slept_at_ns = w->fs.now_ns;
}

void poll_wait(struct worker *w)
{
	uint64_t idle_since = w->fs.now_ns = clock_ns();
	uint64_t limit = budget(w);
	bool found = limit && spin(w, limit);

	if (!found) {
		sleep_until_kicked(w);
		w->fs.now_ns = clock_ns();
	}
	note_gap(w, w->fs.now_ns - idle_since, limit, found);
}

bool poll_control(struct worker *w)
{
	struct pollfd control = {.fd = w->control_fd, .events = POLLIN};

	return poll(&control, 1, 0) > 0;
}
