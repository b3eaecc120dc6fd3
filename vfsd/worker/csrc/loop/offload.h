/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
/*
 * Requests that may block leave the loop for a small pool of threads and come back as completions.
 *
 * A thread touches only its request: r->fd, r->file (pinned), r->arg, data_in/data_out. Threads run
 * as root. Threads also close files, because close() of a large deleted file takes long.
 */
#ifndef VFSD_OFFLOAD_H
#define VFSD_OFFLOAD_H

#include "transport/csrc/types.h"
#include "worker/csrc/request/request.h"
#include "worker/csrc/tables/worker_table.h"

struct offload;

/* Threads are started when they are first needed, at most `threads`; fds that are closed are
 * counted in `row`. Return: NULL without memory. */
struct offload *offload_create(uint32_t threads, struct worker_row *row);
/* Readable (eventfd) when completions wait. */
int offload_fd(const struct offload *o);

/*
 * Hand r->run(r) to a thread. Return: OUTCOME_PENDING; or, when there are no threads (threads == 0,
 * or none could be started), the result of r->run(r), which was then called here.
 */
int offload_submit(struct offload *o, struct request *r);
/* The result of this request is not needed any more. If a thread has not begun the request, no
 * thread will, but the request still comes back as completed. */
void offload_abandon(struct offload *o, struct request *r);
/* Close these fds on a thread (or here). */
void offload_close(struct offload *o, const int32_t *fds, uint32_t count);

/* The completed requests, linked by `next`, oldest first; NULL if none. Never blocks. */
struct request *offload_completed(struct offload *o);
/* Are there completed requests to fetch? Cheap: for a polling loop. */
bool offload_has_completed(const struct offload *o);
/* Has a thread run since the last call of this function? */
bool offload_ran(struct offload *o);
/* Requests submitted and not yet returned by offload_completed. */
uint32_t offload_outstanding(const struct offload *o);

#endif
