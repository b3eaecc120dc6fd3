/* SPDX-License-Identifier: Apache-2.0 */
#include "transport/csrc/guest_memory.h"

#include "transport/csrc/page.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/vfs.h>

static bool same_region(const struct guest_mapping *m, const struct device_region *r)
{
	return m->gpa == r->gpa && m->size == r->size && m->uva == r->uva && m->fd == r->fd &&
	       m->offset == r->offset;
}

void guest_memory_reap(struct guest_memory *memory)
{
	while (memory->retired_count > 0) {
		struct guest_mapping *m = &memory->retired[--memory->retired_count];

		munmap(m->base, m->base_len);
	}
}

/* If the list is full of mappings that hung requests may still use, leaking the mapping is the safe
 * way out. */
static void retire(struct guest_memory *memory, const struct guest_mapping *m)
{
	if (memory->retired_count < DEVICE_REGIONS_MAX)
		memory->retired[memory->retired_count++] = *m;
}

void guest_memory_clear(struct guest_memory *memory)
{
	for (uint32_t i = 0; i < memory->count; i++)
		retire(memory, &memory->mappings[i]);
	memory->count = 0;
	memory->last = 0;
}

/* Make the mapping at `addr` inaccessible: an access faults, a system call gets EFAULT. */
static void take_away(void *addr, uint64_t len)
{
	int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED;

	(void)!mmap(addr, len, PROT_NONE, flags, -1, 0);
}

void guest_memory_divert(struct guest_memory *memory)
{
	guest_memory_clear(memory);
	for (uint32_t i = 0; i < memory->retired_count; i++) {
		take_away(memory->retired[i].base, memory->retired[i].base_len);
		memory->retired[i].diverted = true;
	}
}

/* mmap needs an offset of whole pages of the file, and pages of hugetlbfs are huge. */
static int map_alignment(int fd, uint64_t *ret)
{
	struct statfs fs;

	if (fstatfs(fd, &fs) < 0)
		return -errno;
	*ret = fs.f_bsize > PAGE ? (uint64_t)fs.f_bsize : PAGE;
	if (*ret & (*ret - 1))
		return -EINVAL;
	return 0;
}

static int map_region(const struct device_region *r, struct guest_mapping *ret)
{
	uint64_t align = 0, slack, len;
	struct stat st;
	void *base;
	int err = map_alignment(r->fd, &align);

	if (err)
		return err;
	if (!r->size || r->gpa + r->size < r->gpa || r->uva + r->size < r->uva ||
	    r->offset + r->size < r->offset)
		return -EINVAL;
	/* Access to a mapping beyond the end of its file kills the process (SIGBUS). */
	if (fstat(r->fd, &st) < 0)
		return -errno;
	if (S_ISREG(st.st_mode) && r->offset + r->size > (uint64_t)st.st_size)
		return -EINVAL;
	slack = r->offset & (align - 1);
	len = (r->size + slack + align - 1) & ~(align - 1);
	if (len < r->size)
		return -EINVAL;
	base = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, r->fd,
		    (off_t)(r->offset - slack));
	if (base == MAP_FAILED)
		return -errno;
	madvise(base, len, MADV_DONTDUMP);
	*ret = (struct guest_mapping){.gpa = r->gpa,
				      .size = r->size,
				      .uva = r->uva,
				      .addr = (uint8_t *)base + slack,
				      .base = base,
				      .base_len = len,
				      .fd = r->fd,
				      .offset = r->offset};
	return 0;
}

/* Insert by gpa. Return: 0 or -EINVAL when it overlaps a neighbour. */
static int insert(struct guest_memory *memory, const struct guest_mapping *added)
{
	uint32_t at = memory->count;

	while (at > 0 && memory->mappings[at - 1].gpa > added->gpa)
		at--;
	if (at > 0 && memory->mappings[at - 1].gpa + memory->mappings[at - 1].size > added->gpa)
		return -EINVAL;
	if (at < memory->count && added->gpa + added->size > memory->mappings[at].gpa)
		return -EINVAL;
	memmove(&memory->mappings[at + 1], &memory->mappings[at],
		(memory->count - at) * sizeof(*memory->mappings));
	memory->mappings[at] = *added;
	memory->count++;
	return 0;
}

