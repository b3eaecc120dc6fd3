/* SPDX-License-Identifier: Apache-2.0 */
/*
 * THEORY
 *
 * Actors. The driver (guest, hostile) writes the descriptor table and the avail ring at any time,
 * also while we read them. We are the only writer of the used ring. One worker owns a vring; a
 * worker that takes over the vring of a dead worker finds the state in the used ring (guest memory)
 * and in the in-flight record (ours).
 *
 * Invariants.
 * - Every field of guest memory is loaded once into a local, checked there, and not loaded again.
 *   (vring_prefetch also loads fields, but uses the values for nothing but prefetching.)
 * - A head is in flight from vring_pop to vring_publish. A head that the driver offers while it is
 *   in flight breaks the ring: if an entry were completed twice, the driver would mark the queue as
 *   broken for good.
 * - used_idx + pending never passes the number of heads taken, because each push ends one head.
 * - A chain is bounded: at most `size` descriptors (or table entries when indirect), at most
 *   CHAIN_SEGMENTS_MAX pieces each way, readable before writable, less than 4 GiB of readable bytes
 *   (fuse_in_header.len has 32 bits), every byte inside guest memory. There may be more writable
 *   bytes: a driver that reads a large file at once (UEFI firmware) offers 4 GiB - 1 for the data.
 *
 * Ordering. avail.idx is loaded with acquire before the entries it covers; used.idx is stored with
 * release after the entries it covers. Two places need a full barrier, because each side stores
 * its own index and then loads the other's (virtio 1.2 §2.7.7.1, §2.7.10): before deciding on a
 * call, and after asking for kicks.
 *
 * Two kinds of failure. VRING_BROKEN: an index is impossible, and nothing on this ring can be
 * trusted any more. CHAIN_BAD: one chain is malformed, or names memory that the VMM does not share;
 * the chain is read once more for an answer (bad_chain.c), and the ring goes on.
 *
 * Recovery. Next avail = used.idx + number in flight. The front-end's number (SET_VRING_BASE) is
 * not used: cloud-hypervisor sends avail.idx there, which would skip requests, and the number of
 * every other front-end equals this sum.
 */
#define vring driver_vring /* this header declares another struct vring, for drivers */
#include <linux/virtio_ring.h>
#undef vring

#include "transport/csrc/ring_words.h"
#include "transport/csrc/vring.h"

#include <errno.h>
#include <string.h>

#define BARRIER() __atomic_thread_fence(__ATOMIC_SEQ_CST)

enum {
	FEATURE_INDIRECT_DESC = 28,
	FEATURE_EVENT_IDX = 29,
};

/* The used index from which on the driver wants a call; its place is after the avail ring. */
static uint16_t used_event(const struct vring *v)
{
	return load16(&v->avail->ring[v->size]);
}

/* Write the avail index from which on we want a kick; its place is after the used ring. */
static void set_avail_event(struct vring *v, uint16_t value)
{
	store16(&v->used->ring[v->size], value);
}

/* A part of the ring; NULL unless it is aligned as the specification requires, both in the driver's
 * addresses and, since a region may begin anywhere in its file, in ours. */
static void *map_part(struct guest_memory *memory, uint64_t uva, uint64_t len, uint64_t align)
{
	void *addr = guest_memory_at_uva(memory, uva, len);

	return (uva | (uintptr_t)addr) & (align - 1) ? NULL : addr;
}

int vring_map(struct vring *v, const struct device_vring *device, struct guest_memory *memory,
	      uint64_t features)
{
	uint32_t size = device->size;
	bool event_idx = features >> FEATURE_EVENT_IDX & 1;
	struct split_ring areas = split_ring_areas(size, event_idx);
	void *desc, *avail, *used;

	if (!size || size > VRING_SIZE_MAX || size & (size - 1))
		return -EINVAL;
	desc = map_part(memory, device->desc, areas.desc, 16);
	avail = map_part(memory, device->avail, areas.avail, 2);
	used = map_part(memory, device->used, areas.used, 4);
	if (!desc || !avail || !used)
		return -EINVAL;
	v->desc = desc;
	v->avail = avail;
	v->used = used;
	v->size = size;
	v->event_idx = event_idx;
	v->indirect = features >> FEATURE_INDIRECT_DESC & 1;
	return 0;
}

uint32_t vring_attach(struct vring *v, struct inflight_region *inflight, uint16_t *ret_heads)
{
	uint16_t used_idx = load16(&v->used->idx);
	uint32_t count;

	inflight_settle(inflight, v->size, used_idx);
	/* The record may be the front-end's memory: only the copy in ret_heads is used. */
	count = inflight_heads(inflight, v->size, ret_heads, &v->counter);
	v->inflight = inflight;
	v->used_idx = used_idx;
	v->signalled = used_idx;
	v->pending = 0;
	v->call_due = true;
	v->reason = NULL;
	v->last_avail = (uint16_t)(used_idx + count);
	return count;
}

