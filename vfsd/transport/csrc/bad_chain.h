/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
/*
 * The sound part of a chain that is CHAIN_BAD, so that its request can be answered. A driver that
 * does not look at the used length (Linux before 7.1) takes the header of the reply for a reply
 * even if no header was written, so a used length of 0 alone does not answer the request.
 */
#ifndef VFSD_BAD_CHAIN_H
#define VFSD_BAD_CHAIN_H

#include "transport/csrc/types.h"
#include "transport/csrc/vring.h"

struct bad_chain {
	bool is_outside; /* the chain names memory that the VMM does not share */
	uint64_t gpa;	 /* the first guest address outside of shared memory, if is_outside */
	bool cut[2];	 /* readable, writable: more pieces follow, which are ignored */
};

/*
 * Read the chain at chain->head. Its readable and its writable pieces become the pieces before the
 * first fault of their direction, so each list is the beginning of what the driver meant.
 */
void bad_chain_read(const struct vring *v, struct guest_memory *memory, struct chain *chain,
		    struct bad_chain *ret);

#endif
