/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Two clocks go round the inode table. An inode whose fd was not used since the last round of a
 * clock loses that fd. An inode that has no handle yet gets one first: from the kernel, or from
 * the broker, which signs many handles at once.
 *
 * The first clock turns while there are too many fds. The second clock turns once a second as long
 * as any fd is cached, because a file that the host deletes must not keep its disk space only
 * because a guest has looked at it. The first worker that comes to it turns the clock for all
 * workers. The same round gives back the memory of free slots (inode_slots.c, inode_hash.c). When
 * nothing is left to do, no worker wakes up for this.
 *
 * Some inodes cannot have a handle, above all those of files that were deleted while the guest
 * knew them. A guest can hold more of these inodes than there should be fds, and each round would
 * search in vain. So a search of the first clock that finds little ends early, and the next search
 * begins after a pause. If fds become scarce during that pause, the handle of each new inode is
 * signed by itself (entry.c).
 */
#include "worker/csrc/fs/inode_trim.h"

#include "worker/csrc/fs/inode_fd.h"
#include "worker/csrc/tables/forgotten.h"

enum {
	TRIM_LOOKS = 16384, /* slots that one search of the first clock looks at */
	TRIM_CLOSES = 512,  /* fds that one search of the first clock closes */
	/* A search goes on until this number of fds below the limit, so that many handles are
	 * signed at once. */
	TRIM_BELOW = 128,
	/* If fewer fds than this are closed by a batch, or by a search, the search has failed. */
	TRIM_LITTLE = HANDLE_BATCH / 2,
	TRIM_PAUSE_NS = 1000 * 1000, /* after a search that has failed */
	SWEEP_CLOSES = 256, /* fds that the second clock closes between two batches of requests */
	SWEEP_NS = 1000 * 1000 * 1000,
};

/* Inodes of one mount that wait for a signature, with generation and fd as they were read. */
struct batch {
	uint64_t mnt_id;
	bool is_vain; /* fewer than TRIM_LITTLE of a full batch could be signed */
	uint32_t count;
	struct inode *inodes[HANDLE_BATCH];
	uint32_t generations[HANDLE_BATCH];
	int fds[HANDLE_BATCH];
};

static bool has_handle(const struct inode *inode)
{
	return __atomic_load_n(&inode->handle.len, __ATOMIC_ACQUIRE);
}

static bool get_own_handle(struct fs *fs, struct inode *inode)
{
	uint32_t generation = __atomic_load_n(&inode->generation, __ATOMIC_ACQUIRE);
	int fd = __atomic_load_n(&inode->fd, __ATOMIC_ACQUIRE);
	struct fhandle handle;

	if (fd < 0 || fhandle_get(fd, "", &handle))
		return false;
	inode_table_give_handle(fs->inodes, fs->slot, inode, generation, fd, 0, &handle);
	return true;
}

static bool drop(struct fs *fs, struct inode *inode)
{
	return inode_table_drop_fd(fs->inodes, &fs->reclaim, inode);
}

/* Give the inodes of a batch their signed handles, and close their fds. Return: the number of fds
 * that were closed. */
static uint32_t drop_signed(struct fs *fs, const struct batch *batch,
			    const struct handle_signature *signatures)
{
	uint32_t closes = 0;

	for (uint32_t i = 0; i < batch->count; i++) {
		struct fhandle handle = handle_of_signature(&signatures[i]);

		if (signatures[i].error)
			continue;
		inode_table_give_handle(fs->inodes, fs->slot, batch->inodes[i],
					batch->generations[i], batch->fds[i], signatures[i].btime,
					&handle);
		closes += drop(fs, batch->inodes[i]);
	}
	return closes;
}

/* Let the broker sign the handles of a batch, and close the batch's fds. Return: the number of fds
 * that were closed. */
static uint32_t sign_and_drop(struct fs *fs, struct batch *batch)
{
	struct handle_signature signatures[HANDLE_BATCH];
	int mount_fd = inode_table_mount_fd(fs->inodes, batch->mnt_id);
	uint32_t closes = 0;

	if (batch->count && mount_fd >= 0 &&
	    !handle_client_sign(&fs->handles, mount_fd, batch->fds, batch->count, signatures))
		closes = drop_signed(fs, batch, signatures);
	batch->is_vain = batch->count == HANDLE_BATCH && closes < TRIM_LITTLE;
	batch->count = 0;
	return closes;
}

/* Add an inode to the batch; a full batch, or a batch of another mount, is signed first. Return:
 * the number of fds that were closed by that. */
static uint32_t add(struct fs *fs, struct batch *batch, struct inode *inode)
{
	uint32_t generation = __atomic_load_n(&inode->generation, __ATOMIC_ACQUIRE);
	int fd = __atomic_load_n(&inode->fd, __ATOMIC_ACQUIRE);
	uint32_t closes = 0;

	if (batch->count == HANDLE_BATCH || batch->mnt_id != inode->mnt_id)
		closes = sign_and_drop(fs, batch);
	if (fd < 0)
		return closes;
	batch->mnt_id = inode->mnt_id;
	batch->inodes[batch->count] = inode;
	batch->generations[batch->count] = generation;
	batch->fds[batch->count++] = fd;
	return closes;
}

