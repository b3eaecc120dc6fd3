/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/csrc/loop/direct_io.h"

#include <errno.h>
#include <linux/aio_abi.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

enum {
	AT_A_TIME = 64, /* events fetched */
	CAPACITY = 256, /* requests under way */
};

#define RING_MAGIC UINT32_C(0xa10a10a1)

/* The head of the completion ring. The kernel maps the ring into the process; the context id is its
 * address. */
struct completion_ring {
	uint32_t id;
	uint32_t capacity;
	uint32_t head;
	uint32_t tail;
	uint32_t magic;
};

struct direct_io {
	aio_context_t context;
	const struct completion_ring *ring;
	int event_fd;
	uint32_t outstanding;
	uint32_t taken; /* number of `iocbs` that are taken and not yet begun */
	struct iocb *iocbs[CAPACITY];
	struct request *refused; /* refused by io_submit: to be returned as completed */
};

static int begin(struct direct_io *d)
{
	if (syscall(SYS_io_setup, CAPACITY, &d->context) < 0)
		return -errno;
	d->ring = (const struct completion_ring *)d->context;
	/* On failure the context stays: the kernel destroys it when the process ends. */
	return d->ring->magic == RING_MAGIC ? 0 : -EOPNOTSUPP;
}

struct direct_io *direct_io_create(void)
{
	struct direct_io *d = calloc(1, sizeof(*d));

	if (!d)
		return NULL;
	d->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (d->event_fd >= 0 && !begin(d))
		return d;
	if (d->event_fd >= 0)
		close(d->event_fd);
	free(d);
	return NULL;
}

int direct_io_fd(const struct direct_io *d)
{
	return d ? d->event_fd : -1;
}

void direct_io_clear(struct direct_io *d)
{
	if (d)
		(void)!read(d->event_fd, &(uint64_t){0}, sizeof(uint64_t));
}

bool direct_io_take(struct direct_io *d, struct request *r, uint64_t offset)
{
	if (!d || d->outstanding == CAPACITY)
		return false;
	r->iocb = (struct iocb){
		.aio_data = (uintptr_t)r,
		.aio_rw_flags = RWF_NOWAIT,
		.aio_lio_opcode = IOCB_CMD_PREADV,
		.aio_fildes = (uint32_t)r->fd,
		.aio_buf = (uintptr_t)r->data_out,
		.aio_nbytes = r->data_out_count,
		.aio_offset = (int64_t)offset,
		.aio_flags = IOCB_FLAG_RESFD,
		.aio_resfd = (uint32_t)d->event_fd,
	};
	d->iocbs[d->taken++] = &r->iocb;
	d->outstanding++;
	return true;
}

/* The kernel has refused to begin this read: a thread will do it. */
static void refuse(struct direct_io *d, struct iocb *iocb, int error)
{
	struct request *r = (struct request *)(uintptr_t)iocb->aio_data;

	r->result = error == EOPNOTSUPP ? -EOPNOTSUPP : -EAGAIN;
	r->next = d->refused;
	d->refused = r;
}

void direct_io_submit(struct direct_io *d)
{
	uint32_t begun = 0;

	if (!d || !d->taken)
		return;
	while (begun < d->taken) {
		long count = syscall(SYS_io_submit, d->context, (long)(d->taken - begun),
				     d->iocbs + begun);

		if (count <= 0) /* the first of these reads cannot be begun */
			refuse(d, d->iocbs[begun], count ? errno : EAGAIN);
		begun += count > 0 ? (uint32_t)count : 1;
	}
	d->taken = 0;
}

bool direct_io_has_completed(const struct direct_io *d)
{
	if (!d || !d->outstanding)
		return false;
	return d->refused || __atomic_load_n(&d->ring->tail, __ATOMIC_ACQUIRE) !=
				     __atomic_load_n(&d->ring->head, __ATOMIC_RELAXED);
}

struct request *direct_io_completed(struct direct_io *d)
{
	struct io_event events[AT_A_TIME];
	struct timespec now = {0};
	struct request *first;
	long count;

	if (!direct_io_has_completed(d))
		return NULL;
	first = d->refused;
	d->refused = NULL;
	for (struct request *r = first; r; r = r->next)
		d->outstanding--;
	do {
		count = syscall(SYS_io_getevents, d->context, 0L, (long)AT_A_TIME, events, &now);
		for (long i = 0; i < count; i++) {
			struct request *r = (struct request *)(uintptr_t)events[i].data;

			r->result = (int)events[i].res;
			r->next = first;
			first = r;
			d->outstanding--;
		}
	} while (count == AT_A_TIME);
	return first;
}

uint32_t direct_io_outstanding(const struct direct_io *d)
{
	return d ? d->outstanding : 0;
}
