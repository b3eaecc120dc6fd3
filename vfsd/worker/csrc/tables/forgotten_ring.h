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

/* Slots of inodes that were let go, the oldest first. `first` and `end` count up for ever. */
struct forgotten {
	uint32_t lock;
	uint32_t first;
	uint32_t end;
	uint32_t count; /* of inodes that are let go */
	uint32_t slots[FORGOTTEN_MAX];
};

#endif
