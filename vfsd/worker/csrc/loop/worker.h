/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A worker as Python sees it: Python creates the worker once, and calls the other functions between
 * two calls of serve(). All state is in one struct worker; no function here logs, exits or calls
 * Python.
 */
#ifndef VFSD_WORKER_H
#define VFSD_WORKER_H

#include "transport/csrc/types.h"
#include "worker/csrc/fs/refusal.h"
#include "worker/csrc/loop/worker_config.h"

struct worker;

/* Return: NULL when out of memory or without an eventfd. There is no function to destroy a worker:
 * the worker ends with its process. */
struct worker *worker_create(const struct worker_config *config);

/* Ring `index` after an adopt: the next avail index (what GET_VRING_BASE answers), or -EINVAL
 * (not a ring of this worker, or never started). */
int32_t worker_ring_base(const struct worker *w, uint32_t index);
/* The reason why ring `index` does not run although it should (addresses outside of guest memory,
 * …); NULL if there is nothing wrong. */
const char *worker_ring_error(const struct worker *w, uint32_t index);

/* After SERVE_BROKEN: the index of a broken ring that this function has not returned yet, or -1
 * when there is none. The ring stays stopped until it is started again. worker_ring_error returns
 * the reason. err_fd has been written. */
int32_t worker_broken_ring(struct worker *w);

/* After SERVE_CONTROL: fetch the refusal that happened, if any. Return: true, once per refusal,
 * with the refusal in *ret. */
bool worker_take_refusal(struct worker *w, struct refusal *ret);

/* After SERVE_CONTROL: the fullness to log (enum inode_fullness), once. */
uint32_t worker_take_fullness(struct worker *w);

/* After SERVE_UNSHARED, which comes at most once per UNSHARED_NS. Return: the number of requests
 * since the last call that pointed outside of guest memory; *ret_gpa is a guest address of one of
 * them. These requests were answered with EIO. */
uint64_t worker_unshared(struct worker *w, uint64_t *ret_gpa);

/* After SERVE_COLD: the op waiting (FUSE_INIT, FUSE_DESTROY) with its argument bytes (a private
 * copy, valid until the reply). Return: the opcode, or 0 when there is none. */
uint32_t worker_cold_request(struct worker *w, const uint8_t **ret_arg, uint32_t *ret_len);
/* Answer the op that waits: error is 0 or a negative errno. */
void worker_cold_reply(struct worker *w, int32_t error, const uint8_t *reply, uint32_t len);

/* Begin a new session (INIT): close everything that the old session had open; afterwards the tables
 * hold only the root. */
void worker_session_begin(struct worker *w, uint32_t minor, uint64_t flags, uint64_t offered);
/* End the session (DESTROY). */
void worker_session_end(struct worker *w);

#endif
