/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
/*
 * A FUSE request on its way through a worker.
 *
 * Guest memory is read once: request_parse copies the header, the fixed argument and (except for
 * file data) everything after the argument; ops look only at these copies. File data stays in guest
 * memory, where `data_in` (WRITE) and `data_out` (READ) point to it.
 */
#ifndef VFSD_REQUEST_H
#define VFSD_REQUEST_H

#include "transport/csrc/types.h"
#include "transport/csrc/fuse_ops.h"
#include "transport/csrc/vring.h"
#include "worker/csrc/host/credentials.h"

#include <limits.h>
#include <linux/aio_abi.h>

struct fuse_session;
struct guest_memory;
struct intent;
struct open_file;
struct worker_ring;

/*
 * What an op returns: bytes of the reply (>= 0), -errno, or one of these values. An op never
 * blocks, and calls no function that blocks: when an op has to wait, its return value says what
 * for.
 */
enum op_outcome {
	OUTCOME_DEFER = INT_MIN, /* run r->run off the loop; its result is the op's result */
	OUTCOME_DEFER_READ, /* carry out a READ with O_DIRECT off the loop: the kernel reads from
			     * r->offset into r->data_out, or a thread runs r->run */
	OUTCOME_WAIT, /* wait for a lock: run the op again when the lock may have been given up */
	OUTCOME_PENDING,  /* returned only inside the loop: the request has left the loop and will
			   * come back */
	OUTCOME_NO_REPLY, /* FORGET and friends */
};

enum {
	REQUEST_ARG_MAX = 128, /* the largest fixed argument is fuse_setattr_in, 88 */
	REQUEST_PAYLOAD_MAX = 2 * 4096 + 65536 + 16384, /* names + XATTR_SIZE_MAX + extensions */
	REQUEST_SMALL_REPLY = 320,     /* statx_out 288, entry_out + open_out 144 */
	REQUEST_LARGE_REPLY = 1 << 20, /* READDIR, GETXATTR, LISTXATTR */
};

struct request {
	struct fuse_in_header in;
	uint8_t arg[REQUEST_ARG_MAX]; /* fixed argument, zero beyond what was sent */
	const char *payload; /* what follows the argument, with a '\0' after the last byte; in
			      * per-worker memory, which is used for other requests once this
			      * request leaves the loop */
	uint32_t payload_len;
	const char *name;			   /* OP_NAME, OP_NAMES: checked */
	const char *name2;			   /* OP_NAMES */
	uint32_t groups[SUPPLEMENTARY_GROUPS_MAX]; /* FUSE_EXT_GROUPS */
	uint32_t group_count;
	const uint8_t *labels; /* FUSE_SECURITY_CTX: for request_next_label; per-worker memory */
	uint32_t labels_len;
	uint32_t label_count;

	/* Small replies are built in `small`; `reply` points to `small` or to the worker's large
	 * buffer. */
	uint8_t *reply;
	uint8_t small[REQUEST_SMALL_REPLY];

	struct iovec *data_in; /* WRITE: what follows the argument, in guest memory */
	uint32_t data_in_count;
	uint64_t data_in_len;
	struct iovec *data_out; /* what follows the out header, in guest memory */
	uint32_t data_out_count;
	uint64_t data_out_len; /* room for the reply's payload, bytes */
	struct iovec out_header[sizeof(struct fuse_out_header)]; /* where the out header goes */
	uint32_t out_header_count;				 /* 0: no room for an out header */

	struct worker_ring *ring;
	uint32_t queue;	    /* the ring's index */
	uint32_t session;   /* number of the FUSE session; `unique` is unique within a session */
	uint32_t ring_life; /* ring->life when the request was taken; if that has changed, the ring
			     * no longer knows the request */
	struct intent *intent;
	uint64_t start_ns;
	bool from_dead; /* the request was in flight when a worker died */
	bool replayed;	/* from_dead, and the op may have happened already (INTENT_BEGUN) */
	bool offloaded; /* the request is, or was, with the thread pool or direct_io.c */

	struct iocb iocb; /* of direct_io.c */

