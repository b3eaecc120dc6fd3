/* SPDX-License-Identifier: Apache-2.0 */
#include "frontend/csrc/request_layout.h"

#include <errno.h>

enum reply_kind {
	REPLY_FIXED,  /* `reply` bytes of small arguments */
	REPLY_READ,   /* pages for fuse_read_in.size bytes */
	REPLY_XATTR,  /* fuse_getxattr_in.size bytes, or the size if that is 0 */
	REPLY_TARGET, /* a page for READLINK */
	REPLY_IOCTL,  /* small arguments and fuse_ioctl_in.out_size in pages */
};

/* The shape of a request, as Linux' client describes it to its transport. */
struct request_shape {
	uint16_t reply; /* bytes of small arguments in the reply */
	uint16_t pages; /* bytes of argument before the data in pages; 0: no such data */
	uint8_t kind;	/* enum reply_kind */
	bool known;
};

enum {
	ENTRY = sizeof(struct fuse_entry_out),
	ATTR = sizeof(struct fuse_attr_out),
	OPEN = sizeof(struct fuse_open_out),
	XATTR_SIZE_MAX = 65536,
};

#define SHAPE(bytes, ...)                                      \
	{                                                      \
		.known = true, .reply = (bytes), ##__VA_ARGS__ \
	}
static const struct request_shape SHAPES[FUSE_OPCODE_MAX] = {
	[FUSE_LOOKUP] = SHAPE(ENTRY),
	[FUSE_GETATTR] = SHAPE(ATTR),
	[FUSE_SETATTR] = SHAPE(ATTR),
	[FUSE_READLINK] = SHAPE(0, .kind = REPLY_TARGET),
	[FUSE_SYMLINK] = SHAPE(ENTRY),
	[FUSE_MKNOD] = SHAPE(ENTRY),
	[FUSE_MKDIR] = SHAPE(ENTRY),
	[FUSE_UNLINK] = SHAPE(0),
	[FUSE_RMDIR] = SHAPE(0),
	[FUSE_RENAME] = SHAPE(0),
	[FUSE_RENAME2] = SHAPE(0),
	[FUSE_LINK] = SHAPE(ENTRY),
	[FUSE_OPEN] = SHAPE(OPEN),
	[FUSE_OPENDIR] = SHAPE(OPEN),
	[FUSE_READ] = SHAPE(0, .kind = REPLY_READ),
	[FUSE_READDIR] = SHAPE(0, .kind = REPLY_READ),
	[FUSE_READDIRPLUS] = SHAPE(0, .kind = REPLY_READ),
	[FUSE_WRITE] = SHAPE(sizeof(struct fuse_write_out), .pages = sizeof(struct fuse_write_in)),
	[FUSE_STATFS] = SHAPE(sizeof(struct fuse_statfs_out)),
	[FUSE_RELEASE] = SHAPE(0),
	[FUSE_RELEASEDIR] = SHAPE(0),
	[FUSE_FSYNC] = SHAPE(0),
	[FUSE_FSYNCDIR] = SHAPE(0),
	[FUSE_SYNCFS] = SHAPE(0),
	[FUSE_FLUSH] = SHAPE(0),
	[FUSE_SETXATTR] = SHAPE(0),
	[FUSE_GETXATTR] = SHAPE(sizeof(struct fuse_getxattr_out), .kind = REPLY_XATTR),
	[FUSE_LISTXATTR] = SHAPE(sizeof(struct fuse_getxattr_out), .kind = REPLY_XATTR),
	[FUSE_REMOVEXATTR] = SHAPE(0),
	[FUSE_INIT] = SHAPE(sizeof(struct fuse_init_out)),
	[FUSE_GETLK] = SHAPE(sizeof(struct fuse_lk_out)),
	[FUSE_SETLK] = SHAPE(0),
	[FUSE_SETLKW] = SHAPE(0),
	[FUSE_ACCESS] = SHAPE(0),
	[FUSE_CREATE] = SHAPE(ENTRY + OPEN),
	[FUSE_TMPFILE] = SHAPE(ENTRY + OPEN),
	[FUSE_BMAP] = SHAPE(sizeof(struct fuse_bmap_out)),
	[FUSE_DESTROY] = SHAPE(0),
	[FUSE_IOCTL] = SHAPE(sizeof(struct fuse_ioctl_out), .kind = REPLY_IOCTL,
			     .pages = sizeof(struct fuse_ioctl_in)),
	[FUSE_POLL] = SHAPE(sizeof(struct fuse_poll_out)),
	[FUSE_FALLOCATE] = SHAPE(0),
	[FUSE_LSEEK] = SHAPE(sizeof(struct fuse_lseek_out)),
	[FUSE_COPY_FILE_RANGE] = SHAPE(sizeof(struct fuse_write_out)),
	[FUSE_COPY_FILE_RANGE_64] = SHAPE(sizeof(struct fuse_copy_file_range_out)),
	[FUSE_STATX] = SHAPE(sizeof(struct fuse_statx_out)),
};

/* A newer kernel may send requests that are not in the table. Every reply without file data fits a
 * page. */
static const struct request_shape UNKNOWN = {.reply = PAGE};

static uint64_t whole_pages(uint64_t bytes)
{
	return (bytes + PAGE - 1) / PAGE * PAGE;
}

