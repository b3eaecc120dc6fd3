/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/csrc/fs/idmap.h"

/* The index of the first range that does not end before `id`; `count` if there is none. */
static uint32_t find(const struct idmap *map, uint32_t id)
{
	uint32_t low = 0, high = map->count;

	while (low < high) {
		uint32_t middle = low + (high - low) / 2;

		if (map->ranges[middle].last < id)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

uint32_t idmap_translate(const struct idmap *map, uint32_t id)
{
	const struct idmap_range *range;
	uint32_t i;

	if (!map->count)
		return id;
	i = find(map, id);
	if (i == map->count || map->ranges[i].first > id)
		return id;
	range = &map->ranges[i];
	return range->to + (id - range->first) * range->step;
}

bool idmap_reaches(const struct idmap *map, uint32_t id)
{
	if (id == UINT32_MAX)
		return false;
	if (idmap_translate(map, id) == id)
		return true;
	for (uint32_t i = 0; i < map->count; i++) {
		const struct idmap_range *range = &map->ranges[i];

		if (range->to != UINT32_MAX &&
		    id - range->to <= (range->last - range->first) * range->step)
			return true;
	}
	return false;
}
