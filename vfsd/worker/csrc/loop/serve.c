/* SPDX-License-Identifier: Apache-2.0 */
/*
 * THEORY
 *
 * Actors. One worker process serves some rings. Its main thread runs this loop; a few threads run
 * requests that block (offload.c), the kernel reads with O_DIRECT (direct_io.c); Python runs
 * between two calls of serve(). Nobody else pushes to these rings.
 *
 * One turn: for each ring take up to BATCH chains, serve each in place and push it. The used index
 * is published after every PUBLISH of them while the driver is awake. One that sleeps costs a
 * system call and an interrupt to wake: that is done when what is left to serve takes about as
 * long as it needs to come back with more, or at the end. Then push what was completed off the
 * loop; close what may be closed, if it is much; if there was nothing, wait (poll.c). hiprio comes
 * first in every turn.
 *
 * A request object is taken from a free list, filled from its chain, and returned to the list when
 * its reply is pushed. One that leaves the loop keeps its object; with none left the rings wait.
 *
 * Death. From pop to publish a head is marked in flight (vring.c). The worker that takes over
 * (attach) runs every in-flight head again, unless the head's intent (intent.h) knows the result;
 * it also tells the op when it may have happened already (request.replayed). A request that was in
 * flight at two deaths is answered with EIO.
 *
 * Quiescence (reclaim.h). Between two turns this worker holds no pointer into a shared table; off
 * the loop (Python, poll(2)) it is offline. Requests off the loop pin their open files.
 */
#include "worker/csrc/loop/serve.h"

#include "transport/csrc/bad_chain.h"
#include "transport/csrc/clock.h"
#include "worker/csrc/fs/inode_trim.h"
#include "worker/csrc/fs/label.h"
#include "worker/csrc/fs/ops.h"
#include "worker/csrc/loop/poll.h"
#include "worker/csrc/loop/ring.h"
#include "worker/csrc/loop/sigbus.h"
#include "worker/csrc/loop/worker.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum {
	BATCH = 64,
	PUBLISH = 8,		  /* replies worth to be published before the end of a turn */
	WAKE_NS = 20 * 1000,	  /* from the call of a driver that sleeps to its next request */
	BATCH_NS = 100 * 1000,	  /* a turn ends earlier when requests are slow */
	CONTROL_NS = 1000 * 1000, /* look at control_fd this often while busy */
	UNSHARED_NS = 1000 * 1000 * 1000, /* between two reports of memory that is not shared */
	CLOSE_NS = 1000 * 1000,		  /* close what was retired this often while busy … */
	CLOSE_FROM = 256,		  /* … or when so much was … */
	CLOSE_PART = 4,			  /* … or one in so many of the fds that there can be */
};

/* ---- request objects ---- */

static void give_request(struct worker *w, struct request *r)
{
	r->ring = NULL;
	r->next = w->free_requests;
	w->free_requests = r;
}

/* One that was never used takes no memory: so it is free only when no other is. */
static void give_unused_request(struct worker *w)
{
	if (w->requests_used < REQUESTS_MAX)
		give_request(w, &w->requests[w->requests_used++]);
}

static struct request *take_request(struct worker *w)
{
	struct request *r = w->free_requests;

	if (!r)
		return NULL;
	w->free_requests = r->next;
	if (!w->free_requests)
		give_unused_request(w);
	return r;
}

/* ---- the end of a request ---- */

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

/* The request is over: reply, push, forget. Its ring may have been stopped meanwhile. */
static void finish(struct worker *w, struct request *r, int result)
{
	struct worker_ring *ring = r->ring;
	uint32_t len = 0;

	if (!r->abandoned && r->ring_life == ring->life) {
		if (result != OUTCOME_NO_REPLY)
			len = request_reply(r, result);
		vring_push(&ring->vring, r->chain.head, len);
		count_op(w, r, result);
	}
	give_request(w, r);
}

/* ---- requests off the loop ---- */

static void hold(struct worker *w, struct request *r)
{
	r->held = true;
	if (r->file)
		file_pin(w->fs.files, w->pins, w->fs.slot, r->file);
	if (r->file2)
		file_pin(w->fs.files, w->pins, w->fs.slot, r->file2);
	if (r->holds_fd)
		__atomic_add_fetch(&w->row->loose_fds, 1, __ATOMIC_ACQ_REL);
}

