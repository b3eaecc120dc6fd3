/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Carries requests from /dev/fuse to one request queue of a virtio-fs device, and replies back. The
 * theory is at the top of fuse_bridge.c.
 */
#ifndef VFSD_FUSE_BRIDGE_H
#define VFSD_FUSE_BRIDGE_H

#include "transport/csrc/types.h"
#include "frontend/csrc/driver_ring.h"
#include "frontend/csrc/hiprio.h"

enum bridge_limit {
	BRIDGE_PAGES_MAX = 256, /* data pages of one request */
	BRIDGE_HEADS = 4,	/* descriptors of a chain besides those of the pages */
	BRIDGE_SPIN_AUTO = -1,
	BRIDGE_OPCODES = 64, /* requests are counted for each opcode below */
};

/* Why bridge_run() returned. */
enum bridge_end {
	BRIDGE_UNMOUNTED = 1, /* by umount, or because the kernel's connection was aborted */
	BRIDGE_STOPPED,	      /* stop_fd became readable */
	BRIDGE_BROKEN,	      /* the back-end broke the protocol: `reason`, `opcode` */
	BRIDGE_FAILED,	      /* a system call failed: `reason`, `error` */
};

struct bridge_config {
	struct driver_ring_config ring;
	bool indirect;	       /* INDIRECT_DESC was negotiated */
	uint32_t pages;	       /* data pages of one request */
	uint32_t slots;	       /* the largest number of requests under way */
	uint64_t slots_offset; /* in guest memory: bridge_slot_bytes() for each slot */
	int fuse_fd;	       /* non-blocking */
	int call_fd;
	int stop_fd;	 /* readable: stop */
	int ready_fd;	 /* written when FUSE_INIT is answered */
	int32_t spin_us; /* how long to look for replies before sleeping, or BRIDGE_SPIN_AUTO */
	struct hiprio *hiprio;
};

struct bridge_slot;
struct slot_layout;

struct bridge {
	struct bridge_config config;
	struct driver_ring ring;
	struct slot_layout *layout;
	struct bridge_slot *slots;
	uint32_t *free; /* a stack, so that the warmest slot is used next */
	uint32_t free_count;
	int epoll_fd;
	uint64_t requests; /* number sent so far */
	uint64_t sent[BRIDGE_OPCODES];
	uint64_t reply_ns; /* mean time until a reply came, over waits for a reply */
	const char *reason;
	uint32_t opcode;
	int error;
};

/* Guest memory for one slot, in bytes. */
uint64_t bridge_slot_bytes(uint32_t pages);

/* Return: 0 or -errno. */
int bridge_init(struct bridge *b, const struct bridge_config *config) must_check;
void bridge_deinit(struct bridge *b);

/* Carry requests until an end comes. Return: enum bridge_end. */
int bridge_run(struct bridge *b);

/* After bridge_run(): report the end of the session to the back-end (FUSE_DESTROY). Return: false
 * if the ring has no room. */
bool bridge_end_session(struct bridge *b);

/* After bridge_run(): drop replies for up to `timeout_ms`. Return: no request is left that will get
 * a reply. */
bool bridge_is_drained(struct bridge *b, int timeout_ms);

#endif
