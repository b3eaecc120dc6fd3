/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
/*
 * Where a FUSE request and its reply lie in guest memory, and how they are cut into descriptors:
 * as Linux' virtio-fs driver does it (fs/fuse/virtio_fs.c).
 *
 * One slot of guest memory, all page-aligned:
 *
 *     indirect table | request head page, data pages | reply head page, data pages
 *
 * What goes before the data lies at the end of the head page. So a WRITE comes out of one read(2)
 * with its data at the start of a page, and any reply goes into one write(2), although both are
 * several descriptors to the device.
 */
#ifndef VFSD_REQUEST_LAYOUT_H
#define VFSD_REQUEST_LAYOUT_H

#include "transport/csrc/types.h"
#include "transport/csrc/fuse_newer.h"
#include "frontend/csrc/driver_ring.h"

enum {
	LAYOUT_PAGE = 4096,
	LAYOUT_PAGES_MAX = 256, /* Linux' own limit for a request (fs.fuse.max_pages_limit) */
	LAYOUT_HEADS = 4,	/* descriptors besides those for pages */
	LAYOUT_SEGMENTS_MAX = LAYOUT_PAGES_MAX + LAYOUT_HEADS,
	/* Of in_header and write_in: what lies before the data of a WRITE. */
	LAYOUT_REQUEST_HEAD = sizeof(struct fuse_in_header) + sizeof(struct fuse_write_in),
};

/* Places in a slot, as offsets. */
struct slot_layout {
	uint32_t pages;	     /* of data in one request, at most: what a chain has room for */
	uint32_t data_bytes; /* room for data, either way; more than `pages` for the odd xattr */
	uint64_t request;    /* where read(2) puts a request */
	uint64_t reply_data;
	uint64_t bytes;
};

/* A request cut into descriptors. */
struct request_chain {
	struct driver_segment segments[LAYOUT_SEGMENTS_MAX];
	uint32_t readable;
	uint32_t writable;
	uint8_t *reply;	     /* its fuse_out_header; the rest follows */
	uint32_t reply_room; /* bytes, header included */
};

void slot_layout_init(struct slot_layout *layout, uint32_t pages);

/* Bytes that read(2) on /dev/fuse may put at a slot's `request`. */
uint32_t slot_layout_request_room(const struct slot_layout *layout);

/*
 * Cut the request in `slot` into descriptors. `in`: the caller's copy of its header, with the true
 * length of the request; the device may change the one in the slot.
 * Return: 0, or -E2BIG if it has no room.
 */
int request_chain_build(const struct slot_layout *layout, uint8_t *slot,
			const struct fuse_in_header *in, struct request_chain *ret) must_check;

#endif
