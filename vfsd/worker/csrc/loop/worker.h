/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A worker as Python sees it: made once, and asked between two calls of serve(). Everything hangs
 * off one struct worker; nothing here logs, exits or calls Python.
 */
#ifndef VFSD_WORKER_H
#define VFSD_WORKER_H

#include "transport/csrc/types.h"
#include "worker/csrc/fs/refusal.h"
#include "worker/csrc/loop/worker_config.h"

struct worker;

/* Return: NULL when out of memory or without an eventfd. There is no destroy: a worker is a
 * process. */
struct worker *worker_create(const struct worker_config *config);

/* Ring `index` after an adopt: the next avail index (what GET_VRING_BASE answers), or -EINVAL
 * (not a ring of this worker, or never started). */
int32_t worker_ring_base(const struct worker *w, uint32_t index);
/* Why ring `index` does not run although it should (addresses outside memory, …); NULL: it is fine.
 */
const char *worker_ring_error(const struct worker *w, uint32_t index);

/* After SERVE_BROKEN: the ring's index, or -1 when there is none (left). It stays stopped until it
 * is started anew. The reason is worker_ring_error's. err_fd has been written. */
int32_t worker_broken_ring(struct worker *w);

/* After SERVE_CONTROL. Return: true once, with *ret, when there was a refusal. */
bool worker_take_refusal(struct worker *w, struct refusal *ret);

/* Likewise: enum inode_fullness, once. */
uint32_t worker_take_fullness(struct worker *w);

/* After SERVE_UNSHARED, once in a while at most: how many requests named memory outside of guest
 * memory since the last time, and a guest address that one of them named. They were answered with
 * EIO. */
uint64_t worker_unshared(struct worker *w, uint64_t *ret_gpa);

/* After SERVE_COLD: the op waiting (FUSE_INIT, FUSE_DESTROY) with its argument bytes (a private
 * copy, valid until the reply). Return: the opcode, or 0 when there is none. */
uint32_t worker_cold_request(struct worker *w, const uint8_t **ret_arg, uint32_t *ret_len);
/* Answer it: error is 0 or a negative errno. */
void worker_cold_reply(struct worker *w, int32_t error, const uint8_t *reply, uint32_t len);

/* A new session (INIT): everything the old one had open is closed, the tables hold only the root.
 */
void worker_session_begin(struct worker *w, uint32_t minor, uint64_t flags, uint64_t offered);
/* DESTROY. */
void worker_session_end(struct worker *w);

/* Return true once every fd this worker has retired is closed; for tests and idle moments. */
bool worker_idle_work(struct worker *w);

#endif
