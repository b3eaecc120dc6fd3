/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The hiprio queue of a virtio-fs device, driver side: for messages that must not wait behind
 * requests. Every bridge thread sends on it, under a lock. These messages have no answers to wait
 * for.
 */
#ifndef VFSD_HIPRIO_H
#define VFSD_HIPRIO_H

#include "transport/csrc/types.h"
#include "transport/csrc/fuse_newer.h"
#include "frontend/csrc/driver_ring.h"

enum {
	HIPRIO_BUFFER_BYTES = 64, /* room for one message in guest memory: 48 bytes are used */
	HIPRIO_STOPPED = -1001,
};

struct hiprio_config {
	struct driver_ring_config ring;
	uint64_t buffers; /* offset in guest memory of HIPRIO_BUFFER_BYTES per descriptor */
	int call_fd;
	int stop_fd;
};

struct hiprio;

/* Return: 0 or -errno. */
int hiprio_create(const struct hiprio_config *config, struct hiprio **ret) must_check;
void hiprio_destroy(struct hiprio *h);

/*
 * Send a request that was read from /dev/fuse: FORGET and INTERRUPT unchanged, BATCH_FORGET as one
 * FORGET for each of its entries, as Linux' driver does. `in`: the caller's copy of the header,
 * with the true length of the request; `args`: the rest, in guest memory, with room for the
 * arguments of a FORGET.
 * Return: 0; HIPRIO_STOPPED; DRIVER_RING_BROKEN (hiprio_reason() says why).
 */
int hiprio_send(struct hiprio *h, const struct fuse_in_header *in, const void *args) must_check;

/* Why the ring is broken; NULL if it is not. */
const char *hiprio_reason(const struct hiprio *h);

#endif
