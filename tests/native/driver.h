/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A driver of one split virtqueue, written against virtio 1.2 §2.7 and not against vring.c: it has
 * a page of its own for each part of the ring, and a test may make it misbehave.
 */
#ifndef VFSD_TEST_DRIVER_H
#define VFSD_TEST_DRIVER_H

#include "check.h"

#include "transport/csrc/vring.h"

enum {
	DRIVER_NEXT = 1,
	DRIVER_WRITE = 2,
	DRIVER_INDIRECT = 4,
	DRIVER_EVENT_IDX = 1 << 29,
	DRIVER_INDIRECT_DESC = 1 << 28,

	DRIVER_DESC = 0x10000,
	DRIVER_AVAIL = 0x20000,
	DRIVER_USED = 0x30000,
	DRIVER_DATA = 0x100000, /* guest physical, as are all of these */
	DRIVER_BYTES = 0x400000,
	DRIVER_UVA = 0x10000000, /* uva - gpa */
};

struct driver_desc {
	uint64_t addr;
	uint32_t len;
	uint16_t flags;
	uint16_t next;
};

struct driver {
	uint32_t size;
	int fd;
	uint8_t *ram;
	struct driver_desc *desc;
	uint16_t *avail; /* flags, idx, ring[size], used_event */
	uint16_t *used;	 /* flags, idx, {u32 id, len}[size], avail_event */
	uint16_t next_avail;
	uint16_t last_used;
	struct guest_memory memory; /* what the device sees */
	struct vring vring;
	struct inflight_region *inflight;
	struct chain chain;
};

static inline struct device_region driver_region(const struct driver *d)
{
	return (struct device_region){.uva = DRIVER_UVA, .size = DRIVER_BYTES, .fd = d->fd};
}

static inline struct device_vring driver_vring(const struct driver *d)
{
	return (struct device_vring){.desc = DRIVER_UVA + DRIVER_DESC,
				     .avail = DRIVER_UVA + DRIVER_AVAIL,
				     .used = DRIVER_UVA + DRIVER_USED,
				     .size = d->size,
				     .kick_fd = -1,
				     .call_fd = -1,
				     .err_fd = -1,
				     .inflight_fd = -1};
}

/* Guest memory, with an empty ring in it. */
static inline void driver_init(struct driver *d, uint32_t size)
{
	memset(d, 0, sizeof(*d));
	d->size = size;
	d->fd = make_memfd(DRIVER_BYTES);
	d->ram = mmap(NULL, DRIVER_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, d->fd, 0);
	CHECK(d->ram != MAP_FAILED);
	d->desc = (void *)(d->ram + DRIVER_DESC);
	d->avail = (void *)(d->ram + DRIVER_AVAIL);
	d->used = (void *)(d->ram + DRIVER_USED);
}

/* A device takes the ring up (again). Return: the number of heads in flight. */
static inline uint32_t driver_attach(struct driver *d, uint64_t features, uint16_t *ret_heads)
{
	struct device_vring device = driver_vring(d);

	memset(&d->vring, 0, sizeof(d->vring));
	CHECK(!vring_map(&d->vring, &device, &d->memory, features));
	return vring_attach(&d->vring, d->inflight, ret_heads);
}

/* Memory, a ring in it, and a device that has just begun. */
static inline void driver_start(struct driver *d, uint32_t size, uint64_t features)
{
	struct device_region region;
	uint16_t *heads = calloc(size, sizeof(*heads));

	driver_init(d, size);
	region = driver_region(d);
	CHECK(!guest_memory_update(&d->memory, &region, 1));
	d->inflight = calloc(1, inflight_region_bytes(size));
	CHECK(heads && d->inflight);
	CHECK_EQUAL(driver_attach(d, features, heads), 0);
	free(heads);
	CHECK(vring_publish(&d->vring)); /* a call is due after an attach */
}

static inline void driver_end(struct driver *d)
{
	guest_memory_clear(&d->memory);
	guest_memory_reap(&d->memory);
	free(d->inflight);
	munmap(d->ram, DRIVER_BYTES);
	close(d->fd);
}

static inline void driver_set(struct driver *d, uint32_t at, uint64_t addr, uint32_t len,
			      uint16_t flags, uint16_t next)
{
	d->desc[at] = (struct driver_desc){addr, len, flags, next};
}

/* Offer a head; any number can be offered. */
static inline void driver_offer(struct driver *d, uint16_t head)
{
	d->avail[2 + d->next_avail % d->size] = head;
	__atomic_store_n(&d->avail[1], ++d->next_avail, __ATOMIC_RELEASE);
}

static inline uint16_t driver_used_idx(const struct driver *d)
{
	return __atomic_load_n(&d->used[1], __ATOMIC_ACQUIRE);
}

/* Take the next completion. Return: false if there is no completion. */
static inline bool driver_take(struct driver *d, uint32_t *ret_id, uint32_t *ret_len)
{
	uint32_t *entry = (uint32_t *)(void *)(d->used + 2) + d->last_used % d->size * 2;

	if (driver_used_idx(d) == d->last_used)
		return false;
	d->last_used++;
	*ret_id = entry[0];
	*ret_len = entry[1];
	return true;
}

static inline void driver_set_used_event(struct driver *d, uint16_t value)
{
	__atomic_store_n(&d->avail[2 + d->size], value, __ATOMIC_SEQ_CST);
}

static inline uint16_t driver_avail_event(const struct driver *d)
{
	return __atomic_load_n(&d->used[2 + d->size * 4], __ATOMIC_SEQ_CST);
}

static inline int driver_pop(struct driver *d)
{
	vring_prefetch(&d->vring,
		       &d->memory); /* whatever the ring holds, this function only reads */
	return vring_pop(&d->vring, &d->memory, &d->chain);
}

#endif
