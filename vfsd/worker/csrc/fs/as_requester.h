/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
#ifndef VFSD_AS_REQUESTER_H
#define VFSD_AS_REQUESTER_H

#include "worker/csrc/fs/fs.h"

/* `op` ended with `result`, an error. Where a server on the host may have refused root what the
 * requesting user may do, run it again as that user. Return: the result that counts. */
int as_requester_if_refused(struct fs *fs, struct request *r, op_fn *op, int result);

#endif