static bool wanted(const struct guest_mapping *m, const struct device_region *regions,
		   uint32_t count)
{
	for (uint32_t i = 0; i < count; i++)
		if (same_region(m, &regions[i]))
			return true;
	return false;
}

static bool mapped(const struct guest_memory *memory, const struct device_region *r)
{
	for (uint32_t i = 0; i < memory->count; i++)
		if (same_region(&memory->mappings[i], r))
			return true;
	return false;
}

static void drop_unwanted(struct guest_memory *memory, const struct device_region *regions,
			  uint32_t count)
{
	uint32_t kept = 0;

	for (uint32_t i = 0; i < memory->count; i++) {
		if (wanted(&memory->mappings[i], regions, count))
			memory->mappings[kept++] = memory->mappings[i];
		else
			retire(memory, &memory->mappings[i]);
	}
	memory->count = kept;
	memory->last = 0;
}

int guest_memory_update(struct guest_memory *memory, const struct device_region *regions,
			uint32_t count)
{
	int err = count > DEVICE_REGIONS_MAX ? -EINVAL : 0;

	if (!err)
		drop_unwanted(memory, regions, count);
	for (uint32_t i = 0; !err && i < count; i++) {
		struct guest_mapping added;

		if (mapped(memory, &regions[i]))
			continue;
		if (memory->count == DEVICE_REGIONS_MAX) {
			err = -EINVAL;
			break;
		}
		err = map_region(&regions[i], &added);
		if (err)
			break;
		err = insert(memory, &added);
		if (err)
			munmap(added.base, added.base_len);
	}
	if (err)
		guest_memory_clear(memory);
	return err;
}

static bool holds(const struct guest_mapping *m, uint64_t gpa)
{
	return gpa - m->gpa < m->size; /* an address below m->gpa wraps */
}

static __attribute__((noinline)) const struct guest_mapping *search(struct guest_memory *memory,
								    uint64_t gpa)
{
	uint32_t low = 0, high = memory->count;

	while (low < high) {
		uint32_t middle = (low + high) / 2;
		const struct guest_mapping *m = &memory->mappings[middle];

		if (holds(m, gpa)) {
			memory->last = middle;
			return m;
		}
		if (gpa < m->gpa)
			high = middle;
		else
			low = middle + 1;
	}
	return NULL;
}

static inline const struct guest_mapping *find(struct guest_memory *memory, uint64_t gpa)
{
	const struct guest_mapping *last = &memory->mappings[memory->last];

	return memory->last < memory->count && holds(last, gpa) ? last : search(memory, gpa);
}

void *guest_memory_span(struct guest_memory *memory, uint64_t gpa, uint64_t len, uint64_t *ret_len)
{
	const struct guest_mapping *m = find(memory, gpa);
	uint64_t rest;

	if (!m)
		return NULL;
	rest = m->size - (gpa - m->gpa);
	*ret_len = len < rest ? len : rest;
	return m->addr + (gpa - m->gpa);
}

void *guest_memory_at(struct guest_memory *memory, uint64_t gpa, uint64_t len)
{
	uint64_t rest = 0;
	void *addr = guest_memory_span(memory, gpa, len, &rest);

	return rest == len ? addr : NULL;
}

void *guest_memory_at_uva(struct guest_memory *memory, uint64_t uva, uint64_t len)
{
	for (uint32_t i = 0; i < memory->count; i++) {
		const struct guest_mapping *m = &memory->mappings[i];
		uint64_t at = uva - m->uva;

		if (at < m->size)
			return len <= m->size - at ? m->addr + at : NULL;
	}
	return NULL;
}

static bool is_in(const struct guest_mapping *m, const void *addr)
{
	return (uint64_t)((const uint8_t *)addr - m->base) < m->base_len;
}

