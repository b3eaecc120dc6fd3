/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
#ifndef VFSD_AS_REQUESTER_H
#define VFSD_AS_REQUESTER_H

#include "worker/csrc/fs/fs.h"

/* `op` has returned `result`, an error. If a server on the host may have refused root what the
 * requesting user may do, run `op` again as that user. Return: the result of the request. */
int as_requester_if_refused(struct fs *fs, struct request *r, op_fn *op, int result);

#endif
