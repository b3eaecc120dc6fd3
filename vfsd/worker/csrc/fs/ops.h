/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
/*
 * The ops: what is done for a request after it was parsed. An op knows the file system (struct fs)
 * and its request; an op does not know where the request came from or where its reply goes.
 */
#ifndef VFSD_OPS_H
#define VFSD_OPS_H

#include "transport/csrc/fuse_ops.h"
#include "worker/csrc/fs/as_requester.h"
#include "worker/csrc/fs/fs.h"
#include "worker/csrc/request/intent.h"

#include <errno.h>

#define VFSD_DECLARE_OP(NAME, handler, size, flags) op_fn op_##handler;
/* op_NULL_HANDLER is declared but never defined: C does not implement such an opcode. */
VFSD_FUSE_OPS(VFSD_DECLARE_OP)
#undef VFSD_DECLARE_OP

extern op_fn *const ops[FUSE_OPCODE_MAX]; /* by opcode; NULL: C does not implement the opcode */

/* What to return when an op cannot run: `error`, or OUTCOME_NO_REPLY if the op is never
 * answered. */
static inline int ops_error(const struct fuse_op *op, int error)
{
	return op->flags & OP_NO_REPLY ? OUTCOME_NO_REPLY : error;
}

/* Is the result -errno, and not another value of enum op_outcome? */
static inline bool ops_is_error(int result)
{
	return (uint32_t)result >= (uint32_t)-4095;
}

/* The error of an op. An open file of an inode that is not known either was lost with its sandbox
 * (session_restore.c): the guest gets ESTALE for such a file. */
static inline int ops_error_of_lost(struct fs *fs, const struct request *r, int error)
{
	return error == -EBADF && !inode_table_get(fs->inodes, r->in.nodeid) ? -ESTALE : error;
}

/* Run the op of a parsed request. Return: enum op_outcome. */
static inline int ops_run(struct fs *fs, struct request *r)
{
	const struct fuse_op *op = fuse_op(r->in.opcode);
	bool once = op->flags & OP_ONCE;
	int result;

	if (!ops[r->in.opcode])
		return -ENOSYS;
	if (!fs->session->ready)
		return ops_error(op, -EIO);
	if (fs->policy.readonly && op->flags & OP_MUTATES)
		return -EROFS;
	if (once)
		intent_begin(r);
	result = ops[r->in.opcode](fs, r);
	if (ops_is_error(result))
		result = ops_error_of_lost(
			fs, r, as_requester_if_refused(fs, r, ops[r->in.opcode], result));
	if (once && result > OUTCOME_NO_REPLY)
		intent_done(r, result);
	return result;
}

/* Run an op that returned OUTCOME_WAIT once more. Return: enum op_outcome. */
static inline int ops_retry(struct fs *fs, struct request *r)
{
	return ops[r->in.opcode](fs, r);
}

#endif
