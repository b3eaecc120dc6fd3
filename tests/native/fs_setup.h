/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The ops as a library: a directory, and requests for it. There are no ring, no thread, no eventfd
 * and no guest memory here; the bytes of a request and of its reply are in two buffers.
 */
#ifndef VFSD_TEST_FS_SETUP_H
#define VFSD_TEST_FS_SETUP_H

#include "check.h"

#include "worker/csrc/fs/fs_init.h"
#include "worker/csrc/fs/ops.h"
#include "worker/csrc/request/intent.h"

#include <fcntl.h>

enum {
	FS_ASK_MAX = 64 * 1024,
	FS_REPLY_MAX = 64 * 1024,
};

/* The tables of a file system on `path`, with room for `inodes` and `files` entries. */
static inline void setup_fs(const char *path, uint32_t inodes, uint32_t files,
			    struct fs_config *ret)
{
	memset(ret, 0, sizeof(*ret));
	ret->root_fd = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
	ret->proc_self_fd = open("/proc/self/fd", O_PATH | O_DIRECTORY | O_CLOEXEC);
	ret->handles_fd = -1;
	CHECK(ret->root_fd >= 0 && ret->proc_self_fd >= 0);
	ret->workers = make_shared(sizeof(*ret->workers));
	ret->inodes = make_shared(inode_table_bytes(inodes));
	ret->files = make_shared(file_table_bytes(files));
	worker_table_init(ret->workers, 1);
	CHECK(!inode_table_init(ret->inodes, inodes, ret->root_fd));
	file_table_init(ret->files, files);
}

/* One request at a time: the request, and its reply. */
struct asking {
	struct request r;
	struct intent intent; /* the part that would survive a death */
	char payload[REQUEST_PAYLOAD_MAX + 1];
	uint8_t bytes[FS_ASK_MAX];
	uint8_t reply[FS_REPLY_MAX];
};

/* Put a request into `a`, header first, and parse it. `len` bytes of arguments, names and data
 * follow the header. Return: 0, or the error of the reply. */
static inline int ask_bytes(struct fs *fs, struct asking *a, struct fuse_in_header in,
			    const void *bytes, uint32_t len)
{
	struct request *r = &a->r;
	int err;

	CHECK(sizeof(in) + len <= FS_ASK_MAX);
	in.len = (uint32_t)sizeof(in) + len;
	memcpy(a->bytes, &in, sizeof(in));
	if (len)
		memcpy(a->bytes + sizeof(in), bytes, len);
	r->chain.readable[0] = (struct iovec){a->bytes, in.len};
	r->chain.readable_count = 1;
	r->chain.readable_len = in.len;
	r->chain.writable[0] = (struct iovec){a->reply, FS_REPLY_MAX};
	r->chain.writable_count = 1;
	r->chain.writable_len = FS_REPLY_MAX;
	r->session = fs->session->number;
	fs->now_ns = r->start_ns = test_clock_ns();
	err = request_parse(r, fs->session, a->payload);
	r->intent = &a->intent;
	return err ? ops_error(fuse_op(in.opcode), err) : 0;
}

/* Run the op; it may block here. Return: bytes of the reply's payload, -errno, OUTCOME_WAIT or
 * OUTCOME_NO_REPLY. */
static inline int answer(struct fs *fs, struct asking *a)
{
	struct request *r = &a->r;
	int outcome = ops_run(fs, r);

	if (outcome != OUTCOME_DEFER && outcome != OUTCOME_DEFER_READ)
		return outcome;
	outcome = r->run(r);
	return !outcome && r->run_again ? answer(fs, a) : outcome;
}

/* After a request, and at the end: close the fds that were given up. A file whose fd an inode
 * borrows needs two rounds. */
static inline void settle(struct fs *fs)
{
	struct reclaim *reclaim = &fs->reclaim;

	do {
		reclaim_quiescent(reclaim);
		reclaim_collect(reclaim);
		for (uint32_t i = 0; i < reclaim->close_count; i++)
			reclaim_close(&fs->table->rows[fs->slot], reclaim->close[i]);
		reclaim->close_count = 0;
	} while (reclaim->count);
}

#endif