/* Close the fd of an inode if a handle can hold the inode: now, or when the batch is signed.
 * Return: the number of fds that were closed. */
static uint32_t give_up(struct fs *fs, struct batch *batch, struct inode *inode)
{
	bool sign = fs->policy.file_handles == FILE_HANDLES_SIGNED;

	if (inode_table_mount_fd(fs->inodes, inode->mnt_id) < 0)
		return 0;
	if (has_handle(inode))
		return drop(fs, inode);
	if (sign)
		return add(fs, batch, inode);
	return get_own_handle(fs, inode) && drop(fs, inode);
}

static uint64_t smaller(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

/* Return: the number of fds that are to be given up now. Fds that were given up and are not closed
 * yet are taken into account. */
static uint64_t excess(const struct fs *fs)
{
	uint64_t held = inode_table_held(fs->inodes), waiting, most;

	if (held <= fs->inode_fds_max)
		return 0;
	waiting = inode_fd_unclosed(fs);
	most = smaller(TRIM_CLOSES, fs->fds_max / 4);
	return waiting < most ? smaller(held - fs->inode_fds_max + TRIM_BELOW, most - waiting) : 0;
}

/* Not inlined, because a worker calls inode_trim() after every turn, and rarely has anything to
 * trim. */
static __attribute__((noinline, cold)) void trim(struct fs *fs, uint64_t wanted)
{
	struct batch batch = {0};
	uint64_t closes = 0;

	for (uint32_t looks = 0; looks < TRIM_LOOKS && closes < wanted && !batch.is_vain; looks++) {
		struct inode *inode = inode_table_next_idle(fs->inodes);

		if (inode)
			closes += give_up(fs, &batch, inode);
	}
	closes += sign_and_drop(fs, &batch);
	if (closes < wanted && closes < TRIM_LITTLE)
		fs->trim_at_ns = fs->now_ns + TRIM_PAUSE_NS;
}

/* ---- the second clock ---- */

/* Close idle fds of a block, or give the block's memory back if the block is empty. Return: the
 * number of fds that were closed, or of blocks that were given back. */
static uint32_t sweep_block(struct fs *fs, struct batch *batch, uint32_t block)
{
	uint32_t closes = 0;

	if (inode_table_is_empty(fs->inodes, block))
		return inode_table_give_back(fs->inodes, fs->slot, block);
	if (fs->policy.file_handles == FILE_HANDLES_NEVER)
		return 0;

	for (uint32_t place = 0; place < INODE_BLOCK; place++) {
		struct inode *inode = inode_table_idle_at(fs->inodes, block, place);

		if (inode)
			closes += give_up(fs, batch, inode);
	}
	return closes;
}

/* Go on with the round of the second clock. Return: true if the round is over. */
static bool sweep_some(struct fs *fs)
{
	struct batch batch = {0};
	uint32_t closes = 0;

	while (closes < SWEEP_CLOSES && inode_table_take_mark(fs->inodes, &fs->sweep_block))
		closes += sweep_block(fs, &batch, fs->sweep_block++);
	sign_and_drop(fs, &batch);
	return closes < SWEEP_CLOSES && !inode_table_shrink(fs->inodes, fs->slot);
}

/* Begin or continue a round of the second clock. A round does not begin if no block is marked any
 * more, or if another worker began one within SWEEP_NS. */
static __attribute__((noinline, cold)) void sweep(struct fs *fs)
{
	if (!fs->sweep_block) {
		uint32_t marks = inode_table_marks(fs->inodes);

		fs->sweep_at_ns = inode_table_is_marked(fs->inodes) ? fs->now_ns + SWEEP_NS : 0;
		if (!fs->sweep_at_ns)
			fs->marks_seen = marks;
		if (!fs->sweep_at_ns || !inode_table_begin_sweep(fs->inodes, fs->now_ns, SWEEP_NS))
			return;
		fs->marks_seen = marks;
	}
	fs->sweep_at_ns = fs->now_ns; /* go on after the next batch of requests */
	if (sweep_some(fs))
		fs->sweep_at_ns = fs->sweep_block = 0;
}

static __attribute__((noinline, cold)) void take_fullness(struct fs *fs)
{
	uint32_t fullness;

	if (inode_table_take_fullness(fs->inodes, fs->now_ns, &fullness))
		fs->fullness = fullness; /* Python logs it */
}

void inode_trim(struct fs *fs)
{
	uint64_t wanted = fs->policy.file_handles == FILE_HANDLES_NEVER ? 0 : excess(fs);

	forgotten_make_room(fs->inodes, &fs->reclaim);
	if (__builtin_expect(inode_table_fullness(fs->inodes), 0))
		take_fullness(fs);
	if (wanted && fs->now_ns >= fs->trim_at_ns)
		trim(fs, wanted);
	if (fs->sweep_at_ns && fs->now_ns >= fs->sweep_at_ns)
		sweep(fs);
	/* A worker has cached an fd, or emptied a block, since the last round began. */
	if (!fs->sweep_at_ns && fs->marks_seen != inode_table_marks(fs->inodes))
		fs->sweep_at_ns = fs->now_ns + SWEEP_NS;
}