	/* For the thread pool (offload.h). */
	int (*run)(struct request *r);
	uint64_t offset; /* OUTCOME_DEFER_READ */
	int result;
	struct open_file *file; /* pinned */
	int fd;
	int fd2;
	uint64_t done_bytes; /* READ, WRITE: bytes moved before the request left the loop */
	struct open_file *file2;
	bool appends;	     /* WRITE: append to the file, wherever its end is */
	bool kill_suidgid;   /* the request's thread must not have CAP_FSETID */
	uint32_t kill_group; /* the group in which the thread acts: credentials_set_id */
	bool held;	     /* file and file2 are pinned */
	bool holds_fd;	     /* `fd` belongs to the request; its thread closes `fd` */
	bool run_again;	     /* the request's thread only waited: the op is run again */
	uint8_t waits;	     /* how often the request has waited (lease.c) */
	bool abandoned;	     /* the request's ring was stopped: nothing uses the result any more */

	char *kept; /* the request's own copy of its payload, or NULL: request_keep_payload */

	struct request *next; /* free list, completion list */
	struct chain chain;
};

/* The argument as its struct: `REQUEST_ARG(r, struct fuse_open_in)->flags`. */
#define REQUEST_ARG(r, type) ((const type *)(const void *)(r)->arg)
/* The reply as its struct. */
#define REQUEST_REPLY(r, type) ((type *)(void *)(r)->reply)

/* The op continues off the loop with `run`, which gets only the request. The op has set r->fd and
 * r->file: the file is pinned until the request is back. */
static inline int request_defer(struct request *r, int (*run)(struct request *))
{
	r->run = run;
	return OUTCOME_DEFER;
}

static inline int request_defer_read(struct request *r, uint64_t offset,
				     int (*run)(struct request *))
{
	r->run = run;
	r->offset = offset;
	return OUTCOME_DEFER_READ;
}

/*
 * Fill the request from its chain, by the protocol that `session` has agreed on. `payload` has room
 * for REQUEST_PAYLOAD_MAX + 1 bytes, which the request uses until the next request is parsed.
 * Return: 0, or the -errno to reply to the guest (out_header_count may be 0 then), with in.opcode 0
 * if not even the header could be read.
 */
int request_parse(struct request *r, const struct fuse_session *session, char *payload) must_check;

/* Parse only the header of a request that is refused whatever its contents are, and find the place
 * of the reply's header. Without a header r->in becomes zero. */
void request_parse_header(struct request *r);

/*
 * For a request that leaves the loop and is then run again (run_again): give the request its own
 * copy of payload, names and labels. Return: 0, or -ENOMEM.
 */
int request_keep_payload(struct request *r) must_check;
void request_drop_payload(struct request *r);

/* Is `name` one component: not empty, no '/', not "." or ".."? The file system decides how long a
 * name may be; here only PATH_MAX bytes or more are refused. Return: 0, -EINVAL, -ENOENT (empty),
 * -ENAMETOOLONG. */
int request_check_name(const char *name) must_check;

/* A security label for the file to be created. */
struct request_label {
	const char *name; /* the guest's choice: "security." and more, at most XATTR_NAME_MAX */
	const void *value;
	uint32_t size;
};

/* Take the next label from the `*left` bytes at *at. Return: false if there is no valid label. */
bool request_next_label(const uint8_t **at, uint32_t *left, struct request_label *ret);

/* Does the guest's buffer have room for a payload of `len` bytes? For ops that know the size of
 * their reply beforehand. Return: 0, or -EIO if there is not enough room. */
int request_need_room(const struct request *r, uint64_t len) must_check;

/* Does the request's chain point to guest memory that guest_memory_redirect() takes away? */
bool request_loses_memory(const struct request *r, const struct guest_memory *memory);

/* Write the out header and, for results >= 0 of ops whose payload is in r->reply, that payload.
 * Return: bytes written in all (the used length). */
uint32_t request_reply(struct request *r, int result);

/* Cut the pieces down to `len` bytes in all. */
uint32_t iovec_truncate(struct iovec *iov, uint32_t count, uint64_t len);
/* Drop the first `len` bytes of the pieces. Return: pieces left; *iov moves. */
uint32_t iovec_advance(struct iovec **iov, uint32_t count, uint64_t len);

#endif
