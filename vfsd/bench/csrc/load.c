/* SPDX-License-Identifier: Apache-2.0 */
/*
 * THEORY
 *
 * Actors. One thread runs one load: it is the driver of one request queue and shares the hiprio
 * queue, for FORGETs, with the other loads. The device is another process and is not trusted.
 *
 * A stream has one request under way at a time, so the number of streams is the queue depth. A
 * stream repeats a program of a few requests; one pass is a cycle, and the latency of a cycle is
 * the time that a user of the file system would wait. Each step of each stream has a slot of guest
 * memory that holds its request; the descriptors are built once. From one request to the next only
 * the fields that differ are written: unique, node, handle, name, offset.
 *
 * A wrong reply is never counted: load_reply.c checks every reply, and a wrong one ends the run.
 *
 * The driver behaves like Linux' driver: segments of 4 KiB in an indirect table, replies taken
 * until there are no more, then calls enabled and the ring checked once more before sleeping.
 * Requests that follow on a batch of replies are published together, with at most one kick.
 *
 * Counting. Kicks are the kicks that we write. Calls are what the device adds to the eventfd, which
 * is read when we wake and at the end, so the number of calls is exact even if several come between
 * two reads.
 */
#include "bench/csrc/load.h"

#include "bench/csrc/load_reply.h"
#include "frontend/csrc/request_layout.h"
#include "transport/csrc/clock.h"
#include "transport/csrc/cpu_relax.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
	LOOKS_PER_CLOCK = 64,
};

struct load_chain {
	struct request_chain cut;
	uint8_t *slot;
};

static uint64_t slot_bytes(uint32_t pages)
{
	struct slot_layout layout;

	slot_layout_init(&layout, pages);
	return layout.bytes;
}

/* The last slot belongs to load_call(). */
static uint64_t slot_count(uint32_t streams)
{
	return (uint64_t)streams * LOAD_STEPS_MAX + 1;
}

uint64_t load_bytes(uint32_t pages, uint32_t streams)
{
	return slot_count(streams) * slot_bytes(pages);
}

int load_init(struct load *l, const struct load_config *config)
{
	uint64_t slots = slot_count(config->streams);
	int err;

	memset(l, 0, sizeof(*l));
	l->config = *config;
	l->random = 0x9e3779b97f4a7c15;
	if (!config->pages || config->pages > LAYOUT_PAGES_MAX ||
	    config->pages + LAYOUT_HEADS > config->ring.size)
		return -EINVAL;
	if (config->offset + load_bytes(config->pages, config->streams) > config->ring.memory.size)
		return -EINVAL;
	err = driver_ring_init(&l->ring, &config->ring);
	if (err)
		return err;
	l->layout = calloc(1, sizeof(*l->layout));
	l->chains = calloc(slots, sizeof(*l->chains));
	l->streams = calloc(config->streams + 1, sizeof(*l->streams));
	if (!l->layout || !l->chains || !l->streams) {
		load_deinit(l);
		return -ENOMEM;
	}
	slot_layout_init(l->layout, config->pages);
	for (uint64_t i = 0; i < slots; i++)
		l->chains[i].slot =
			config->ring.memory.addr + config->offset + i * l->layout->bytes;
	return 0;
}

void load_deinit(struct load *l)
{
	driver_ring_deinit(&l->ring);
	free(l->layout);
	free(l->chains);
	free(l->streams);
	l->layout = NULL;
	l->chains = NULL;
	l->streams = NULL;
}

static struct load_chain *chain_of(const struct load *l, uint32_t stream, uint32_t step)
{
	return &l->chains[stream * LOAD_STEPS_MAX + step];
}

static struct fuse_in_header *request_of(const struct load *l, const struct load_chain *chain)
{
	return (void *)(chain->slot + l->layout->request);
}

uint8_t *load_request(const struct load *l, uint32_t stream, uint32_t step)
{
	return (void *)request_of(l, chain_of(l, stream, step));
}

int load_prepare(struct load *l, uint32_t stream, uint32_t step)
{
	struct load_chain *chain = chain_of(l, stream, step);

	const struct fuse_in_header in = *request_of(l, chain);

	return request_chain_build(l->layout, chain->slot, &in, &chain->cut);
}

