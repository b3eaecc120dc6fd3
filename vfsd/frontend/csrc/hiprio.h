/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The hiprio queue of a virtio-fs device, driver side: what must not wait behind requests. Every
 * bridge thread sends on it, under a lock; nobody waits for an answer, since there are none.
 */
#ifndef VFSD_HIPRIO_H
#define VFSD_HIPRIO_H

#include "transport/csrc/types.h"
#include "transport/csrc/fuse_newer.h"
#include "frontend/csrc/driver_ring.h"

enum {
	HIPRIO_BUFFER_BYTES = 64, /* one message in guest memory: 48 bytes are used */
	HIPRIO_STOPPED = -1001,
};

struct hiprio_config {
	struct driver_ring_config ring;
	uint64_t buffers; /* offset in guest memory: HIPRIO_BUFFER_BYTES for each descriptor */
	int call_fd;
	int stop_fd;
};

struct hiprio;

/* Return: 0 or -errno. */
int hiprio_create(const struct hiprio_config *config, struct hiprio **ret) must_check;
void hiprio_destroy(struct hiprio *h);

/*
 * Send a request read from /dev/fuse: FORGET and INTERRUPT as they are, BATCH_FORGET as so many
 * FORGETs, which is what Linux' driver sends. `in`: the caller's copy of its header, with the true
 * length of the request; `args`: the rest, in guest memory, with room for a FORGET's.
 * Return: 0; HIPRIO_STOPPED; DRIVER_RING_BROKEN (hiprio_reason() says why).
 */
int hiprio_send(struct hiprio *h, const struct fuse_in_header *in, const void *args) must_check;

/* Why the ring broke; NULL if it did not. */
const char *hiprio_reason(const struct hiprio *h);

#endif
