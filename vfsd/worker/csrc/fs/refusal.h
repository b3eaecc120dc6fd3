/* SPDX-License-Identifier: Apache-2.0 */
#ifndef VFSD_REFUSAL_H
#define VFSD_REFUSAL_H

#include "transport/csrc/types.h"

/* The first user of the guest that this worker could not act as, or could not give a file to. */
struct refusal {
	bool is_noted;
	bool is_taken;
	uint32_t uid, gid;
	uint32_t own_uid, own_gid; /* ids of the daemon, as the sandbox sees them */
};

#endif
