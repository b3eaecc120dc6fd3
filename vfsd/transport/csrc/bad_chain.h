/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
/*
 * What is sound of a chain that is CHAIN_BAD, so that its request can be answered. A driver that
 * looks at no used length (Linux before 7.1) takes the header of the reply for a reply even where
 * nobody has written it, so a bare used length of 0 is none.
 */
#ifndef VFSD_BAD_CHAIN_H
#define VFSD_BAD_CHAIN_H

#include "transport/csrc/types.h"
#include "transport/csrc/vring.h"

struct bad_chain {
	bool is_outside; /* it names memory that the VMM does not share … */
	uint64_t gpa;	 /* … here for the first time */
	bool cut[2];	 /* readable, writable: more follows, which does not count */
};

/*
 * Read the chain at chain->head. Its readable and its writable pieces become those before the first
 * fault of their direction, so each list is the beginning of what the driver meant.
 */
void bad_chain_read(const struct vring *v, struct guest_memory *memory, struct chain *chain,
		    struct bad_chain *ret);

#endif
