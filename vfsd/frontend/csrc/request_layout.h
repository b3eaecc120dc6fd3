/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
/*
 * Where a FUSE request and its reply lie in guest memory, and how they are cut into descriptors, in
 * the way of Linux' virtio-fs driver (fs/fuse/virtio_fs.c).
 *
 * One slot of guest memory, all parts page-aligned:
 *
 *     indirect table | request head page, data pages | reply head page, data pages
 *
 * The bytes before the data lie at the end of the head page. So one read(2) puts the data of a
 * WRITE at the start of a page, and one write(2) takes any reply, although both are several
 * descriptors to the device.
 */
#ifndef VFSD_REQUEST_LAYOUT_H
#define VFSD_REQUEST_LAYOUT_H

#include "transport/csrc/types.h"
#include "transport/csrc/fuse_newer.h"
#include "transport/csrc/page.h"
#include "frontend/csrc/driver_ring.h"

enum {
	LAYOUT_PAGES_MAX = 256, /* Linux' own limit for a request (fs.fuse.max_pages_limit) */
	LAYOUT_HEADS = 4,	/* descriptors besides those of the pages */
	LAYOUT_SEGMENTS_MAX = LAYOUT_PAGES_MAX + LAYOUT_HEADS,
	/* in_header and write_in: the bytes before the data of a WRITE */
	LAYOUT_REQUEST_HEAD = sizeof(struct fuse_in_header) + sizeof(struct fuse_write_in),
};

/* Places in a slot, as offsets. */
struct slot_layout {
	uint32_t pages;	     /* the largest number of data pages of one request */
	uint32_t data_bytes; /* room for data, either way; more than `pages` for a long xattr */
	uint64_t request;    /* where read(2) puts a request */
	uint64_t reply_data;
	uint64_t bytes;
};

/* A request that is cut into descriptors. */
struct request_chain {
	struct driver_segment segments[LAYOUT_SEGMENTS_MAX];
	uint32_t readable;
	uint32_t writable;
	uint8_t *reply;	     /* fuse_out_header of the reply; the rest follows */
	uint32_t reply_room; /* bytes, header included */
};

void slot_layout_init(struct slot_layout *layout, uint32_t pages);

/* The number of bytes that read(2) on /dev/fuse may put at a slot's `request`. */
uint32_t slot_layout_request_room(const struct slot_layout *layout);

/*
 * Cut the request in `slot` into descriptors. `in`: the caller's copy of the header, with the true
 * length of the request, since the device may change the header in the slot.
 * Return: 0, or -E2BIG if there is no room for the request.
 */
int request_chain_build(const struct slot_layout *layout, uint8_t *slot,
			const struct fuse_in_header *in, struct request_chain *ret) must_check;

#endif
