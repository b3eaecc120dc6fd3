/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The clock over the inode table: what was not used since its last round loses its fd. An inode
 * that has no handle yet gets one before: from the kernel, or signed by the broker, which is asked
 * for many at once.
 *
 * Some inodes can have no handle: files that were deleted while the guest knew them, above all. A
 * guest can hold more of them than there should be fds, and each turn would look for others in
 * vain. So a search that finds little ends early, and the next one waits for a while. Where fds
 * become scarce meanwhile, each new inode is signed for itself (entry.c).
 */
#include "worker/csrc/inode_trim.h"

#include "worker/csrc/inode_fd.h"

enum {
	TRIM_LOOKS = 16384, /* slots looked at in one go … */
	TRIM_CLOSES = 512,  /* … and fds closed */
	TRIM_BELOW = 128, /* so many fewer than allowed are left: signatures are for many at once */
	TRIM_LITTLE = HANDLE_BATCH / 2, /* of a batch, or of all looks, is not worth the next one */
	TRIM_PAUSE_NS = 1000 * 1000,
};

/* Inodes that wait for a signature, as they were seen. */
struct batch {
	uint32_t count;
	struct inode *inodes[HANDLE_BATCH];
	uint32_t generations[HANDLE_BATCH];
	int fds[HANDLE_BATCH];
};

static bool has_handle(const struct inode *inode)
{
	return __atomic_load_n(&inode->handle.len, __ATOMIC_ACQUIRE);
}

static bool get_own_handle(struct worker *w, struct inode *inode)
{
	uint32_t generation = __atomic_load_n(&inode->generation, __ATOMIC_ACQUIRE);
	int fd = __atomic_load_n(&inode->fd, __ATOMIC_ACQUIRE);
	struct fhandle handle;

	if (fd < 0 || !inode_fd_uses_handles(w, inode->mnt_id) || fhandle_get(fd, "", &handle))
		return false;
	inode_table_give_handle(w->inodes, w->slot, inode, generation, fd, 0, &handle);
	return true;
}

static bool drop(struct worker *w, struct inode *inode)
{
	return inode_table_drop_fd(w->inodes, &w->reclaim, inode);
}

/* Have a batch signed and close its fds. Return: how many were closed. */
static uint32_t sign_and_drop(struct worker *w, struct batch *batch)
{
	struct handle_signature signatures[HANDLE_BATCH];
	uint32_t count = batch->count, closes = 0;

	batch->count = 0;
	if (!count || handle_client_sign(&w->handles, batch->fds, count, signatures))
		return 0;
	for (uint32_t i = 0; i < count; i++) {
		struct fhandle handle = handle_of_signature(&signatures[i]);

		if (signatures[i].error)
			continue;
		inode_table_give_handle(w->inodes, w->slot, batch->inodes[i], batch->generations[i],
					batch->fds[i], signatures[i].btime, &handle);
		closes += drop(w, batch->inodes[i]);
	}
	return closes;
}

static void add(struct batch *batch, struct inode *inode)
{
	uint32_t generation = __atomic_load_n(&inode->generation, __ATOMIC_ACQUIRE);
	int fd = __atomic_load_n(&inode->fd, __ATOMIC_ACQUIRE);

	if (fd < 0)
		return;
	batch->inodes[batch->count] = inode;
	batch->generations[batch->count] = generation;
	batch->fds[batch->count++] = fd;
}

static uint64_t smaller(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

/* Return: how many fds are to be closed. Those that wait for that are open still. */
static uint64_t excess(const struct worker *w)
{
	uint64_t held = inode_table_held(w->inodes), waiting, most;

	if (held <= w->inode_fds_max)
		return 0;
	waiting = inode_fd_unclosed(w);
	most = smaller(TRIM_CLOSES, w->fds_max / 4);
	return waiting < most ? smaller(held - w->inode_fds_max + TRIM_BELOW, most - waiting) : 0;
}

/* Apart, since a worker comes to inode_trim() after every turn and seldom comes to this. */
static __attribute__((noinline, cold)) void trim(struct worker *w, uint64_t wanted)
{
	bool sign = w->policy.file_handles == FILE_HANDLES_SIGNED;
	struct batch batch = {0};
	uint64_t closes = 0;

	for (uint32_t looks = 0; looks < TRIM_LOOKS && closes < wanted; looks++) {
		struct inode *inode = inode_table_next_idle(w->inodes);

		if (!inode)
			continue;
		if (has_handle(inode) || (!sign && get_own_handle(w, inode)))
			closes += drop(w, inode);
		else if (sign && inode_fd_can_be_signed(w, inode->mnt_id))
			add(&batch, inode);
		if (batch.count == HANDLE_BATCH) {
			uint32_t signed_closes = sign_and_drop(w, &batch);

			closes += signed_closes;
			if (signed_closes < TRIM_LITTLE)
				break;
		}
	}
	closes += sign_and_drop(w, &batch);
	if (closes < wanted && closes < TRIM_LITTLE)
		w->trim_at_ns = w->now_ns + TRIM_PAUSE_NS;
}

void inode_trim(struct worker *w)
{
	uint64_t wanted = excess(w);

	if (wanted && w->policy.file_handles != FILE_HANDLES_NEVER && w->now_ns >= w->trim_at_ns)
		trim(w, wanted);
}
