/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/csrc/fs/ops.h"

#define op_NULL_HANDLER			    NULL /* rare ops are implemented in Python */
#define HANDLER(NAME, handler, size, flags) [FUSE_##NAME] = op_##handler,

op_fn *const ops[FUSE_OPCODE_MAX] = {VFSD_FUSE_OPS(HANDLER)};