/* Offer the request of a chain. Return: 0 or LOAD_BROKEN. */
static int offer(struct load *l, struct load_chain *chain, uint32_t token)
{
	struct driver_chain cut = {
		.segments = chain->cut.segments,
		.readable = chain->cut.readable,
		.writable = chain->cut.writable,
		.table = l->config.indirect ? chain->slot : NULL,
		.token = token,
	};

	if (driver_ring_add(&l->ring, &cut) < 0)
		return load_broken(l, "the queue has no room for another request");
	l->result.requests++;
	return 0;
}

static void count_calls(struct load *l)
{
	uint64_t calls;

	if (read(l->config.call_fd, &calls, sizeof(calls)) == (ssize_t)sizeof(calls))
		l->result.calls += calls;
}

static int spin(struct load *l, uint64_t until)
{
	do {
		for (int i = 0; i < LOOKS_PER_CLOCK; i++) {
			if (driver_ring_is_used(&l->ring))
				return 0;
			cpu_relax();
		}
	} while (clock_ns() < until);
	return LOAD_SILENT;
}

static int sleep_until_called(struct load *l)
{
	struct pollfd fds[] = {{l->config.call_fd, POLLIN, 0}, {l->config.stop_fd, POLLIN, 0}};
	int count;

	if (driver_ring_enable_calls(&l->ring))
		return 0;
	count = poll(fds, 2, (int)(l->config.silence_ns / NS_PER_MS));
	driver_ring_disable_calls(&l->ring);
	if (count < 0 && errno != EINTR)
		return load_broken(l, "poll(2) fails");
	if (fds[1].revents)
		return LOAD_STOPPED;
	count_calls(l);
	return count ? 0 : LOAD_SILENT;
}

/* Wait for a reply. Return: 0 or enum load_end. After 0 there may still be no reply. */
static int wait_for_reply(struct load *l)
{
	if (driver_ring_is_used(&l->ring))
		return 0;
	return l->config.poll ? spin(l, clock_ns() + l->config.silence_ns) : sleep_until_called(l);
}

/* --- writing a request ------------------------------------------------------------------------ */

static uint64_t next_random(struct load *l)
{
	l->random ^= l->random << 13;
	l->random ^= l->random >> 7;
	l->random ^= l->random << 17;
	return l->random;
}

static void write_digits(uint8_t *at, uint32_t number)
{
	for (int i = LOAD_DIGITS - 1; i >= 0; i--) {
		at[i] = (uint8_t)('0' + number % 10);
		number /= 10;
	}
}

static uint64_t next_offset(struct load *l, struct load_stream *s, uint32_t flags)
{
	const struct load_program *p = s->program;
	uint32_t block;

	if (flags & LOAD_LIST)
		return s->listed;
	if (flags & LOAD_RANDOM)
		return next_random(l) % p->blocks * p->block;
	block = s->block;
	s->block = (block + 1) % p->blocks;
	return (uint64_t)block * p->block;
}

static void patch(struct load *l, struct load_stream *s, const struct load_step *step,
		  struct fuse_in_header *in)
{
	uint64_t *argument = (void *)(in + 1);

	in->unique = s->unique = ++l->unique;
	if (step->flags & LOAD_NODE)
		in->nodeid = s->node;
	if (step->flags & LOAD_FH)
		argument[0] = s->fh;
	if (step->flags & (LOAD_SEQUENTIAL | LOAD_RANDOM | LOAD_LIST))
		argument[1] = next_offset(l, s, step->flags);
	if (step->flags & LOAD_NAME)
		write_digits((uint8_t *)argument + step->digits, s->number);
}

static int send_step(struct load *l, uint32_t stream, uint64_t now)
{
	struct load_stream *s = &l->streams[stream];
	struct load_chain *chain = chain_of(l, stream, s->step);

	if (!s->step) {
		s->cycle_ns = now;
		s->number = s->program->names ? (uint32_t)(l->number++ % s->program->names) : 0;
	}
	patch(l, s, &s->program->steps[s->step], request_of(l, chain));
	return offer(l, chain, stream);
}

/* --- the loop --------------------------------------------------------------------------------- */

