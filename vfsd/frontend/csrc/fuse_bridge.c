/* SPDX-License-Identifier: Apache-2.0 */
/*
 * THEORY
 *
 * Actors. The kernel's FUSE client hands out requests on any channel (clone) of its connection and
 * wants each reply on the channel that took the request. One thread runs one bridge: one channel
 * and one request queue. The device is another process and is not trusted. All bridges share the
 * hiprio queue.
 *
 * A request. read(2) puts a request into a free slot of guest memory; request_layout.c cuts it into
 * descriptors; the chain is added, and after a batch of chains the device is kicked once. The reply
 * lies in the same slot, from where write(2) takes it. Nothing is copied in between and nothing is
 * allocated.
 *
 * Invariants.
 * - A slot is free, or the device has its request. So a request is read only when a slot is free
 *   and the ring has room for the longest chain; until then the request waits in the kernel, where
 *   it can still be interrupted.
 * - A reply is passed on only if the length in its header equals the length in the used element,
 *   this length fits the room that was offered, and `unique` is the request's. The header may
 *   change after these checks; the kernel checks it again and then refuses it.
 * - The content of a slot is read once, and only the copy is checked: the device maps all of guest
 *   memory and may change a slot at any time, also before its request is offered. So the header is
 *   copied as soon as read(2) has put it there, its length must be what read(2) returned, and only
 *   the copy decides where the request ends and how it is cut. `struct bridge_slot` keeps what is
 *   needed for the reply. Other fields may be forged: each is loaded once and bounded.
 *
 * Waiting. bridge_wait.c says how a bridge waits for requests and replies.
 *
 * The end. ENODEV from /dev/fuse: no process uses the mount any more, and none waits for a reply.
 * stop_fd: the caller closes the channels, which ends every request with an error. So a bridge does
 * not wait for replies at its end; guest memory is free again when the caller has stopped the
 * vrings (GET_VRING_BASE).
 *
 * Not done: a request that the device has stays there until the device answers. FUSE_INTERRUPT is
 * passed on to shorten that (Linux' driver drops it); what it does is the back-end's choice. And
 * when `slots` requests wait for each other (SETLKW), the queue is full, as it would be in a guest.
 */
#include "frontend/csrc/fuse_bridge.h"

#include "transport/csrc/clock.h"
#include "frontend/csrc/bridge_wait.h"
#include "frontend/csrc/init_request.h"
#include "frontend/csrc/request_layout.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

_Static_assert((int)BRIDGE_PAGES_MAX == (int)LAYOUT_PAGES_MAX, "");
_Static_assert((int)BRIDGE_HEADS == (int)LAYOUT_HEADS, "");

struct bridge_slot {
	uint64_t unique;
	uint32_t opcode;
	uint32_t reply_room;
	uint8_t *reply;
};

uint64_t bridge_slot_bytes(uint32_t pages)
{
	struct slot_layout layout;

	slot_layout_init(&layout, pages);
	return layout.bytes;
}

static int allocate(struct bridge *b)
{
	b->layout = calloc(1, sizeof(*b->layout));
	b->slots = calloc(b->config.slots, sizeof(*b->slots));
	b->free = calloc(b->config.slots, sizeof(*b->free));
	return b->layout && b->slots && b->free ? 0 : -ENOMEM;
}

int bridge_init(struct bridge *b, const struct bridge_config *config)
{
	uint64_t end;
	int err;

	memset(b, 0, sizeof(*b));
	b->config = *config;
	b->epoll_fd = -1;
	if (!config->pages || config->pages > LAYOUT_PAGES_MAX || !config->slots)
		return -EINVAL;
	if (config->pages + LAYOUT_HEADS > config->ring.size)
		return -EINVAL; /* virtio 1.2 §2.7.5.1: no chain is longer than the queue */
	err = driver_ring_init(&b->ring, &config->ring);
	if (!err)
		err = allocate(b);
	if (!err) {
		slot_layout_init(b->layout, config->pages);
		end = config->slots_offset + config->slots * b->layout->bytes;
		err = end > config->ring.memory.size ? -EINVAL : bridge_wait_init(b);
	}
	if (err) {
		bridge_deinit(b);
		return err;
	}
	while (b->free_count < config->slots) {
		b->free[b->free_count] = config->slots - 1 - b->free_count;
		b->free_count++;
	}
	return 0;
}