uint16_t vring_available(const struct vring *v)
{
	return (uint16_t)(__atomic_load_n(&v->avail->idx, __ATOMIC_ACQUIRE) - v->last_avail);
}

static int broken(struct vring *v, const char *reason)
{
	v->reason = reason;
	return VRING_BROKEN;
}

/* Append one translated piece to `segments`; merge it with the last piece if the two touch. */
static int append(struct iovec *segments, uint32_t *count, void *addr, uint64_t len)
{
	if (*count) {
		struct iovec *last = &segments[*count - 1];

		if ((uint8_t *)last->iov_base + last->iov_len == addr) {
			last->iov_len += len;
			return 0;
		}
	}
	if (*count == CHAIN_SEGMENTS_MAX)
		return CHAIN_BAD;
	segments[(*count)++] = (struct iovec){addr, len};
	return 0;
}

/* Add one descriptor's range, which may continue in an adjoining region. */
static int add_range(struct chain *ret, struct guest_memory *memory, uint64_t gpa, uint64_t len,
		     bool writable)
{
	while (len) {
		uint64_t here;
		void *addr = guest_memory_span(memory, gpa, len, &here);
		int err;

		if (!addr)
			return CHAIN_BAD;
		err = writable ? append(ret->writable, &ret->writable_count, addr, here)
			       : append(ret->readable, &ret->readable_count, addr, here);
		if (err)
			return err;
		gpa += here;
		len -= here;
	}
	return 0;
}

static int add_descriptor(struct chain *ret, struct guest_memory *memory, struct vring_desc desc)
{
	bool writable = desc.flags & VRING_DESC_F_WRITE;

	if (!writable && ret->writable_count)
		return CHAIN_BAD; /* virtio 1.2 §2.7.4.2: readable descriptors come first */
	if (writable)
		ret->writable_len += desc.len;
	else
		ret->readable_len += desc.len;
	if (ret->readable_len > UINT32_MAX)
		return CHAIN_BAD;
	return add_range(ret, memory, desc.addr, desc.len, writable);
}

static struct vring_desc load_desc(const struct vring_desc *at)
{
	struct vring_desc desc;

	memcpy(&desc, at, sizeof(desc));
	__asm__ volatile("" ::: "memory"); /* only the copy is checked and used */
	return desc;
}

/* The table may straddle regions, so its entries are fetched one at a time. */
static int walk_indirect(const struct vring_desc *table_desc, struct guest_memory *memory,
			 struct chain *ret)
{
	uint32_t count = table_desc->len / sizeof(struct vring_desc);
	uint32_t next = 0;

	if (!count || table_desc->len % sizeof(struct vring_desc))
		return CHAIN_BAD;
	/* A table may claim 2^28 entries and be a circle of empty ones: bound the walk. */
	for (uint32_t seen = 0; seen < count && seen < VRING_SIZE_MAX; seen++) {
		const struct vring_desc *at;
		struct vring_desc desc;
		int err;

		at = guest_memory_at(memory, table_desc->addr + next * sizeof(desc), sizeof(desc));
		if (!at)
			return CHAIN_BAD;
		desc = load_desc(at);
		if (desc.flags & VRING_DESC_F_INDIRECT)
			return CHAIN_BAD;
		err = add_descriptor(ret, memory, desc);
		if (err)
			return err;
		if (!(desc.flags & VRING_DESC_F_NEXT))
			return 0;
		next = desc.next;
		if (next >= count)
			return CHAIN_BAD;
	}
	return CHAIN_BAD; /* a loop */
}

/* The first descriptor of the chain of the avail entry at `at`. Nothing is checked: use the address
 * for prefetching only. */
static const struct vring_desc *peek(const struct vring *v, struct guest_memory *memory,
				     uint16_t at)
{
	uint16_t head = load16(&v->avail->ring[at & (v->size - 1)]);
	const struct vring_desc *first = &v->desc[head & (v->size - 1)];
	struct vring_desc desc = load_desc(first);

	if (!(desc.flags & VRING_DESC_F_INDIRECT))
		return first;
	return guest_memory_at(memory, desc.addr, sizeof(desc));
}

void vring_prefetch(const struct vring *v, struct guest_memory *memory)
{
	uint16_t available = vring_available(v);
	const struct vring_desc *first;

	if (available > 1)
		__builtin_prefetch(peek(v, memory, (uint16_t)(v->last_avail + 1)));
	if (!available)
		return;
	first = peek(v, memory, v->last_avail);
	if (first)
		__builtin_prefetch(guest_memory_at(memory, load_desc(first).addr, 1));
}

