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
		result = as_requester_if_refused(fs, r, ops[r->in.opcode], result);
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
