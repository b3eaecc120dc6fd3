/* SPDX-License-Identifier: Apache-2.0 */
#include "transport/csrc/fuse_ops.h"

#define ROW(NAME, handler, size, op_flags) [FUSE_##NAME] = {#NAME, size, op_flags},

static const struct fuse_op ops[FUSE_OPCODE_MAX] = {VFSD_FUSE_OPS(ROW)};

const struct fuse_op *fuse_op(uint32_t opcode)
{
	return &ops[opcode < FUSE_OPCODE_MAX ? opcode : 0];
}
