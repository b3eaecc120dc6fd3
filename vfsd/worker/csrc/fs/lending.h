/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
#ifndef VFSD_LENDING_H
#define VFSD_LENDING_H

#include "worker/csrc/fs/fs.h"

/* Repay the fd that the released file in `slot` has lent to an inode; see repay_fn. The context is
 * struct fs. */
repay_fn lending_repay;

#endif