void slot_layout_init(struct slot_layout *layout, uint32_t pages)
{
	uint32_t xattr_pages = XATTR_SIZE_MAX / PAGE + 1; /* one page more for the name */
	uint64_t table = whole_pages((uint64_t)(pages + LAYOUT_HEADS) * DRIVER_RING_DESC_BYTES);
	uint64_t request_data = table + PAGE;

	layout->pages = pages;
	layout->data_bytes = (pages > xattr_pages ? pages : xattr_pages) * PAGE;
	layout->request = request_data - LAYOUT_REQUEST_HEAD;
	layout->reply_data = request_data + layout->data_bytes + PAGE;
	layout->bytes = layout->reply_data + layout->data_bytes;
}

uint32_t slot_layout_request_room(const struct slot_layout *layout)
{
	return layout->data_bytes + LAYOUT_REQUEST_HEAD;
}

/* Return: 0, or -E2BIG. */
static int add_segment(const struct slot_layout *layout, struct request_chain *c,
		       struct driver_segment segment, bool writable)
{
	uint32_t count = c->readable + c->writable;

	if (count >= layout->pages + LAYOUT_HEADS || count >= LAYOUT_SEGMENTS_MAX)
		return -E2BIG;
	c->segments[count] = segment;
	if (writable)
		c->writable++;
	else
		c->readable++;
	return 0;
}

/* Cut `data` at page boundaries. Return: 0, or -E2BIG. */
static int add_pages(const struct slot_layout *layout, struct request_chain *c,
		     struct driver_segment data, bool writable)
{
	uint8_t *at = data.addr;
	uint32_t left = data.len;
	int err = 0;

	while (left && !err) {
		uint32_t here = PAGE - (uint32_t)((uintptr_t)at & (PAGE - 1));

		if (here > left)
			here = left;
		err = add_segment(layout, c, (struct driver_segment){at, here}, writable);
		at += here;
		left -= here;
	}
	return err;
}

/* A header, small arguments if there are any, and data in pages, in this order. */
struct parts {
	uint8_t *at;
	uint32_t header;
	uint32_t small;
	uint32_t data;
};

/* Return: 0, or -E2BIG. */
static int add_parts(const struct slot_layout *layout, struct request_chain *c,
		     const struct parts *p, bool writable)
{
	uint8_t *small = p->at + p->header;
	struct driver_segment data = {small + p->small, p->data};
	int err = add_segment(layout, c, (struct driver_segment){p->at, p->header}, writable);

	if (!err && p->small)
		err = add_segment(layout, c, (struct driver_segment){small, p->small}, writable);
	return err ? err : add_pages(layout, c, data, writable);
}

static int add_request(const struct slot_layout *layout, const struct request_shape *shape,
		       uint8_t *slot, const struct fuse_in_header *in, struct request_chain *c)
{
	uint32_t args = in->len - (uint32_t)sizeof(*in);
	uint32_t small = shape->pages && shape->pages < args ? shape->pages : args;
	struct parts parts = {slot + layout->request, sizeof(*in), small, args - small};

	if (in->len < sizeof(*in) || in->len > slot_layout_request_room(layout))
		return -E2BIG;
	return add_parts(layout, c, &parts, false);
}

/* Load a word of guest memory once, since it may have changed by the next load. */
static uint32_t load32(const uint32_t *at)
{
	return __atomic_load_n(at, __ATOMIC_RELAXED);
}

/* The number of data bytes that a reply may have besides `small` bytes of arguments. `arg`: the
 * request's arguments. */
static uint32_t reply_data(const struct request_shape *shape, const void *arg, uint32_t *small)
{
	uint32_t size;

	switch (shape->kind) {
	case REPLY_READ:
		return load32(&((const struct fuse_read_in *)arg)->size);
	case REPLY_XATTR: /* not in pages: Linux sends xattrs through a small argument */
		size = load32(&((const struct fuse_getxattr_in *)arg)->size);
		*small = size ? size : shape->reply;
		return 0;
	case REPLY_TARGET:
		return PAGE - 1;
	case REPLY_IOCTL:
		return load32(&((const struct fuse_ioctl_in *)arg)->out_size);
	default:
		return 0;
	}
}

static int add_reply(const struct slot_layout *layout, const struct request_shape *shape,
		     uint8_t *slot, struct request_chain *c)
{
	const void *arg = slot + layout->request + sizeof(struct fuse_in_header);
	struct parts parts = {.header = sizeof(struct fuse_out_header), .small = shape->reply};

	parts.data = reply_data(shape, arg, &parts.small);
	if (parts.small > layout->data_bytes || parts.data > layout->data_bytes)
		return -E2BIG;
	/* Without pages, small arguments may be large: then they lie where the data would be. */
	parts.at = slot + layout->reply_data - parts.header - (parts.data ? parts.small : 0);
	c->reply = parts.at;
	c->reply_room = parts.header + parts.small + parts.data;
	return add_parts(layout, c, &parts, true);
}

int request_chain_build(const struct slot_layout *layout, uint8_t *slot,
			const struct fuse_in_header *in, struct request_chain *ret)
{
	const struct request_shape *shape = in->opcode < FUSE_OPCODE_MAX && SHAPES[in->opcode].known
						    ? &SHAPES[in->opcode]
						    : &UNKNOWN;
	int err;

	ret->readable = ret->writable = 0;
	err = add_request(layout, shape, slot, in, ret);
	return err ? err : add_reply(layout, shape, slot, ret);
}
