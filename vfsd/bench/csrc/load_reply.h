/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
/* Checking the replies of a load, and learning from them. */
#ifndef VFSD_LOAD_REPLY_H
#define VFSD_LOAD_REPLY_H

#include "bench/csrc/load.h"

/* The device broke the protocol. Return: LOAD_BROKEN. */
static inline int load_broken(struct load *l, const char *reason)
{
	l->reason = reason;
	return LOAD_BROKEN;
}

/* Check the reply `out` to the request `in` of the stream's current step, and take from it what the
 * step says (enum load_flag). Return: 0 or enum load_end. */
int load_take_reply(struct load *l, struct load_stream *s, const struct fuse_in_header *in,
		    const struct fuse_out_header *out, uint32_t used_len) must_check;

#endif
