/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The shared tables with several workers on them, in memory that forked children share. An fd is
 * only a number here, with a byte that says whether it is open: so a close too early, a close too
 * many and a leak are seen at once.
 */
#ifndef VFSD_TEST_TABLES_H
#define VFSD_TEST_TABLES_H

#include "check.h"

#include "worker/csrc/tables/file_table.h"
#include "worker/csrc/tables/inode_table.h"
#include "worker/csrc/tables/owner_lock.h"

#include <fcntl.h>
#include <sys/stat.h>

enum {
	WORKERS = 4,
	FDS_MAX = 1 << 26,
	FD_FIRST = 1000, /* smaller numbers are real fds */
	MOUNT = 77,
};

enum fd_state {
	FD_UNUSED,
	FD_OPEN,
	FD_CLOSED,
};

struct bench {
	struct inode_table *inodes;
	struct file_table *files;
	struct worker_table *workers;
	struct reclaim *reclaims; /* one for each worker */
	uint8_t *fd_states;
	uint32_t *fd_keys; /* the file that the fd refers to */
	uint32_t *next_fd;
	uint32_t inode_capacity, file_capacity;
};

static struct bench *repaid; /* for repay_with_path: the bench that was set up last */

static inline int repay_with_path(void *worker, uint32_t slot);

/* A worker begins; repay is called with the worker's number. */
static inline void bench_start(struct bench *b, uint32_t worker)
{
	reclaim_init(&b->reclaims[worker], b->workers, worker);
	b->reclaims[worker].repay_context = (void *)(uintptr_t)worker;
	b->reclaims[worker].repay = repay_with_path;
	repaid = b;
}

static inline void bench_init(struct bench *b, uint32_t inode_capacity, uint32_t file_capacity)
{
	int root = open("/tmp", O_PATH | O_DIRECTORY | O_CLOEXEC);

	b->inode_capacity = inode_capacity;
	b->file_capacity = file_capacity;
	b->inodes = make_shared(inode_table_bytes(inode_capacity));
	b->files = make_shared(file_table_bytes(file_capacity));
	b->workers = make_shared(sizeof(struct worker_table));
	b->reclaims = make_shared(WORKERS * sizeof(struct reclaim));
	b->fd_states = make_shared(FDS_MAX);
	b->fd_keys = make_shared(FDS_MAX * sizeof(*b->fd_keys));
	b->next_fd = make_shared(sizeof(*b->next_fd));
	*b->next_fd = FD_FIRST;
	worker_table_init(b->workers, WORKERS);
	CHECK(root >= 0);
	CHECK(!inode_table_init(b->inodes, inode_capacity, root));
	file_table_init(b->files, file_capacity);
	for (uint32_t i = 0; i < WORKERS; i++)
		bench_start(b, i);
}

static inline void bench_end(struct bench *b)
{
	int32_t root;

	CHECK(inode_table_fds(b->inodes, &root, 1) >= 1);
	close(root);
	munmap(b->inodes, inode_table_bytes(b->inode_capacity));
	munmap(b->files, file_table_bytes(b->file_capacity));
	munmap(b->workers, sizeof(struct worker_table));
	munmap(b->reclaims, WORKERS * sizeof(struct reclaim));
	munmap(b->fd_states, FDS_MAX);
	munmap(b->fd_keys, FDS_MAX * sizeof(*b->fd_keys));
	munmap(b->next_fd, sizeof(*b->next_fd));
}

static inline struct inode_key key(uint32_t number)
{
	return (struct inode_key){.ino = number, .mnt_id = MOUNT, .type = S_IFREG};
}

static inline int fd_open(struct bench *b, uint32_t of)
{
	uint32_t fd = __atomic_fetch_add(b->next_fd, 1, __ATOMIC_RELAXED);

	CHECK(fd < FDS_MAX);
	__atomic_store_n(&b->fd_keys[fd], of, __ATOMIC_RELAXED);
	__atomic_store_n(&b->fd_states[fd], FD_OPEN, __ATOMIC_RELEASE);
	return (int)fd;
}

static inline void fd_close(struct bench *b, int fd)
{
	CHECK(fd >= FD_FIRST);
	CHECK_EQUAL(__atomic_exchange_n(&b->fd_states[fd], FD_CLOSED, __ATOMIC_ACQ_REL), FD_OPEN);
}

static inline bool fd_is_open(struct bench *b, int fd)
{
	return __atomic_load_n(&b->fd_states[fd], __ATOMIC_ACQUIRE) == FD_OPEN;
}

/* A worker that uses an fd must find it open, and open on the file that the worker means. */
static inline void fd_use(struct bench *b, int fd, uint32_t of)
{
	CHECK(fd >= FD_FIRST && fd < FDS_MAX);
	CHECK(fd_is_open(b, fd));
	CHECK_EQUAL(__atomic_load_n(&b->fd_keys[fd], __ATOMIC_RELAXED), of);
}

/* Repay as lending_repay does. */
static inline int repay_with_path(void *worker, uint32_t slot)
{
	struct open_file *file = file_table_at(repaid->files, slot);
	struct inode *inode = inode_table_get(repaid->inodes, file->nodeid);
	int path;

	if (inode && __atomic_load_n(&inode->lender, __ATOMIC_ACQUIRE) == slot) {
		path = fd_open(repaid,
			       __atomic_load_n(&repaid->fd_keys[file->fd], __ATOMIC_RELAXED));
		if (!inode_table_repay(repaid->inodes, (uint32_t)(uintptr_t)worker, file->nodeid,
				       slot, path))
			fd_close(repaid, path);
	}
	return file->keep_fd ? -1 : file->fd;
}

/* Close the fds that may be closed. */
static inline void collect(struct bench *b, uint32_t worker)
{
	struct reclaim *r = &b->reclaims[worker];

	reclaim_collect(r);
	for (uint32_t i = 0; i < r->close_count; i++)
		fd_close(b, r->close[i]);
	r->close_count = 0;
}

static inline void quiesce(struct bench *b, uint32_t worker)
{
	reclaim_quiescent(&b->reclaims[worker]);
	collect(b, worker);
}

/* A lookup as entry.c does it. Return: the nodeid, or 0 if the table is full. */
static inline uint64_t lookup(struct bench *b, uint32_t worker, uint32_t number)
{
	struct inode *inode = inode_table_acquire(b->inodes, worker, key(number), 0);
	bool used = true;
	int fd;

	if (!inode) {
		fd = fd_open(b, number);
		inode = inode_table_insert(b->inodes, worker, key(number), fd, 0, NULL, &used);
		if (!used)
			fd_close(b, fd);
	}
	return inode ? inode_nodeid(b->inodes, inode) : 0;
}

static inline void forget(struct bench *b, uint32_t worker, uint64_t nodeid, uint64_t count)
{
	inode_table_forget(b->inodes, &b->reclaims[worker], nodeid, count);
}

static inline uint64_t open_file(struct bench *b, uint32_t worker, uint64_t nodeid, uint32_t number)
{
	struct open_file *file = file_table_reserve(b->files, worker);

	return file ? file_table_publish(b->files, file, nodeid, fd_open(b, number), 0) : 0;
}

#endif
