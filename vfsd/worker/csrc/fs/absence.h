/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
/*
 * A cache of the files that do not have some property: most files do not have it, but finding that
 * out costs a system call per WRITE. Each worker remembers the files that did not have the
 * property, and relies on that under two conditions:
 *
 * No guest of this daemon has given the property to any file since. A worker that gives it to a
 * file increments a count in shared memory, after the change and before the reply. A WRITE that
 * finds the old count was not sent in answer to that reply.
 *
 * The worker looked less than ABSENCE_NS ago. Other processes of the host, and other daemons, do
 * not increment the count. Every WRITE that begins ABSENCE_NS after their change finds the change.
 * A WRITE that begins sooner is treated as if it came before the change. It may have waited in its
 * ring for as long, so no program could rely on the order of the two.
 */
#ifndef VFSD_ABSENCE_H
#define VFSD_ABSENCE_H

#include "transport/csrc/types.h"

enum {
	ABSENCES = 64,
	ABSENCE_NS = 1000 * 1000,
};

/* A file that did not have the property when a worker looked. */
struct absence {
	uint64_t nodeid;
	uint64_t count;	   /* the shared count at that time */
	uint64_t until_ns; /* CLOCK_MONOTONIC; the entry is valid until then */
};

struct absences {
	struct absence files[ABSENCES]; /* indexed by nodeid, direct-mapped */
};

static inline bool absence_is_known(const struct absences *a, uint64_t nodeid, uint64_t count,
				    uint64_t now_ns)
{
	const struct absence *known = &a->files[nodeid % ABSENCES];

	return known->nodeid == nodeid && known->count == count && now_ns < known->until_ns;
}

static inline void absence_note(struct absences *a, uint64_t nodeid, uint64_t count,
				uint64_t now_ns)
{
	a->files[nodeid % ABSENCES] = (struct absence){nodeid, count, now_ns + ABSENCE_NS};
}

#endif