static uint32_t bucket_of(uint64_t ns)
{
	uint32_t power, bucket;

	if (ns < LOAD_SUB_BUCKETS)
		return (uint32_t)ns;
	power = 63 - (uint32_t)__builtin_clzll(ns); /* at least 4 */
	bucket = (power - 3) * LOAD_SUB_BUCKETS +
		 ((uint32_t)(ns >> (power - 4)) & (LOAD_SUB_BUCKETS - 1));
	return bucket < LOAD_BUCKETS ? bucket : LOAD_BUCKETS - 1;
}

static void end_cycle(struct load *l, struct load_stream *s, uint64_t now)
{
	const struct load_program *p = s->program;

	s->step = 0;
	if (!p->measured)
		return;
	l->result.cycles++;
	l->result.units += !(p->steps[0].flags & LOAD_LIST);
	l->result.histogram[bucket_of(now - s->cycle_ns)]++;
}

struct load_limits {
	uint64_t until_ns;
	uint64_t cycles;
	uint64_t begun;
};

static bool may_begin(struct load_limits *limits, uint64_t now)
{
	if (now >= limits->until_ns || (limits->cycles && limits->begun >= limits->cycles))
		return false;
	limits->begun++;
	return true;
}

static int take_reply(struct load *l, const struct driver_used *used, struct load_limits *limits,
		      uint64_t now)
{
	struct load_stream *s = &l->streams[used->token];
	struct load_chain *chain = chain_of(l, used->token, s->step);
	const struct fuse_in_header *in = request_of(l, chain);
	const struct fuse_out_header *out = (const void *)chain->cut.reply;
	int end = load_take_reply(l, s, in, out, used->len);

	if (end)
		return end;
	if (++s->step == s->program->count)
		end_cycle(l, s, now);
	return s->step || may_begin(limits, now) ? send_step(l, used->token, now) : 0;
}

static int take_replies(struct load *l, struct load_limits *limits)
{
	uint64_t now = clock_ns();
	struct driver_used used;
	int taken, end = 0;

	while (!end && (taken = driver_ring_take(&l->ring, &used))) {
		if (taken < 0)
			return load_broken(l, l->ring.reason);
		end = take_reply(l, &used, limits, now);
	}
	l->result.kicks += (uint64_t)driver_ring_kick(&l->ring);
	return end;
}

static int begin(struct load *l, struct load_limits *limits, uint64_t now)
{
	int end = 0;

	for (uint32_t i = 0; i < l->config.streams && !end; i++) {
		const struct load_program *program = l->streams[i].program;

		l->streams[i].step = 0;
		if (program && program->count && may_begin(limits, now))
			end = send_step(l, i, now);
	}
	l->result.kicks += (uint64_t)driver_ring_kick(&l->ring);
	return end;
}

int load_run(struct load *l, uint64_t ns, uint64_t cycles)
{
	uint64_t start = clock_ns();
	struct load_limits limits = {start + ns, cycles, 0};
	int end;

	count_calls(l);
	memset(&l->result, 0, sizeof(l->result));
	l->number = 0;
	driver_ring_disable_calls(&l->ring);
	end = begin(l, &limits, start);
	while (!end && l->ring.outstanding) {
		end = wait_for_reply(l);
		if (!end)
			end = take_replies(l, &limits);
	}
	l->result.ns = clock_ns() - start;
	count_calls(l);
	return end;
}

int load_call(struct load *l)
{
	uint32_t token = l->config.streams;
	struct load_chain *chain = chain_of(l, token, 0);
	struct fuse_in_header *in = request_of(l, chain), copy;
	struct driver_used used = {0};
	int end, taken = 0;

	in->unique = ++l->unique;
	copy = *in;
	if (request_chain_build(l->layout, chain->slot, &copy, &chain->cut) < 0)
		return -E2BIG;
	l->reply = chain->cut.reply;
	end = offer(l, chain, token);
	driver_ring_kick(&l->ring);
	while (!end && !taken) {
		end = sleep_until_called(l);
		taken = end ? 0 : driver_ring_take(&l->ring, &used);
	}
	if (taken < 0)
		end = load_broken(l, l->ring.reason);
	l->reply_len = used.len;
	return end;
}