static int walk(struct vring *v, struct guest_memory *memory, struct chain *ret)
{
	uint32_t next = ret->head;

	ret->readable_count = ret->writable_count = 0;
	ret->readable_len = ret->writable_len = 0;
	for (uint32_t seen = 0; seen < v->size; seen++) {
		struct vring_desc desc = load_desc(&v->desc[next]);
		int err;

		if (desc.flags & VRING_DESC_F_INDIRECT) {
			if (!v->indirect || desc.flags & VRING_DESC_F_NEXT)
				return CHAIN_BAD;
			return walk_indirect(&desc, memory, ret);
		}
		err = add_descriptor(ret, memory, desc);
		if (err)
			return err;
		if (!(desc.flags & VRING_DESC_F_NEXT))
			return 0;
		next = desc.next;
		if (next >= v->size)
			return CHAIN_BAD;
	}
	return CHAIN_BAD; /* a loop */
}

int vring_pop(struct vring *v, struct guest_memory *memory, struct chain *ret)
{
	uint16_t available = vring_available(v);
	struct inflight_desc *entry;

	if (!available)
		return 0;
	if (available > v->size)
		return broken(v, "avail index is further ahead than the ring is long");
	ret->head = load16(&v->avail->ring[v->last_avail & (v->size - 1)]);
	if (ret->head >= v->size)
		return broken(v, "avail entry beyond the descriptor table");
	entry = &v->inflight->desc[ret->head];
	if (__atomic_load_n(&entry->inflight, __ATOMIC_RELAXED))
		return broken(v, "avail entry that is in flight already");
	v->last_avail++;
	entry->counter = ++v->counter;
	__atomic_store_n(&entry->inflight, 1, __ATOMIC_RELEASE);
	return vring_repop(v, memory, ret);
}

int vring_repop(struct vring *v, struct guest_memory *memory, struct chain *ret)
{
	int err = walk(v, memory, ret);

	return err ? err : 1;
}

void vring_push(struct vring *v, uint32_t head, uint32_t len)
{
	uint16_t at = (uint16_t)(v->used_idx + v->pending) & (uint16_t)(v->size - 1);
	struct inflight_region *inflight = v->inflight;

	v->used->ring[at] = (struct vring_used_elem){.id = head, .len = len};
	inflight->desc[head].next = load16(&inflight->last_batch_head);
	__atomic_store_n(&inflight->last_batch_head, (uint16_t)head, __ATOMIC_RELEASE);
	v->pending++;
}

static void end_batch(struct vring *v)
{
	struct inflight_region *inflight = v->inflight;
	uint16_t head = load16(&inflight->last_batch_head);

	/* The record may be the front-end's memory: bound every index that is read from it. */
	for (uint16_t i = 0; i < v->pending && head < v->size; i++) {
		__atomic_store_n(&inflight->desc[head].inflight, 0, __ATOMIC_RELEASE);
		head = load16(&inflight->desc[head].next);
	}
	__atomic_store_n(&inflight->used_idx, v->used_idx, __ATOMIC_RELEASE);
	v->pending = 0;
}

/* Does the driver, as far as it has written by now, ask for a call for the replies up to
 * `used_idx`? */
static bool asks_for_call(const struct vring *v, uint16_t used_idx)
{
	if (!v->event_idx)
		return !(load16(&v->avail->flags) & VRING_AVAIL_F_NO_INTERRUPT);
	return index_passed(used_event(v), used_idx, v->signalled);
}

static bool wants_call(struct vring *v)
{
	bool wants;

	BARRIER();
	wants = asks_for_call(v, v->used_idx);
	v->signalled = v->used_idx;
	return wants;
}

bool vring_driver_sleeps(const struct vring *v)
{
	return asks_for_call(v, (uint16_t)(v->used_idx + v->pending));
}

bool vring_publish(struct vring *v)
{
	bool due = v->call_due;

	v->call_due = false;
	if (!v->pending)
		return due;
	v->used_idx = (uint16_t)(v->used_idx + v->pending);
	__atomic_store_n(&v->used->idx, v->used_idx, __ATOMIC_RELEASE);
	end_batch(v);
	return wants_call(v) || due;
}

bool vring_enable_kicks(struct vring *v)
{
	if (v->event_idx)
		set_avail_event(v, v->last_avail);
	else
		store16(&v->used->flags, 0);
	BARRIER();
	return vring_available(v);
}

void vring_disable_kicks(struct vring *v)
{
	/* With EVENT_IDX, kicks stop when the avail event index is not moved on. */
	if (!v->event_idx)
		store16(&v->used->flags, VRING_USED_F_NO_NOTIFY);
}