static const struct guest_mapping *find_by_addr(const struct guest_mapping *mappings,
						uint32_t count, const void *addr)
{
	for (uint32_t i = 0; i < count; i++)
		if (is_in(&mappings[i], addr))
			return &mappings[i];
	return NULL;
}

static bool is_of_whole_pages(const struct guest_mapping *m)
{
	return !((m->gpa | m->size | m->offset) % PAGE);
}

/* Does the region `m`, which is in force, hold a part of [gpa, end)? *ret_from and *ret_end get
 * that part. */
static bool overlaps(const struct guest_mapping *m, uint64_t gpa, uint64_t end, uint64_t *ret_from,
		     uint64_t *ret_end)
{
	*ret_from = m->gpa > gpa ? m->gpa : gpa;
	*ret_end = m->gpa + m->size < end ? m->gpa + m->size : end;
	return is_of_whole_pages(m) && *ret_from < *ret_end;
}

/* The address of `gpa` in the old mapping. */
static uint8_t *old_addr(const struct guest_mapping *old, uint64_t gpa)
{
	return old->addr + (gpa - old->gpa);
}

/* Replace [from, end) of the old mapping by the pages that `m` has there. mmap does this in one
 * step, so requests that go on never find a hole. */
static void map_again(const struct guest_mapping *old, uint64_t from, uint64_t end,
		      const struct guest_mapping *m)
{
	void *addr = old_addr(old, from);
	int flags = MAP_SHARED | MAP_NORESERVE | MAP_FIXED;

	if (mmap(addr, end - from, PROT_READ | PROT_WRITE, flags, m->fd,
		 (off_t)(m->offset + (from - m->gpa))) == MAP_FAILED)
		take_away(addr, end - from);
	else
		madvise(addr, end - from, MADV_DONTDUMP);
}

static void redirect(const struct guest_memory *memory, const struct guest_mapping *old)
{
	uint64_t at = old->gpa, end = old->gpa + old->size, from, stop;

	if (!is_of_whole_pages(old)) {
		take_away(old->base, old->base_len);
		return;
	}
	for (uint32_t i = 0; i < memory->count; i++) { /* by gpa, ascending */
		if (!overlaps(&memory->mappings[i], old->gpa, end, &from, &stop))
			continue;
		if (at < from)
			take_away(old_addr(old, at), from - at);
		map_again(old, from, stop, &memory->mappings[i]);
		at = stop;
	}
	if (at < end)
		take_away(old_addr(old, at), end - at);
}

void guest_memory_redirect(struct guest_memory *memory)
{
	for (uint32_t i = 0; i < memory->retired_count; i++)
		if (!memory->retired[i].diverted)
			redirect(memory, &memory->retired[i]);
}

/* Return: the number of bytes at `gpa` of the old mapping that a region in force also holds. */
static uint64_t kept_bytes(const struct guest_memory *memory, const struct guest_mapping *old,
			   uint64_t gpa)
{
	uint64_t from, stop;

	if (is_of_whole_pages(old) && !old->diverted)
		for (uint32_t i = 0; i < memory->count; i++)
			if (overlaps(&memory->mappings[i], gpa, old->gpa + old->size, &from,
				     &stop) &&
			    from == gpa)
				return stop - gpa;
	return 0;
}

bool guest_memory_loses(const struct guest_memory *memory, const struct iovec *piece)
{
	const uint8_t *at = piece->iov_base, *end = at + piece->iov_len;

	while (at < end) {
		const struct guest_mapping *old =
			find_by_addr(memory->retired, memory->retired_count, at);
		const struct guest_mapping *m = find_by_addr(memory->mappings, memory->count, at);
		uint64_t kept;

		if (old)
			kept = kept_bytes(memory, old, old->gpa + (uint64_t)(at - old->addr));
		else
			kept = m ? m->base_len - (uint64_t)(at - m->base) : 0;
		if (!kept)
			return true;
		at += kept;
	}
	return false;
}

bool guest_memory_contains(const struct guest_memory *memory, const void *addr)
{
	return find_by_addr(memory->mappings, memory->count, addr) ||
	       find_by_addr(memory->retired, memory->retired_count, addr);
}
