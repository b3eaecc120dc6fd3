/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
#ifndef VFSD_OPS_OPEN_H
#define VFSD_OPS_OPEN_H

#include "worker/csrc/fs/fs.h"

/* What the released file in `slot` owes to the inode that borrows its fd; see repay_fn. */
repay_fn ops_open_repay;

#endif
