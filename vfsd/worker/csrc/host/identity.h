/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
/* The identity of a host file. All statx calls for identity go through here. */
#ifndef VFSD_IDENTITY_H
#define VFSD_IDENTITY_H

#include "transport/csrc/types.h"

#include <sys/stat.h>

/*
 * What distinguishes one host file from all others that exist at the same time. At a single moment
 * the first two fields would be enough. The type is in the key because an inode number may belong
 * to another file by the next system call, and because the type decides what may be done with a
 * file.
 */
struct inode_key {
	uint64_t ino;
	uint64_t mnt_id; /* STATX_MNT_ID << 32 | device number */
	uint32_t type;	 /* S_IFMT bits */
};

/* The STATX_MNT_ID of a file, which identity_key() stores in the upper half of mnt_id. */
static inline uint32_t inode_key_mount_id(struct inode_key key)
{
	return (uint32_t)(key.mnt_id >> 32);
}

static inline uint32_t inode_key_device(struct inode_key key)
{
	return (uint32_t)key.mnt_id;
}

static inline bool inode_key_equal(struct inode_key a, struct inode_key b)
{
	return a.ino == b.ino && a.mnt_id == b.mnt_id && a.type == b.type;
}

/* statx of an open descriptor or of dir/name (without following a symbolic link), with the fields
 * that identity and fuse_attr need (STATX_BASIC_STATS | STATX_BTIME | STATX_MNT_ID). Return: 0 or
 * -errno. */
int identity_stat_fd(int fd, struct statx *ret) must_check;
int identity_stat_name(int dir_fd, const char *name, struct statx *ret) must_check;

struct inode_key identity_key(const struct statx *st);
/* In ns; 0 if the file system does not report a birth time. */
int64_t identity_birth_time(const struct statx *st);

#endif
