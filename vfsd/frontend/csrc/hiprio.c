/* SPDX-License-Identifier: Apache-2.0 */
#include "frontend/csrc/hiprio.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* FORGET and INTERRUPT have the same size. */
struct message {
	struct fuse_in_header header;
	struct fuse_forget_in args;
};

enum {
	MESSAGE_BYTES = sizeof(struct message),
};
_Static_assert(sizeof(struct fuse_forget_in) == sizeof(struct fuse_interrupt_in), "");
_Static_assert((int)MESSAGE_BYTES <= (int)HIPRIO_BUFFER_BYTES, "");

struct hiprio {
	pthread_mutex_t lock;
	struct driver_ring ring;
	uint8_t *buffers;
	int call_fd;
	int stop_fd;
	uint32_t free_count;
	uint32_t *free; /* buffers that are not with the device */
};

int hiprio_create(const struct hiprio_config *config, struct hiprio **ret)
{
	struct hiprio *h = calloc(1, sizeof(*h));
	uint32_t size = config->ring.size;
	int err;

	if (!h)
		return -ENOMEM;
	err = driver_ring_init(&h->ring, &config->ring);
	h->free = err ? NULL : calloc(size, sizeof(*h->free));
	if (!h->free) {
		driver_ring_deinit(&h->ring);
		free(h);
		return err ? err : -ENOMEM;
	}
	pthread_mutex_init(&h->lock, NULL);
	h->buffers = config->ring.memory.addr + config->buffers;
	h->call_fd = config->call_fd;
	h->stop_fd = config->stop_fd;
	while (h->free_count < size) {
		h->free[h->free_count] = h->free_count;
		h->free_count++;
	}
	driver_ring_disable_calls(&h->ring);
	*ret = h;
	return 0;
}

void hiprio_destroy(struct hiprio *h)
{
	driver_ring_deinit(&h->ring);
	pthread_mutex_destroy(&h->lock);
	free(h->free);
	free(h);
}

const char *hiprio_reason(const struct hiprio *h)
{
	return h->ring.reason;
}

static int take_used(struct hiprio *h)
{
	struct driver_used used;
	int taken;

	while ((taken = driver_ring_take(&h->ring, &used)) == 1)
		h->free[h->free_count++] = used.token;
	return taken;
}

/* Sleep until the device has taken a message. The device does so without waiting for us. */
static int wait_for_room(struct hiprio *h)
{
	struct pollfd fds[] = {{h->call_fd, POLLIN, 0}, {h->stop_fd, POLLIN, 0}};
	uint64_t count;

	driver_ring_kick(&h->ring);
	if (!driver_ring_enable_calls(&h->ring)) {
		if (poll(fds, 2, -1) < 0 && errno != EINTR)
			return HIPRIO_STOPPED;
		if (fds[1].revents)
			return HIPRIO_STOPPED;
		(void)!read(h->call_fd, &count, sizeof(count));
	}
	driver_ring_disable_calls(&h->ring);
	return 0;
}

static int add(struct hiprio *h, const struct message *message)
{
	struct driver_segment segment = {.len = MESSAGE_BYTES};
	struct driver_chain chain = {.segments = &segment, .readable = 1};
	int err = take_used(h);

	while (!err && !h->free_count) {
		err = wait_for_room(h);
		if (!err)
			err = take_used(h);
	}
	if (err)
		return err;
	chain.token = h->free[--h->free_count];
	segment.addr = h->buffers + (size_t)chain.token * HIPRIO_BUFFER_BYTES;
	memcpy(segment.addr, message, MESSAGE_BYTES);
	return driver_ring_add(&h->ring, &chain);
}

static int add_one(struct hiprio *h, const struct fuse_in_header *in, const void *args)
{
	struct message message = {.header = *in};

	memcpy(&message.args, args, sizeof(message.args));
	return add(h, &message);
}

/* The number of entries. The field lies in guest memory: return no more than the request has room
 * for. */
static size_t batch_count(const struct fuse_in_header *in, const struct fuse_batch_forget_in *batch)
{
	size_t head = sizeof(*in) + sizeof(*batch);
	size_t room = in->len < head ? 0 : (in->len - head) / sizeof(struct fuse_forget_one);
	uint32_t count = __atomic_load_n(&batch->count, __ATOMIC_RELAXED);

	return count < room ? count : room;
}

static int add_batch(struct hiprio *h, const struct fuse_in_header *in, const void *args)
{
	const struct fuse_batch_forget_in *batch = args;
	const struct fuse_forget_one *one = (const void *)(batch + 1);
	size_t count = batch_count(in, batch);
	int err = 0;

	for (size_t i = 0; i < count && !err; i++) {
		struct message message = {
			.header =
				{
					.len = MESSAGE_BYTES,
					.opcode = FUSE_FORGET,
					.unique = in->unique,
					.nodeid = one[i].nodeid,
				},
			.args.nlookup = one[i].nlookup,
		};

		err = add(h, &message);
	}
	return err;
}

int hiprio_send(struct hiprio *h, const struct fuse_in_header *in, const void *args)
{
	int err;

	pthread_mutex_lock(&h->lock);
	if (h->ring.reason)
		err = DRIVER_RING_BROKEN;
	else if (in->opcode == FUSE_BATCH_FORGET)
		err = add_batch(h, in, args);
	else
		err = add_one(h, in, args);
	driver_ring_kick(&h->ring);
	pthread_mutex_unlock(&h->lock);
	return err;
}
