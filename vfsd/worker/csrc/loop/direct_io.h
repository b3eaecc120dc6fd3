/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
/*
 * Reads of files opened with O_DIRECT: handed to the kernel (io_submit(2)) a batch at a time, so
 * that many are under way without a thread each.
 *
 * Each says RWF_NOWAIT: what would hold up the loop (metadata to be read, a full device queue, a
 * file system that cannot do it) comes back at once and goes to the thread pool; so does what comes
 * back short, since that may be the end of what was cached. A worker that dies is not gone before
 * the kernel has finished what it had begun, so its successor does not compete with it for the
 * guest's pages. A read that is abandoned because its ring stops, on a disk that answers later
 * still, does fill the pages then: the kernel holds them.
 */
#ifndef VFSD_DIRECT_IO_H
#define VFSD_DIRECT_IO_H

#include "transport/csrc/types.h"
#include "worker/csrc/request/request.h"

struct direct_io;

/* Return: NULL where the kernel has no room for it, or without memory; then nothing is taken. */
struct direct_io *direct_io_create(void);
/* Readable (eventfd) when something has completed since direct_io_clear; -1 for NULL. */
int direct_io_fd(const struct direct_io *d);
/* After a wake-up. Not before: the kernel counts a completion before it writes, so that nothing is
 * missed by whoever looks for completions after this. */
void direct_io_clear(struct direct_io *d);

/* Take a READ of r->fd at `offset` into the pieces data_out. Return: false if it is not taken. It
 * begins with the next direct_io_submit. */
bool direct_io_take(struct direct_io *d, struct request *r, uint64_t offset);
/* Begin what was taken. */
void direct_io_submit(struct direct_io *d);

/* The requests that are over, linked by `next`, with their result: bytes, or -errno. -EAGAIN, and
 * -EOPNOTSUPP for every read of this file: a thread must do it. Never blocks. */
struct request *direct_io_completed(struct direct_io *d);
/* Is there anything to fetch? Cheap: for a polling loop. */
bool direct_io_has_completed(const struct direct_io *d);
/* Requests taken and not yet returned by direct_io_completed. */
uint32_t direct_io_outstanding(const struct direct_io *d);

#endif