static void let_go(struct worker *w, struct request *r)
{
	r->held = false;
	if (r->file)
		file_unpin(w->fs.files, w->pins, w->fs.slot, r->file);
	if (r->file2)
		file_unpin(w->fs.files, w->pins, w->fs.slot, r->file2);
	if (r->holds_fd)
		__atomic_sub_fetch(&w->row->loose_fds, 1, __ATOMIC_ACQ_REL);
}

/* Return: OUTCOME_PENDING, or what the request came to here and now. */
static int take_off(struct worker *w, struct request *r, int outcome)
{
	int result;

	if (outcome == OUTCOME_WAIT)
		return lock_wait_begin(w, r);
	hold(w, r);
	if (outcome == OUTCOME_DEFER_READ && direct_io_take(w->direct_io, r, r->offset))
		return OUTCOME_PENDING;
	result = offload_submit(w->offload, r);
	if (result != OUTCOME_PENDING)
		let_go(w, r);
	return result;
}

static bool leaves_the_loop(int outcome)
{
	return outcome < OUTCOME_PENDING;
}

/* The op is to go on off the loop. Where there is no thread it does so here; what was to be run
 * again after a wait is. Return: as take_off. */
static __attribute__((noinline)) int go_on(struct worker *w, struct request *r, int outcome)
{
	do {
		int result = take_off(w, r, outcome);

		if (result || !r->run_again)
			return result;
		r->run_again = r->holds_fd = false;
		outcome = ops_run(&w->fs, r);
	} while (leaves_the_loop(outcome));
	return outcome;
}

/* ---- one request, from header to reply ---- */

/* Return: OUTCOME_PENDING, or the result. Inline for the sake of serve_request(), not of
 * run_again(). */
static inline __attribute__((always_inline)) int run_op(struct worker *w, struct request *r)
{
	int outcome = ops_run(&w->fs, r);

	return __builtin_expect(leaves_the_loop(outcome), 0) ? go_on(w, r, outcome) : outcome;
}

/* The op has returned. */
static inline void finish_or_wait(struct worker *w, struct request *r, int result)
{
	if (result != OUTCOME_PENDING) {
		finish(w, r, result);
		return;
	}
	r->offloaded = true;
	r->ring->outstanding++;
	w->row->offloaded++;
}

/* Its thread has waited for what the op needs. */
static __attribute__((noinline, cold)) void run_again(struct worker *w, struct request *r)
{
	r->run_again = r->holds_fd = false;
	finish_or_wait(w, r, run_op(w, r));
}

static void finish_offloaded(struct worker *w, struct request *r)
{
	if (r->held)
		let_go(w, r);
	if (!r->abandoned)
		r->ring->outstanding--;
	r->offloaded = false;
	if (r->run_again && !r->result && !r->abandoned && r->ring_life == r->ring->life)
		run_again(w, r);
	else
		finish(w, r, r->result);
}

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
		finish(w, r, ops_error(fuse_op(r->in.opcode), result));
		return;
	}
	if (r->from_dead && intent_settles(r, &result)) {
		label_forsake(&w->fs, r);
		finish(w, r, result);
		return;
	}
	if (fuse_op(r->in.opcode)->flags & OP_COLD) {
		park_cold(w, r);
		return;
	}
	finish_or_wait(w, r, run_op(w, r));
}

/* ---- rings ---- */

static void break_ring(struct worker *w, struct worker_ring *ring)
{
	ring_break(ring, ring->vring.reason);
	w->any_broken = true;
}

/* Chains that nobody could walk are counted, and now and then reported. */
static void note_unshared(struct worker *w, uint64_t gpa)
{
	w->unshared_count++;
	w->unshared_gpa = gpa;
	if (!w->unshared_at_ns || w->fs.now_ns - w->unshared_at_ns >= UNSHARED_NS)
		w->unshared_untold = true;
}

/* A chain that is malformed, or names memory that the VMM does not share with us: EIO, where the
 * header of the reply can be reached. Apart, so that no other chain pays for it. */
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
	give_request(w, r);
}

/* Before the end of a turn that began at `start` and has served so many. */
static bool publish_is_due(const struct worker *w, const struct worker_ring *ring, uint64_t start,
			   uint32_t served)
{
	if (ring->vring.pending < PUBLISH)
		return false;
	if (!vring_driver_sleeps(&ring->vring))
		return true;
	return vring_available(&ring->vring) * (w->fs.now_ns - start) <= WAKE_NS * (uint64_t)served;
}

