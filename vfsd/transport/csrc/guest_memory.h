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
	uint8_t *addr; /* the address of gpa in this process */
	uint8_t *base; /* the address that mmap returned */
	uint64_t base_len;
	int32_t fd;    /* the fd that was mapped, to recognise it again */
	bool diverted; /* inaccessible for good: see guest_memory_divert */
	uint64_t offset;
};

struct guest_memory {
	uint32_t count;
	uint32_t last; /* index of the latest hit: most lookups hit the same region */
	struct guest_mapping mappings[DEVICE_REGIONS_MAX]; /* by gpa, ascending */
	uint32_t retired_count;
	struct guest_mapping retired[DEVICE_REGIONS_MAX]; /* until guest_memory_reap */
};

/*
 * Make `memory` map exactly `regions`: regions that are mapped already are kept, missing regions
 * are mapped, all others are retired: addresses are no longer translated to them, but they stay
 * mapped for requests that are under way. Return: 0, -EINVAL (overlap, overflow, beyond the end of
 * the file, more than DEVICE_REGIONS_MAX), or mmap's -errno. After an error `memory` translates
 * nothing.
 */
int guest_memory_update(struct guest_memory *memory, const struct device_region *regions,
			uint32_t count) must_check;
/*
 * From here on a request that still uses a retired mapping reaches the pages that the regions in
 * force have at the same guest addresses. Where they have none, system calls fail (EFAULT). So we
 * never change memory that the front-end has taken back, except for data that the kernel has begun
 * to read into pages without a cache (O_DIRECT).
 */
void guest_memory_redirect(struct guest_memory *memory);
/* Would guest_memory_redirect() take away a byte of `piece`, which was guest memory? */
bool guest_memory_loses(const struct guest_memory *memory, const struct iovec *piece);
/* Retire everything. */
void guest_memory_clear(struct guest_memory *memory);
/* Retire everything and make all retired mappings inaccessible: system calls of requests that are
 * under way fail (EFAULT), so that they neither change memory that the guest uses again nor write
 * that memory to a file. */
void guest_memory_divert(struct guest_memory *memory);
/* Unmap all retired mappings; the caller knows that no request uses them any more. */
void guest_memory_reap(struct guest_memory *memory);

/* The address in this process of [gpa, gpa + len), which must lie in one region; NULL otherwise. */
void *guest_memory_at(struct guest_memory *memory, uint64_t gpa, uint64_t len);

/* As guest_memory_at, but up to the region's end: *ret_len gets the number of bytes that follow in
 * this region, at most len. NULL if gpa is outside of every region. */
void *guest_memory_span(struct guest_memory *memory, uint64_t gpa, uint64_t len, uint64_t *ret_len);

/* As guest_memory_at, for a front-end user address: the address of a ring (vhost-user: vring
 * address). */
void *guest_memory_at_uva(struct guest_memory *memory, uint64_t uva, uint64_t len);

/* True if [addr, addr + 1) is guest memory as mapped here, retired or not. */
bool guest_memory_contains(const struct guest_memory *memory, const void *addr);

#endif
