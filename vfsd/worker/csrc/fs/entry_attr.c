/* SPDX-License-Identifier: Apache-2.0 */
/* The attributes of an entry: fuse_attr from statx. */
#include "worker/csrc/fs/entry.h"

#include "worker/csrc/host/identity.h"
#include "worker/csrc/host/mix.h"
#include "worker/csrc/request/agreed.h"

#include <sys/stat.h>

/* A device number in the kernel's 32-bit form. */
static uint32_t encode_device(uint32_t major, uint32_t minor)
{
	return (minor & 0xff) | major << 8 | (minor & ~0xffu) << 12;
}

/*
 * The guest may hold data of the file that it has not written yet: in its write-back cache, or, if
 * the file has its size already, in a mapping. GNU tar does not read a file that has no blocks at
 * all. So a file that may have such data has at least one block. It does not matter whether the
 * file is mapped at this moment, because the guest remembers the number of blocks.
 */
uint64_t entry_blocks(const struct fs *fs, const struct statx *st)
{
	bool may_have_data = st->stx_size || fs->session->flags & FUSE_WRITEBACK_CACHE;

	if (may_have_data && !st->stx_blocks && S_ISREG(st->stx_mode) && fs->policy.holds_back)
		return 1;
	return st->stx_blocks;
}

bool entry_announces_mounts(const struct fs *fs)
{
	return fs->policy.announce_submounts && is_agreed(fs->session, &AGREED_SUBMOUNTS);
}

/* A computed number has 62 bits that look random, so that no two files get the same number in
 * practice; and it is larger than the numbers that file systems use. It is computed only from
 * values that every worker knows. */
uint64_t entry_foreign_number(const struct fs *fs, uint64_t ino, uint32_t device)
{
	if (entry_announces_mounts(fs))
		return ino;
	return mix64(ino + mix64(device)) >> 2 | UINT64_C(1) << 62;
}

void entry_attr(const struct fs *fs, const struct statx *st, struct fuse_attr *ret)
{
	*ret = (struct fuse_attr){
		.ino = st->stx_ino,
		.size = st->stx_size,
		.blocks = entry_blocks(fs, st),
		.atime = (uint64_t)st->stx_atime.tv_sec,
		.mtime = (uint64_t)st->stx_mtime.tv_sec,
		.ctime = (uint64_t)st->stx_ctime.tv_sec,
		.atimensec = st->stx_atime.tv_nsec,
		.mtimensec = st->stx_mtime.tv_nsec,
		.ctimensec = st->stx_ctime.tv_nsec,
		.mode = st->stx_mode,
		.nlink = st->stx_nlink,
		.uid = idmap_translate(&fs->policy.uids.to_guest, st->stx_uid),
		.gid = idmap_translate(&fs->policy.gids.to_guest, st->stx_gid),
		.rdev = encode_device(st->stx_rdev_major, st->stx_rdev_minor),
		.blksize = st->stx_blksize,
	};
	if (__builtin_expect(inode_key_device(identity_key(st)) != fs->root_device, 0))
		ret->ino =
			entry_foreign_number(fs, st->stx_ino, inode_key_device(identity_key(st)));
}