/* Serve up to BATCH chains. Return: how many. */
static uint32_t serve_ring(struct worker *w, struct worker_ring *ring)
{
	struct vring_counter *counter = &w->fs.table->vrings[ring->vring.index];
	uint64_t start = w->fs.now_ns;
	uint32_t served = 0;

	while (served < BATCH && !w->cold && w->fs.now_ns - start < BATCH_NS &&
	       ring_has_work(ring)) {
		struct request *r = take_request(w);
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
		give_request(w, r);
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

static uint32_t serve_rings(struct worker *w)
{
	struct worker_ring *ring;
	uint32_t served = 0;

	w->fs.now_ns = clock_ns();
	for_each_ring (w, ring)
		if (ring->runs && !w->cold)
			served += serve_ring(w, ring);
	return served;
}

/* Requests off the loop name guest memory: what is retired stays mapped until they are back. */
static void reap_memory(struct worker *w)
{
	if (!offload_outstanding(w->offload) && !direct_io_outstanding(w->direct_io) &&
	    !w->lock_waiters.count && !w->cold)
		guest_memory_reap(&w->memory);
}

/* Push these, which were off the loop. Return: how many. */
static uint32_t finish_all(struct worker *w, struct request *r)
{
	struct worker_ring *ring;
	uint32_t count = 0;

	if (!r)
		return 0;
	while (r) {
		struct request *next = r->next;

		finish_offloaded(w, r);
		count++;
		r = next;
	}
	for_each_ring (w, ring)
		if (ring->runs && ring->vring.pending)
			ring_publish(w, ring);
	reap_memory(w);
	return count;
}

/* A short read may be the end of the file, or of what was cached where the kernel went through the
 * page cache all the same. */
static bool needs_thread(const struct request *r)
{
	uint64_t wanted = 0;

	if (r->result <= 0)
		return r->result == -EAGAIN || r->result == -EOPNOTSUPP;
	for (uint32_t i = 0; i < r->data_out_count; i++)
		wanted += r->data_out[i].iov_len;
	return (uint64_t)r->result < wanted;
}

/* Those that are over; what the kernel would have to wait for goes on in a thread. */
static struct request *direct_completed(struct worker *w)
{
	struct request *r = direct_io_completed(w->direct_io), *done = NULL, *next;

	for (; r; r = next) {
		next = r->next;
		if (r->result == -EOPNOTSUPP)
			__atomic_or_fetch(&r->file->flags, FILE_NO_NOWAIT, __ATOMIC_RELAXED);
		if (needs_thread(r) && !r->abandoned) {
			int result = offload_submit(w->offload, r);

			/* Its thread may have set r->result by now. */
			if (result == OUTCOME_PENDING)
				continue;
			r->result = result;
		}
		r->next = done;
		done = r;
	}
	return done;
}

/* Push what came back. Return: how many. */
static uint32_t serve_completions(struct worker *w)
{
	return finish_all(w, offload_completed(w->offload)) + finish_all(w, direct_completed(w)) +
	       finish_all(w, lock_wait_retry(w));
}

void worker_close_retired(struct worker *w)
{
	w->closed_at_ns = w->fs.now_ns;
	if (!reclaim_collect(&w->fs.reclaim))
		return;
	offload_close(w->offload, w->fs.reclaim.close, w->fs.reclaim.close_count);
	w->fs.reclaim.close_count = 0;
}

/* A thread costs more to wake than most fds to close: so many at a time. What a lender owes is
 * nothing by then if its inode is forgotten. */
static void close_some_retired(struct worker *w)
{
	uint64_t waiting = w->fs.reclaim.count + w->fs.reclaim.close_count;

	if (waiting >= CLOSE_FROM || waiting > w->fs.fds_max / CLOSE_PART ||
	    w->fs.now_ns - w->closed_at_ns >= CLOSE_NS)
		worker_close_retired(w);
}

/* ---- the loop ---- */

static int32_t find_broken(const struct worker *w)
{
	const struct worker_ring *ring;

	for_each_ring (w, ring)
		if (ring->broken_unreported)
			return (int32_t)ring->vring.index;
	return -1;
}

/* One that Python has not logged yet. */
static bool has_refusal(const struct worker *w)
{
	return w->fs.refusal.is_noted && !w->fs.refusal.is_taken;
}

static bool control_wanted(struct worker *w)
{
	if (w->control_ready || has_refusal(w) ||
	    device_state_generation(w->device) != w->adopted->generation)
		return true;
	if (w->fs.now_ns - w->control_at_ns < CONTROL_NS)
		return false;
	w->control_at_ns = w->fs.now_ns;
	return poll_control(w);
}

static int reason_to_return(struct worker *w)
{
	if (w->cold)
		return SERVE_COLD;
	if (w->any_broken && find_broken(w) >= 0)
		return SERVE_BROKEN;
	if (w->unshared_untold)
		return SERVE_UNSHARED;
	return control_wanted(w) ? SERVE_CONTROL : 0;
}

int serve(struct worker *w)
{
	int reason;

	reclaim_quiescent(&w->fs.reclaim);
	w->control_at_ns = 0;
	for (;;) {
		uint32_t done = serve_rings(w) + serve_completions(w);

		reason = reason_to_return(w);
		if (reason)
			break;
		reclaim_quiescent(&w->fs.reclaim);
		inode_trim(&w->fs);
		close_some_retired(w);
		if (!done)
			poll_wait(w);
	}
	w->control_ready = false;
	reclaim_offline(&w->fs.reclaim);
	return reason;
}

/* ---- what Python calls between two serve() ---- */

static bool allocate(struct worker *w)
{
	w->adopted = calloc(1, sizeof(*w->adopted));
	w->next_state = calloc(1, sizeof(*w->next_state));
	w->requests = calloc(REQUESTS_MAX, sizeof(*w->requests));
	w->payload = malloc(REQUEST_PAYLOAD_MAX + 1);
	w->cold_arg = malloc(REQUEST_ARG_MAX + REQUEST_PAYLOAD_MAX);
	return w->adopted && w->next_state && w->requests && w->payload && w->cold_arg;
}

struct worker *worker_create(const struct worker_config *config)
{
	struct worker *w = calloc(1, sizeof(*w));

	if (!w)
		return NULL;
	if (fs_init(&w->fs, &config->fs) || !allocate(w)) {
		free(w);
		return NULL;
	}
	w->control_fd = config->control_fd;
	w->device = config->device;
	w->row = &w->fs.table->rows[w->fs.slot];
	w->records = config->records;
	w->offload = offload_create(config->threads, w->row);
	if (config->threads && config->fs.policy.allow_direct_io)
		w->direct_io = direct_io_create();
	w->pins = file_pins_create(w->fs.files);
	if (!w->offload || !w->pins)
		return NULL;
	give_unused_request(w);
	poll_init(w, config->poll_us);
	sigbus_guard(&w->memory);
	return w;
}

/* Push what comes back until the deadline. Return: false when that is over. */
static bool wait_for_completions(struct worker *w, uint64_t deadline_ns)
{
	struct pollfd completed[] = {
		{.fd = offload_fd(w->offload), .events = POLLIN},
		{.fd = direct_io_fd(w->direct_io), .events = POLLIN},
	};
	uint64_t now = clock_ns();

	if (serve_completions(w)) /* some are refused without a wake-up */
		return true;
	if (now >= deadline_ns)
		return false;
	poll(completed, 2, (int)((deadline_ns - now) / 1000000) + 1);
	direct_io_clear(w->direct_io);
	return true;
}

/* The requests of a ring that is to stop get their time to end. */
static void drain(struct worker *w, struct worker_ring *ring, uint64_t deadline_ns)
{
	while (ring->replay_next < ring->replay_count && ring->runs && !w->cold &&
	       clock_ns() < deadline_ns)
		if (!serve_ring(w, ring)) /* every request object is with the threads */
			serve_completions(w);
	finish_all(w, lock_wait_cancel(w, ring));
	while (ring->outstanding && wait_for_completions(w, deadline_ns))
		continue;
}

/* What is still with a thread is answered here; its thread ends into nothing, or never begins. */
static void abandon_request(struct worker *w, struct request *r)
{
	struct worker_ring *ring = r->ring;

	offload_abandon(w->offload, r);
	ring->outstanding--;
	if (r->ring_life == ring->life) /* else it broke, and started again */
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
	give_request(w, w->cold);
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
	uint64_t deadline = clock_ns() + (uint64_t)drain_ms * 1000000;

	for (uint32_t i = 0; i < DEVICE_VRINGS_MAX; i++) {
		if (!ring_must_stop(w, i, next))
			continue;
		drain(w, w->rings[i], deadline);
		w->divert_due |= w->rings[i]->outstanding > 0;
		abandon(w, w->rings[i]);
		drop_cold(w, w->rings[i]);
		ring_stop(w, w->rings[i]);
	}
	/* A thread that comes late must not write to pages that the guest has in use again: as soon
	 * as nobody else uses them, which is when the last ring of a device that is reset stops. */
	if (w->divert_due && !w->cold && !any_outstanding(w)) {
		guest_memory_divert(&w->memory);
		w->divert_due = false;
	}
}

/* The next one, from *at on, that is off the loop and loses memory; NULL if there is none. */
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
 * Some guest memory is retired. The requests off the loop that name some of it which is lost get
 * their time to end and are then answered, while it is still mapped; the others go on in the
 * memory that has taken its place.
 */
static void leave_retired_memory(struct worker *w, uint32_t drain_ms)
{
	uint64_t deadline = clock_ns() + (uint64_t)drain_ms * 1000000;
	struct worker_ring *ring;
	struct request *r;
	uint32_t at = 0;

	if (!w->memory.retired_count)
		return;
	finish_all(w, lock_wait_cancel_lost(w));
	if (w->cold && request_loses_memory(w->cold, &w->memory)) {
		finish(w, w->cold, -EIO);
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
	reap_memory(w);
	reclaim_offline(&w->fs.reclaim);
	return err ? err : (int64_t)next->generation;
}

uint32_t worker_generation(const struct worker *w)
{
	return w->adopted->generation;
}

static const struct worker_ring *ring_at(const struct worker *w, uint32_t index)
{
	return index < DEVICE_VRINGS_MAX ? w->rings[index] : NULL;
}

int32_t worker_ring_base(const struct worker *w, uint32_t index)
{
	const struct worker_ring *ring = ring_at(w, index);

	return ring && ring->vring.size ? ring->vring.last_avail : -EINVAL;
}

const char *worker_ring_error(const struct worker *w, uint32_t index)
{
	const struct worker_ring *ring = ring_at(w, index);

	return ring ? ring->error : NULL;
}

int32_t worker_broken_ring(struct worker *w)
{
	int32_t index = find_broken(w);

	if (index >= 0)
		w->rings[index]->broken_unreported = false;
	w->any_broken = find_broken(w) >= 0;
	return index;
}

bool worker_take_refusal(struct worker *w, struct refusal *ret)
{
	if (!has_refusal(w))
		return false;
	w->fs.refusal.is_taken = true;
	*ret = w->fs.refusal;
	return true;
}

uint64_t worker_unshared(struct worker *w, uint64_t *ret_gpa)
{
	uint64_t count = w->unshared_count;

	w->unshared_untold = false;
	w->unshared_count = 0;
	w->unshared_at_ns = w->fs.now_ns;
	*ret_gpa = w->unshared_gpa;
	return count;
}

uint32_t worker_cold_request(struct worker *w, const uint8_t **ret_arg, uint32_t *ret_len)
{
	if (!w->cold)
		return 0;
	*ret_arg = w->cold_arg;
	*ret_len = w->cold_len;
	return w->cold->in.opcode;
}

void worker_cold_reply(struct worker *w, int32_t error, const uint8_t *reply, uint32_t len)
{
	struct request *r = w->cold;
	struct worker_ring *ring;

	if (!r)
		return;
	w->cold = NULL;
	ring = r->ring;
	if (len > sizeof(r->small))
		error = -EIO;
	else if (len)
		memcpy(r->small, reply, len);
	finish(w, r, error ? error : (int)len);
	ring_publish(w, ring);
}

void worker_session_end(struct worker *w)
{
	fs_session_end(&w->fs);
}

void worker_session_begin(struct worker *w, uint32_t minor, uint64_t flags, uint64_t offered)
{
	fs_session_begin(&w->fs, minor, flags, offered);
}

bool worker_idle_work(struct worker *w)
{
	reclaim_quiescent(&w->fs.reclaim);
	worker_close_retired(w);
	reclaim_offline(&w->fs.reclaim);
	return !w->fs.reclaim.count;
}
