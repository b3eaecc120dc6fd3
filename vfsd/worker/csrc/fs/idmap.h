/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Ids of the guest and ids of the host (--translate-uid, --translate-gid): two independent maps for
 * users, two for groups. The language is vfsd/transport/idmap.py's; here are only sorted ranges.
 */
#ifndef VFSD_IDMAP_H
#define VFSD_IDMAP_H

#include "transport/csrc/types.h"

enum {
	IDMAP_RANGES_MAX = 256, /* of one map */
};

/* Ids first … last become to + (id - first) * step: with step 1 a range of as many, with step 0 all
 * the same one. to UINT32_MAX, step 0: they are forbidden. */
struct idmap_range {
	uint32_t first, last;
	uint32_t to;
	uint32_t step;
};

/* Ranges in ascending order, no two overlap. What is in none stays what it is. */
struct idmap {
	uint32_t count;
	struct idmap_range ranges[IDMAP_RANGES_MAX];
};

struct idmap_pair {
	struct idmap to_host;
	struct idmap to_guest;
};

/* Return: UINT32_MAX, which is no id, for one that is forbidden. */
uint32_t idmap_translate(const struct idmap *map, uint32_t id);

#endif
