/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The descriptors are loaded a second time, after vring.c has refused the chain. No earlier check
 * is relied on: every descriptor is copied again and every address is translated again. A driver
 * that changes the chain between the two readings changes only where its error goes.
 */
#define vring driver_vring /* this header declares another struct vring, for drivers */
#include <linux/virtio_ring.h>
#undef vring

#include "transport/csrc/bad_chain.h"

#include <string.h>

/* Descriptors: the ring's own, or an indirect table in guest memory. */
struct table {
	const struct vring_desc *own; /* or NULL */
	uint64_t gpa;
	uint32_t count;
};

static void note_outside(struct bad_chain *bad, uint64_t gpa)
{
	if (bad->is_outside)
		return;
	bad->is_outside = true;
	bad->gpa = gpa;
}

static bool load(const struct table *table, struct guest_memory *memory, uint32_t index,
		 struct vring_desc *ret, struct bad_chain *bad)
{
	uint64_t gpa = table->gpa + index * sizeof(*ret);
	const void *at =
		table->own ? &table->own[index] : guest_memory_at(memory, gpa, sizeof(*ret));

	if (!at) {
		note_outside(bad, gpa);
		return false;
	}
	memcpy(ret, at, sizeof(*ret));
	__asm__ volatile("" ::: "memory"); /* only the copy is checked and used */
	return true;
}

/* Return: false if the range could not be added as a whole. */
static bool add_range(struct guest_memory *memory, struct vring_desc desc, struct iovec *pieces,
		      uint32_t *count, uint64_t *bytes, struct bad_chain *bad)
{
	while (desc.len) {
		uint64_t here;
		void *addr = guest_memory_span(memory, desc.addr, desc.len, &here);

		if (!addr)
			note_outside(bad, desc.addr);
		if (!addr || *count == CHAIN_SEGMENTS_MAX)
			return false;
		pieces[(*count)++] = (struct iovec){addr, here};
		*bytes += here;
		desc.addr += here;
		desc.len -= (uint32_t)here;
	}
	return true;
}

static void add(struct chain *chain, struct guest_memory *memory, struct vring_desc desc,
		struct bad_chain *bad)
{
	bool writable = desc.flags & VRING_DESC_F_WRITE;

	if (!writable && chain->writable_count)
		bad->cut[false] = true; /* virtio 1.2 §2.7.4.2: readable descriptors come first */
	if (bad->cut[writable])
		return;
	bad->cut[writable] =
		writable ? !add_range(memory, desc, chain->writable, &chain->writable_count,
				      &chain->writable_len, bad)
			 : !add_range(memory, desc, chain->readable, &chain->readable_count,
				      &chain->readable_len, bad);
}

void bad_chain_read(const struct vring *v, struct guest_memory *memory, struct chain *chain,
		    struct bad_chain *ret)
{
	struct table table = {.own = v->desc, .count = v->size};
	uint32_t next = chain->head;
	struct vring_desc desc;

	*ret = (struct bad_chain){.is_outside = false};
	chain->readable_count = chain->writable_count = 0;
	chain->readable_len = chain->writable_len = 0;
	for (uint32_t seen = 0; next < table.count && seen < VRING_SIZE_MAX; seen++) {
		if (!load(&table, memory, next, &desc, ret))
			return;
		if (desc.flags & VRING_DESC_F_INDIRECT) {
			if (!v->indirect || !table.own)
				return; /* tables do not nest */
			table = (struct table){.gpa = desc.addr, .count = desc.len / sizeof(desc)};
			next = 0;
			continue;
		}
		add(chain, memory, desc, ret);
		if (!(desc.flags & VRING_DESC_F_NEXT))
			return;
		next = desc.next;
	}
}
