/* SPDX-License-Identifier: Apache-2.0 */
/*
 * THEORY
 *
 * Actors. We are the driver: the only writer of the descriptor table, of indirect tables and of the
 * avail ring. The device is another process and is not trusted; it writes the used ring and the
 * memory that writable segments point to. One thread at a time uses a struct driver_ring.
 *
 * Free descriptors. The free list lives in `heads`, in our own memory. So do the values that must
 * stay true of a chain while the device has it: its token, the number of its descriptors, and its
 * room for writing. Nothing that the device could have changed is read back from the descriptor
 * table.
 *
 * Invariants.
 * - avail_idx - last_used == outstanding <= size: no slot of a ring is reused before it was taken.
 * - A head is outstanding from driver_ring_add to driver_ring_take. A used element breaks the ring
 *   if its id is not an outstanding head or its length exceeds the chain's room; so does a used
 *   index that is further ahead than the number of outstanding chains. Linux does the same ("id N
 *   is not a head!") for the same reason: to take such an element would free descriptors twice.
 *
 * Ordering. Descriptors and avail entries are stored before avail.idx (release); used.idx is loaded
 * (acquire) before the elements it covers, and these before what the device wrote. Two places need
 * a full barrier, since each side stores its own index and then loads the other's (virtio 1.2
 * §2.7.7.2, §2.7.13.4.1): publishing before deciding on a kick, and asking for calls before looking
 * at used.idx for the last time.
 *
 * Calls. With EVENT_IDX, calls are off whenever used_event is not moved on: the device calls once,
 * when its index passes used_event.
 */
#include <linux/virtio_ring.h>

#include "frontend/csrc/driver_ring.h"
#include "transport/csrc/ring_words.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define BARRIER() __atomic_thread_fence(__ATOMIC_SEQ_CST)

_Static_assert(sizeof(struct vring_desc) == DRIVER_RING_DESC_BYTES, "");

/* What we know of a descriptor. All fields but `next` are used for the head of a chain only. */
struct driver_head {
	uint32_t token;
	uint32_t room;	/* bytes that the device may write */
	uint16_t count; /* descriptors of the ring in this chain; 0: not outstanding */
	uint16_t next;	/* the next descriptor of the free list, or of the chain */
};

/* The address of `len` bytes at an offset of guest memory; NULL if they lie outside or are not
 * aligned. */
static void *at_offset(const struct driver_memory *memory, uint64_t offset, uint64_t len,
		       uint64_t align)
{
	if (offset > memory->size || len > memory->size - offset || offset & (align - 1))
		return NULL;
	return memory->addr + offset;
}

static uint64_t gpa_of(const struct driver_ring *r, const void *addr)
{
	return r->memory.gpa + (uint64_t)((const uint8_t *)addr - r->memory.addr);
}

int driver_ring_init(struct driver_ring *r, const struct driver_ring_config *config)
{
	uint32_t size = config->size;
	struct split_ring areas = split_ring_areas(size, true);

	memset(r, 0, sizeof(*r));
	if (!size || size > VRING_SIZE_MAX || size & (size - 1))
		return -EINVAL;
	r->memory = config->memory;
	r->desc = at_offset(&r->memory, config->desc, areas.desc, 16);
	r->avail = at_offset(&r->memory, config->avail, areas.avail, 2);
	r->used = at_offset(&r->memory, config->used, areas.used, 4);
	if (!r->desc || !r->avail || !r->used)
		return -EINVAL;
	r->heads = calloc(size, sizeof(*r->heads));
	if (!r->heads)
		return -ENOMEM;
	for (uint32_t i = 0; i < size; i++)
		r->heads[i].next = (uint16_t)(i + 1);
	r->size = r->free_count = size;
	r->event_idx = config->event_idx;
	r->kick_fd = config->kick_fd;
	return 0;
}

void driver_ring_deinit(struct driver_ring *r)
{
	free(r->heads);
	r->heads = NULL;
}

static struct vring_desc describe(const struct driver_ring *r, const struct driver_chain *chain,
				  uint32_t i)
{
	uint32_t last = chain->readable + chain->writable - 1;

	return (struct vring_desc){
		.addr = gpa_of(r, chain->segments[i].addr),
		.len = chain->segments[i].len,
		.flags = (i >= chain->readable ? VRING_DESC_F_WRITE : 0) |
			 (i < last ? VRING_DESC_F_NEXT : 0),
	};
}

static void write_indirect(struct driver_ring *r, const struct driver_chain *chain, uint16_t head)
{
	uint32_t count = chain->readable + chain->writable;
	struct vring_desc *table = chain->table;

	for (uint32_t i = 0; i < count; i++) {
		table[i] = describe(r, chain, i);
		table[i].next = i + 1 < count ? (uint16_t)(i + 1) : 0;
	}
	r->desc[head] = (struct vring_desc){
		.addr = gpa_of(r, table),
		.len = count * (uint32_t)sizeof(*table),
		.flags = VRING_DESC_F_INDIRECT,
	};
}

