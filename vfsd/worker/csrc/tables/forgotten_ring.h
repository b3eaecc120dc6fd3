/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
/* The order in which the guest has forgotten inodes: a part of the inode table's head. The theory
 * is in forgotten.c. */
#ifndef VFSD_FORGOTTEN_RING_H
#define VFSD_FORGOTTEN_RING_H

#include "transport/csrc/types.h"

enum {
	FORGOTTEN_MAX = 1 << 16,
};

/* A ring of the slots of inodes that were let go; the oldest entry is at `first`. `first` and `end`
 * only grow; an entry's place in `slots` is its number modulo FORGOTTEN_MAX. */
struct forgotten {
	uint32_t lock;
	uint32_t first;
	uint32_t end;
	uint32_t count; /* number of inodes that have been let go and are still in the table */
	uint32_t slots[FORGOTTEN_MAX];
};

#endif
