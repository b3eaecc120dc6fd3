/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
/*
 * What most files do not have, and what costs a system call per WRITE to find out. Each worker
 * remembers the files that did not have it, and believes that under two conditions:
 *
 * No guest of this daemon has given it to any file since. Who does so counts in shared memory,
 * after it is done and before the reply. A WRITE that sees the old count was not sent in answer to
 * that reply.
 *
 * It is less than ABSENCE_NS ago. Others (the host's own processes, another daemon) do not count.
 * What they do is seen by every WRITE that begins ABSENCE_NS later. A WRITE that begins sooner
 * counts as if it came first. It may have waited in its ring for as long, so nobody could rely on
 * the order of the two.
 */
#ifndef VFSD_ABSENCE_H
#define VFSD_ABSENCE_H

#include "transport/csrc/types.h"

enum {
	ABSENCES = 64,
	ABSENCE_NS = 1000 * 1000,
};

/* A file that did not have it a moment ago. */
struct absence {
	uint64_t nodeid;
	uint64_t count;	   /* the shared one, then */
	uint64_t until_ns; /* CLOCK_MONOTONIC; believed until then */
};

struct absences {
	struct absence files[ABSENCES]; /* by nodeid, direct-mapped */
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
