/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Guest memory as one process has mapped it, and the translation of guest addresses.
 *
 * Trust: every address and length comes from the guest or the front-end. Nothing here returns a
 * pointer unless all `len` bytes behind it lie in mapped regions.
 */
#ifndef VFSD_GUEST_MEMORY_H
#define VFSD_GUEST_MEMORY_H

#include "transport/csrc/types.h"
#include "transport/csrc/device_state.h"

struct iovec;

struct guest_mapping {
	uint64_t gpa;
	uint64_t size;
	uint64_t uva;
	uint8_t *addr; /* of gpa, here */
	uint8_t *base; /* what mmap returned */
	uint64_t base_len;
	int32_t fd;    /* what it was mapped from, to recognise it again */
	bool diverted; /* out of reach for good: see guest_memory_divert */
	uint64_t offset;
};

struct guest_memory {
	uint32_t count;
	uint32_t last; /* index of the latest hit: most lookups repeat it */
	struct guest_mapping mappings[DEVICE_REGIONS_MAX]; /* by gpa, ascending */
	uint32_t retired_count;
	struct guest_mapping retired[DEVICE_REGIONS_MAX]; /* gone for new requests, see _reap */
};

/*
 * Make `memory` map exactly `regions`: what is mapped already is kept, what is missing is mapped,
 * the rest is retired: not found any more, but still mapped for requests that are under way.
 * Return: 0, -EINVAL (overlap, overflow, beyond the end of the file, too many), or mmap's -errno.
 * After an error `memory` translates nothing.
 */
int guest_memory_update(struct guest_memory *memory, const struct device_region *regions,
			uint32_t count) must_check;
/*
 * Whoever still uses what is retired reaches, from here on, the pages that the regions in force
 * have at the same guest addresses, and nothing where they have none: system calls fail there
 * (EFAULT). So nothing of ours changes memory that the front-end has taken back, but for what the
 * kernel has begun to read into pages without a cache (O_DIRECT).
 */
void guest_memory_redirect(struct guest_memory *memory);
/* Is a byte of `piece`, which was guest memory, one that a redirection takes away? */
bool guest_memory_loses(const struct guest_memory *memory, const struct iovec *piece);
/* Retire everything. */
void guest_memory_clear(struct guest_memory *memory);
/* Retire everything and take the pages of all that is retired away: system calls of requests that
 * are under way fail (EFAULT), so that they neither change what the guest has in use again nor
 * write it to a file. */
void guest_memory_divert(struct guest_memory *memory);
/* Unmap what is retired; the caller knows that no request uses it any more. */
void guest_memory_reap(struct guest_memory *memory);

/* Our address of [gpa, gpa + len), which must lie in one region; NULL otherwise. */
void *guest_memory_at(struct guest_memory *memory, uint64_t gpa, uint64_t len);

/* As guest_memory_at, but up to the region's end: *ret_len gets the bytes that follow in this
 * region, at most len. NULL if gpa is outside. */
void *guest_memory_span(struct guest_memory *memory, uint64_t gpa, uint64_t len, uint64_t *ret_len);

/* The same for a front-end user address: where rings are (vhost-user: vring address). */
void *guest_memory_at_uva(struct guest_memory *memory, uint64_t uva, uint64_t len);

/* True if [addr, addr + 1) is guest memory as mapped here, retired or not. */
bool guest_memory_contains(const struct guest_memory *memory, const void *addr);

#endif