void bridge_deinit(struct bridge *b)
{
	driver_ring_deinit(&b->ring);
	free(b->layout);
	free(b->slots);
	free(b->free);
	bridge_wait_deinit(b);
	b->layout = NULL;
	b->slots = NULL;
	b->free = NULL;
}

static uint8_t *slot_addr(const struct bridge *b, uint32_t slot)
{
	return b->config.ring.memory.addr + b->config.slots_offset + slot * b->layout->bytes;
}

static struct fuse_in_header *slot_request(const struct bridge *b, uint32_t slot)
{
	return (void *)(slot_addr(b, slot) + b->layout->request);
}

/* Copy a header out of guest memory; no byte of the header is loaded a second time. */
static void copy_once(void *to, const void *from, size_t len)
{
	memcpy(to, from, len);
	__atomic_signal_fence(__ATOMIC_SEQ_CST);
}

static int broken(struct bridge *b, uint32_t opcode, const char *reason)
{
	b->reason = reason;
	b->opcode = opcode;
	return BRIDGE_BROKEN;
}

static int failed(struct bridge *b, const char *reason)
{
	b->error = errno;
	b->reason = reason;
	return BRIDGE_FAILED;
}

/* Write a reply to the kernel. Return: 0 or enum bridge_end. */
static int write_reply(struct bridge *b, const void *reply, uint32_t len, uint32_t opcode)
{
	if (write(b->config.fuse_fd, reply, len) == (ssize_t)len)
		return 0;
	switch (errno) {
	case ENOENT: /* the request was given up */
	case ENODEV: /* the mount was given up: the next read reports it */
		return 0;
	case EINVAL:
		return broken(b, opcode, "the kernel refuses the reply");
	default:
		return failed(b, "cannot write to /dev/fuse");
	}
}

static int refuse(struct bridge *b, const struct fuse_in_header *in, int error)
{
	struct fuse_out_header out = {.len = sizeof(out), .error = -error, .unique = in->unique};

	return write_reply(b, &out, sizeof(out), in->opcode);
}

static bool ring_has_room(const struct bridge *b)
{
	uint32_t longest = b->config.indirect ? 1 : b->config.pages + LAYOUT_HEADS;

	return b->free_count && b->ring.free_count >= longest;
}

/* Offer the request in the first free slot. `in`: the copy of its header. */
static int offer(struct bridge *b, const struct fuse_in_header *in)
{
	uint32_t slot = b->free[b->free_count - 1];
	struct request_chain cut;
	struct driver_chain chain;

	if (request_chain_build(b->layout, slot_addr(b, slot), in, &cut) < 0)
		return refuse(b, in, EIO);
	if (in->opcode == FUSE_INIT)
		init_request_mask((void *)(slot_request(b, slot) + 1), in->len - sizeof(*in));
	b->slots[slot] = (struct bridge_slot){
		.unique = in->unique,
		.opcode = in->opcode,
		.reply_room = cut.reply_room,
		.reply = cut.reply,
	};
	chain = (struct driver_chain){
		.segments = cut.segments,
		.readable = cut.readable,
		.writable = cut.writable,
		.table = b->config.indirect ? slot_addr(b, slot) : NULL,
		.token = slot,
	};
	if (driver_ring_add(&b->ring, &chain) < 0)
		return refuse(b, in, EIO); /* the caller has checked ring_has_room() */
	b->free_count--;
	b->requests++;
	if (in->opcode < BRIDGE_OPCODES)
		__atomic_add_fetch(&b->sent[in->opcode], 1, __ATOMIC_RELAXED);
	return 0;
}

static int send_hiprio(struct bridge *b, const struct fuse_in_header *in, const void *args)
{
	int err;

	/* Requests that were read before go first: a FORGET must not overtake the LOOKUP that it
	 * ends. */
	driver_ring_kick(&b->ring);
	err = hiprio_send(b->config.hiprio, in, args);
	if (err == HIPRIO_STOPPED)
		return BRIDGE_STOPPED;
	return err ? broken(b, in->opcode, hiprio_reason(b->config.hiprio)) : 0;
}

static int read_error(struct bridge *b)
{
	switch (errno) {
	case ENODEV:
	case ECONNABORTED:
		return BRIDGE_UNMOUNTED;
	default:
		return failed(b, "cannot read from /dev/fuse");
	}
}

