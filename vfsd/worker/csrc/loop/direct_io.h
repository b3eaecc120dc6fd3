/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
/*
 * Reads of files opened with O_DIRECT are handed to the kernel (io_submit(2)) in batches, so that
 * many reads can be under way without a thread for each.
 *
 * Each read has the flag RWF_NOWAIT: a read that would block the loop (metadata that must be read,
 * a full device queue, a file system without support for the flag) comes back at once and goes to
 * the thread pool. A short read also goes to the thread pool, since it may have met only the end of
 * the cached data. A process that dies is not gone before the kernel has finished the reads that it
 * had begun, so the next worker does not compete with a dead worker for the guest's pages. A read
 * that is abandoned because its ring stops still fills the guest's pages when the disk answers
 * later: the kernel holds those pages.
 */
#ifndef VFSD_DIRECT_IO_H
#define VFSD_DIRECT_IO_H

#include "transport/csrc/types.h"
#include "worker/csrc/request/request.h"

struct direct_io;

/* Return: NULL if the kernel has no room for another context, or without memory. With NULL,
 * direct_io_take takes no reads. */
struct direct_io *direct_io_create(void);
/* Readable (eventfd) when something has completed since direct_io_clear; -1 for NULL. */
int direct_io_fd(const struct direct_io *d);
/* Call this after a wake-up, and look for completions afterwards: the kernel counts a completion
 * before it writes to the eventfd, so none is missed in that order. */
void direct_io_clear(struct direct_io *d);

/* Take a READ of r->fd at `offset` into the pieces data_out. Return: false if the read is not
 * taken. The read begins with the next direct_io_submit. */
bool direct_io_take(struct direct_io *d, struct request *r, uint64_t offset);
/* Begin the reads that were taken. */
void direct_io_submit(struct direct_io *d);

/* The requests that are over, linked by `next`, with their result: bytes, or -errno. -EAGAIN: a
 * thread must do this read. -EOPNOTSUPP: a thread must do every read of this file. Never blocks. */
struct request *direct_io_completed(struct direct_io *d);
/* Is there anything to fetch? Cheap: for a polling loop. */
bool direct_io_has_completed(const struct direct_io *d);
/* Requests taken and not yet returned by direct_io_completed. */
uint32_t direct_io_outstanding(const struct direct_io *d);

#endif
