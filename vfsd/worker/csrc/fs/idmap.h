/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Translation between ids of the guest and ids of the host (--translate-uid, --translate-gid): two
 * independent maps for users, two for groups. vfsd/transport/idmap.py parses the language of the
 * options; this file has only the sorted ranges.
 */
#ifndef VFSD_IDMAP_H
#define VFSD_IDMAP_H

#include "transport/csrc/types.h"

enum {
	IDMAP_RANGES_MAX = 256, /* ranges of one map */
};

/* The ids from `first` to `last` become to + (id - first) * step. With step 1 they become a
 * range of the same length, with step 0 a single id. With `to` UINT32_MAX and step 0 they are
 * forbidden. */
struct idmap_range {
	uint32_t first, last;
	uint32_t to;
	uint32_t step;
};

/* Ranges in ascending order that do not overlap. An id that is in no range is not changed. */
struct idmap {
	uint32_t count;
	struct idmap_range ranges[IDMAP_RANGES_MAX];
};

struct idmap_pair {
	struct idmap to_host;
	struct idmap to_guest;
};

/* Return: the translated id; UINT32_MAX, which is not a valid id, if `id` is forbidden. */
uint32_t idmap_translate(const struct idmap *map, uint32_t id);
/* Is there an id that the map translates to `id`? */
bool idmap_reaches(const struct idmap *map, uint32_t id);

#endif