/* Take one request from the kernel. Return: 0; enum bridge_end; -EAGAIN if there is no request. */
static int read_request(struct bridge *b)
{
	struct fuse_in_header *request = slot_request(b, b->free[b->free_count - 1]);
	ssize_t len = read(b->config.fuse_fd, request, slot_layout_request_room(b->layout));
	struct fuse_in_header in;

	if (len < 0 && errno == EAGAIN)
		return -EAGAIN;
	if (len < 0 && (errno == EINTR || errno == ENOENT))
		return 0; /* ENOENT: the request was interrupted before it was read */
	if (len < 0)
		return read_error(b);
	copy_once(&in, request, sizeof(in));
	if ((size_t)len < sizeof(in) || in.len != (size_t)len)
		return broken(b, in.opcode, "a request changed before it was offered");
	switch (in.opcode) {
	case FUSE_FORGET:
	case FUSE_BATCH_FORGET:
	case FUSE_INTERRUPT:
		return send_hiprio(b, &in, request + 1);
	default:
		return offer(b, &in);
	}
}

static int take_requests(struct bridge *b, bool *more)
{
	int end = 0;

	while (!end && ring_has_room(b))
		end = read_request(b);
	driver_ring_kick(&b->ring);
	*more = end != -EAGAIN;
	return end == -EAGAIN ? 0 : end;
}

static int init_done(struct bridge *b, const struct bridge_slot *slot, uint32_t len)
{
	const char *wrong = init_reply_clamp((void *)slot->reply, len, b->config.pages);
	uint64_t one = 1;
	int end;

	if (wrong)
		return broken(b, slot->opcode, wrong);
	end = write_reply(b, slot->reply, len, slot->opcode);
	(void)!write(b->config.ready_fd, &one, sizeof(one));
	return end;
}

static int pass_reply(struct bridge *b, const struct driver_used *used)
{
	const struct bridge_slot *slot = &b->slots[used->token];
	struct fuse_out_header header;

	copy_once(&header, slot->reply, sizeof(header));
	b->free[b->free_count++] = used->token;
	if (used->len < sizeof(header) || used->len > slot->reply_room)
		return broken(b, slot->opcode, "a reply whose length is impossible");
	if (header.len != used->len)
		return broken(b, slot->opcode,
			      "a reply whose length is not that of its used element");
	if (header.unique != slot->unique)
		return broken(b, slot->opcode, "a reply to another request");
	if (slot->opcode == FUSE_INIT)
		return init_done(b, slot, used->len);
	return write_reply(b, slot->reply, used->len, slot->opcode);
}

static int pass_replies(struct bridge *b)
{
	struct driver_used used;
	int taken, end = 0;

	while (!end && (taken = driver_ring_take(&b->ring, &used))) {
		if (taken < 0)
			return broken(b, 0, b->ring.reason);
		end = pass_reply(b, &used);
	}
	return end;
}

int bridge_run(struct bridge *b)
{
	bool more = true;
	int end = 0;

	while (!end) {
		end = pass_replies(b);
		if (!end && more)
			end = take_requests(b, &more);
		if (!end)
			end = bridge_wait(b, ring_has_room(b), &more);
	}
	return end;
}

static void drop_replies(struct bridge *b)
{
	struct driver_used used;

	while (driver_ring_take(&b->ring, &used) == 1)
		b->free[b->free_count++] = used.token;
}

bool bridge_end_session(struct bridge *b)
{
	struct fuse_in_header destroy = {
		.len = sizeof(destroy),
		.opcode = FUSE_DESTROY,
		.unique = UINT64_C(1) << 62, /* the kernel counts up from 2 */
	};

	drop_replies(b);
	if (!ring_has_room(b))
		return false;
	*slot_request(b, b->free[b->free_count - 1]) = destroy;
	if (offer(b, &destroy))
		return false;
	driver_ring_kick(&b->ring);
	return true;
}

bool bridge_is_drained(struct bridge *b, int timeout_ms)
{
	uint64_t until = clock_ns() + (uint64_t)timeout_ms * NS_PER_MS;
	struct pollfd call = {b->config.call_fd, POLLIN, 0};
	uint64_t count;

	drop_replies(b);
	while (b->ring.outstanding && !b->ring.reason && clock_ns() < until) {
		if (!driver_ring_enable_calls(&b->ring) && poll(&call, 1, 10) > 0)
			(void)!read(b->config.call_fd, &count, sizeof(count));
		drop_replies(b);
	}
	return !b->ring.outstanding || b->ring.reason;
}