static void write_direct(struct driver_ring *r, const struct driver_chain *chain, uint16_t head)
{
	uint32_t count = chain->readable + chain->writable;
	uint16_t at = head;

	for (uint32_t i = 0; i < count; i++) {
		r->desc[at] = describe(r, chain, i);
		if (i + 1 < count)
			r->desc[at].next = r->heads[at].next;
		at = r->heads[at].next;
	}
}

/* Take `count` descriptors off the free list; they stay linked to each other. */
static uint16_t take_free(struct driver_ring *r, uint32_t count)
{
	uint16_t head = r->free_head;

	for (uint32_t i = 0; i < count; i++)
		r->free_head = r->heads[r->free_head].next;
	r->free_count -= count;
	return head;
}

static void give_back(struct driver_ring *r, uint16_t head)
{
	uint32_t count = r->heads[head].count;
	uint16_t tail = head;

	for (uint32_t i = 1; i < count; i++)
		tail = r->heads[tail].next;
	r->heads[tail].next = r->free_head;
	r->heads[head].count = 0;
	r->free_head = head;
	r->free_count += count;
}

int driver_ring_add(struct driver_ring *r, const struct driver_chain *chain)
{
	uint32_t segments = chain->readable + chain->writable;
	uint32_t count = chain->table ? 1 : segments;
	uint64_t room = 0;
	uint16_t head;

	if (count > r->free_count)
		return -ENOSPC;
	for (uint32_t i = chain->readable; i < segments; i++)
		room += chain->segments[i].len;
	head = take_free(r, count);
	if (chain->table)
		write_indirect(r, chain, head);
	else
		write_direct(r, chain, head);
	r->heads[head].token = chain->token;
	r->heads[head].room = (uint32_t)room;
	r->heads[head].count = (uint16_t)count;
	store16(&r->avail->ring[r->avail_idx & (r->size - 1)], head);
	r->avail_idx++;
	r->outstanding++;
	return 0;
}

static bool wants_kick(const struct driver_ring *r, uint16_t old)
{
	if (r->event_idx) /* avail_event lies after the used ring */
		return index_passed(load16(&r->used->ring[r->size]), r->published, old);
	return !(load16(&r->used->flags) & VRING_USED_F_NO_NOTIFY);
}

int driver_ring_kick(struct driver_ring *r)
{
	uint16_t old = r->published;
	uint64_t one = 1;

	if (old == r->avail_idx)
		return 0;
	r->published = r->avail_idx;
	__atomic_store_n(&r->avail->idx, r->published, __ATOMIC_RELEASE);
	BARRIER();
	if (!wants_kick(r, old))
		return 0;
	/* write() fails only if the counter is full: then the device has been kicked already. */
	(void)!write(r->kick_fd, &one, sizeof(one));
	return 1;
}

bool driver_ring_is_used(const struct driver_ring *r)
{
	return __atomic_load_n(&r->used->idx, __ATOMIC_ACQUIRE) != r->last_used;
}

static int broken(struct driver_ring *r, const char *reason)
{
	r->reason = reason;
	return DRIVER_RING_BROKEN;
}

int driver_ring_take(struct driver_ring *r, struct driver_used *ret)
{
	uint16_t ready =
		(uint16_t)(__atomic_load_n(&r->used->idx, __ATOMIC_ACQUIRE) - r->last_used);
	const struct vring_used_elem *element = &r->used->ring[r->last_used & (r->size - 1)];
	uint32_t id, len;

	if (!ready)
		return 0;
	if (ready > (uint16_t)(r->published - r->last_used))
		return broken(r, "used index is ahead of what was offered");
	id = __atomic_load_n(&element->id, __ATOMIC_RELAXED);
	len = __atomic_load_n(&element->len, __ATOMIC_RELAXED);
	if (id >= r->size || !r->heads[id].count)
		return broken(r, "used element with an id that is not outstanding");
	if (len > r->heads[id].room)
		return broken(r, "used element longer than its chain has room");
	*ret = (struct driver_used){.token = r->heads[id].token, .len = len};
	give_back(r, (uint16_t)id);
	r->last_used++;
	r->outstanding--;
	return 1;
}

bool driver_ring_enable_calls(struct driver_ring *r)
{
	if (r->event_idx) /* used_event lies after the avail ring */
		store16(&r->avail->ring[r->size], r->last_used);
	else
		store16(&r->avail->flags, 0);
	BARRIER();
	return driver_ring_is_used(r);
}

void driver_ring_disable_calls(struct driver_ring *r)
{
	if (!r->event_idx)
		store16(&r->avail->flags, VRING_AVAIL_F_NO_INTERRUPT);
}
