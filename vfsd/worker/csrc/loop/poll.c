/* SPDX-License-Identifier: Apache-2.0 */
/*
 * THEORY
 *
 * A request that finds its worker asleep costs a kick (an exit from the guest to the VMM), a
 * wake-up and a context switch: tens of microseconds. A request that finds its worker polling costs
 * a cache miss. But a polling worker takes a CPU that the VM may need more. So a worker polls only
 * while polling pays:
 *
 * - The worker keeps a running mean of how long its rings stay empty (idle_gap_ns). The worker
 *   polls only while that mean is at most GAP_WORTH_NS, and then for twice the mean, but at least
 *   BUDGET_NS: a driver that has to be woken for each reply sends its next request after about that
 *   time.
 * - After two polls in a row that found nothing, polling pauses; each further miss doubles the
 *   pause, up to PAUSE_MAX_NS; a poll that finds something ends the series of misses. So an idle VM
 *   costs nothing after a few misses, and a single late request does not stop the polling for a
 *   busy VM.
 * - Between looks at the rings the worker offers the CPU to any thread that waits for it
 *   (sched_yield). That thread is often the driver, woken by our last reply, and while we keep the
 *   driver off the CPU, polling finds nothing. Getting the CPU back from the driver costs less than
 *   being woken.
 * - If a thread that is not our own takes the CPU for longer than AWAY_NS, the worker does not poll
 *   for AWAY_PAUSE_NS, unless the driver is back sooner when we poll (polled_gap_ns is less than
 *   slept_gap_ns; to know, the worker sleeps through one gap every TRIAL_NS). If the driver is back
 *   sooner, the driver is the thread that shares our CPU, and polling helps. A thread that computes
 *   keeps the CPU for longer than a wake-up takes.
 * - With only one CPU the guest cannot run while we poll: the worker never polls.
 *
 * `--poll-us N` sets a fixed budget instead of all this; the worker still offers the CPU. With 0
 * the worker never polls.
 *
 * To sleep, the worker asks every ring for kicks, looks at the rings once more (vring_enable_kicks
 * has the barrier), then calls poll(2) on the kick eventfds, the thread pool, direct reads, and
 * Python's control fd.
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
	TRIAL_NS = 20 * 1000 * 1000, /* sleep now and then, to see whether polling pays */
	LOOKS_PER_YIELD = 32,	     /* looks at the rings before the CPU is offered to others */
	UNKICKED_MS = 1,	     /* how often to look at a ring without a kick eventfd */
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
	w->slept_gap_ns = 0; /* until it is known, any thread that takes the CPU stops polling */
}

/* While every request object is off the loop, no ring can be served: only a completion helps. */
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

/* Offer the CPU. Return: true if a thread that is not ours took the CPU for longer than AWAY_NS. */
static bool give_way(struct worker *w)
{
	uint64_t start = clock_ns();

	sched_yield();
	w->fs.now_ns = clock_ns();
	return w->fs.now_ns - start > AWAY_NS && !offload_ran(w->offload);
}

/* Poll for at most `limit` ns, which is not 0. Return: true if there is work. */
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
	return ns > w->fs.now_ns ? (int)((ns - w->fs.now_ns) / NS_PER_MS) + 1 : 0;
}

/* Ask every ring for kicks. Return: false if a ring already has work. */
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

/* Empty the kick eventfds that are readable. */
static void take_kicks(struct worker *w, const struct poll_set *set)
{
	uint64_t value;

	for (nfds_t i = 0; i < set->count; i++) {
		if (!set->rings[i] || !set->fds[i].revents)
			continue;
		w->fs.table->vrings[set->rings[i]->vring.index].kicks++;
		if (read(set->fds[i].fd, &value, sizeof(value)) < 0 &&
		    set->fds[i].revents & (POLLERR | POLLHUP | POLLNVAL))
			set->rings[i]->device.kick_fd = -1; /* not an eventfd: UNKICKED_MS */
	}
}

static void sleep_until_kicked(struct worker *w)
{
	struct poll_set set;

	closing_begin(w);
	if (w->fs.reclaim.count) { /* retired fds, as of lent files that were repaid just now */
		reclaim_quiescent(&w->fs.reclaim);
		closing_begin(w);
	}
	/* The eventfd also announced completions that polling has fetched. */
	direct_io_clear(w->direct_io);
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

/* A gap that was slept through says something about polling only if the gap was short enough for
 * polling to have ended it. */
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
