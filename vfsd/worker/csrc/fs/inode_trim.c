/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Two clocks over the inode table; what was not used since the last round of one loses its fd. An
 * inode that has no handle yet gets one before: from the kernel, or signed by the broker, which is
 * asked for many at once.
 *
 * The first clock turns while there are too many fds. The second turns once a second, by whichever
 * worker comes first, as long as any fd is cached: what the host deletes must not keep its space
 * because a guest has looked at it. The same round gives back the memory of slots that are free
 * (inode_slots.c, inode_hash.c). When nothing is left to do, nobody wakes up.
 *
 * Some inodes can have no handle: files that were deleted while the guest knew them, above all. A
 * guest can hold more of them than there should be fds, and each turn would look for others in
 * vain. So a search of the first clock that finds little ends early, and the next one waits for a
 * while. Where fds become scarce before that, each new inode is signed for itself (entry.c).
 */
#include "worker/csrc/fs/inode_trim.h"

#include "worker/csrc/fs/inode_fd.h"
#include "worker/csrc/tables/forgotten.h"

enum {
	TRIM_LOOKS = 16384, /* slots looked at in one go … */
	TRIM_CLOSES = 512,  /* … and fds closed */
	TRIM_BELOW = 128,   /* fewer than allowed are left: signatures are for many at once */
	TRIM_LITTLE = HANDLE_BATCH / 2, /* of a batch, or of all looks, is not worth the next one */
	TRIM_PAUSE_NS = 1000 * 1000,
	SWEEP_CLOSES = 256, /* between two batches of requests */
	SWEEP_NS = 1000 * 1000 * 1000,
};

/* Inodes of one mount that wait for a signature, as they were seen. */
struct batch {
	uint64_t mnt_id;
	bool is_vain; /* few of a full batch could be signed */
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

/* Give a batch its signatures and close its fds. Return: how many were closed. */
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

/* Have a batch signed and close its fds. Return: how many were closed. */
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

/* Return: how many fds were closed to make room in the batch. */
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

/* Close the fd of an inode, now or with the batch, if a handle can hold it. Return: how many fds
 * were closed. */
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

/* Return: how many fds are to be closed. Those that wait for that are open still. */
static uint64_t excess(const struct fs *fs)
{
	uint64_t held = inode_table_held(fs->inodes), waiting, most;

	if (held <= fs->inode_fds_max)
		return 0;
	waiting = inode_fd_unclosed(fs);
	most = smaller(TRIM_CLOSES, fs->fds_max / 4);
	return waiting < most ? smaller(held - fs->inode_fds_max + TRIM_BELOW, most - waiting) : 0;
}

/* Apart, since a worker comes to inode_trim() after every turn and seldom comes to this. */
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

/* ---- what was not used for a while ---- */

/* Return: how many fds were closed, or blocks given back. */
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

/* Go on with the sweep. Return: is it over? */
static bool sweep_some(struct fs *fs)
{
	struct batch batch = {0};
	uint32_t closes = 0;

	while (closes < SWEEP_CLOSES && inode_table_take_mark(fs->inodes, &fs->sweep_block))
		closes += sweep_block(fs, &batch, fs->sweep_block++);
	sign_and_drop(fs, &batch);
	return closes < SWEEP_CLOSES && !inode_table_shrink(fs->inodes, fs->slot);
}

/* After a pause; not if another worker has swept since, and left nothing. */
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
	/* Fds were cached since the last sweep began, or blocks became empty, by whoever. */
	if (!fs->sweep_at_ns && fs->marks_seen != inode_table_marks(fs->inodes))
		fs->sweep_at_ns = fs->now_ns + SWEEP_NS;
}
