/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Every FUSE opcode served, once. The table feeds dispatch, the length check, names, counters and
 * the table in docs/protocol.md.
 *
 * X(NAME, handler, argument size, flags): the request is fuse_in_header, `argument size` bytes of
 * fixed argument, then what the flags say.
 */
#ifndef VFSD_FUSE_OPS_H
#define VFSD_FUSE_OPS_H

#include "transport/csrc/types.h"
#include "transport/csrc/fuse_newer.h"

enum fuse_op_flag {
	OP_NAME = 1,	  /* a file name follows: not empty, no "/", '\0' */
	OP_NAMES = 2,	  /* two file names follow */
	OP_PAYLOAD = 4,	  /* more follows (names with other rules, values, lists) */
	OP_DATA_IN = 8,	  /* file data follows and is left in guest memory */
	OP_DATA_OUT = 16, /* the reply is data that goes straight to guest memory */
	OP_NO_REPLY = 32,
	OP_MUTATES = 64, /* EROFS on a read-only share */
	OP_ONCE = 128,	 /* not idempotent: the result is recorded before the reply */
	OP_COLD = 256,	 /* handled in Python */
};

/* What is known of an opcode before it is served; name is NULL for an opcode that is not served. */
struct fuse_op {
	const char *name;
	uint32_t arg_size; /* bytes */
	uint32_t flags;	   /* enum fuse_op_flag */
};

/* The row of `opcode`, never NULL. */
const struct fuse_op *fuse_op(uint32_t opcode);

#define VFSD_FUSE_OPS(X)                                                                        \
	X(LOOKUP, lookup, 0, OP_PAYLOAD)                                                        \
	X(FORGET, forget, sizeof(struct fuse_forget_in), OP_NO_REPLY | OP_ONCE)                 \
	X(GETATTR, getattr, sizeof(struct fuse_getattr_in), 0)                                  \
	X(SETATTR, setattr, sizeof(struct fuse_setattr_in), OP_MUTATES)                         \
	X(READLINK, readlink, 0, 0)                                                             \
	X(SYMLINK, symlink, 0, OP_PAYLOAD | OP_MUTATES | OP_ONCE)                               \
	X(MKNOD, mknod, sizeof(struct fuse_mknod_in), OP_NAME | OP_MUTATES | OP_ONCE)           \
	X(MKDIR, mkdir, sizeof(struct fuse_mkdir_in), OP_NAME | OP_MUTATES | OP_ONCE)           \
	X(UNLINK, unlink, 0, OP_NAME | OP_MUTATES | OP_ONCE)                                    \
	X(RMDIR, rmdir, 0, OP_NAME | OP_MUTATES | OP_ONCE)                                      \
	X(RENAME, rename, sizeof(struct fuse_rename_in), OP_NAMES | OP_MUTATES | OP_ONCE)       \
	X(LINK, link, sizeof(struct fuse_link_in), OP_NAME | OP_MUTATES | OP_ONCE)              \
	X(OPEN, open, sizeof(struct fuse_open_in), OP_ONCE)                                     \
	X(READ, read, sizeof(struct fuse_read_in), OP_DATA_OUT)                                 \
	X(WRITE, write, sizeof(struct fuse_write_in), OP_DATA_IN | OP_MUTATES)                  \
	X(STATFS, statfs, 0, 0)                                                                 \
	X(RELEASE, release, sizeof(struct fuse_release_in), 0)                                  \
	X(FSYNC, fsync, sizeof(struct fuse_fsync_in), 0)                                        \
	X(SETXATTR, setxattr, FUSE_COMPAT_SETXATTR_IN_SIZE, OP_PAYLOAD | OP_MUTATES | OP_ONCE)  \
	X(GETXATTR, getxattr, sizeof(struct fuse_getxattr_in), OP_PAYLOAD)                      \
	X(LISTXATTR, listxattr, sizeof(struct fuse_getxattr_in), 0)                             \
	X(REMOVEXATTR, removexattr, 0, OP_PAYLOAD | OP_MUTATES | OP_ONCE)                       \
	X(FLUSH, flush, sizeof(struct fuse_flush_in), 0)                                        \
	X(INIT, NULL_HANDLER, 16, OP_PAYLOAD | OP_COLD)                                         \
	X(OPENDIR, opendir, sizeof(struct fuse_open_in), OP_ONCE)                               \
	X(READDIR, readdir, sizeof(struct fuse_read_in), 0)                                     \
	X(RELEASEDIR, releasedir, sizeof(struct fuse_release_in), 0)                            \
	X(FSYNCDIR, fsyncdir, sizeof(struct fuse_fsync_in), 0)                                  \
	X(GETLK, getlk, sizeof(struct fuse_lk_in), 0)                                           \
	X(SETLK, setlk, sizeof(struct fuse_lk_in), 0)                                           \
	X(SETLKW, setlkw, sizeof(struct fuse_lk_in), 0)                                         \
	X(ACCESS, access, sizeof(struct fuse_access_in), 0)                                     \
	X(CREATE, create, sizeof(struct fuse_create_in), OP_NAME | OP_MUTATES | OP_ONCE)        \
	X(INTERRUPT, interrupt, sizeof(struct fuse_interrupt_in), OP_NO_REPLY)                  \
	X(DESTROY, NULL_HANDLER, 0, OP_COLD)                                                    \
	X(IOCTL, ioctl, sizeof(struct fuse_ioctl_in), OP_PAYLOAD)                               \
	X(BATCH_FORGET, batch_forget, sizeof(struct fuse_batch_forget_in),                      \
	  OP_PAYLOAD | OP_NO_REPLY | OP_ONCE)                                                   \
	X(FALLOCATE, fallocate, sizeof(struct fuse_fallocate_in), OP_MUTATES)                   \
	X(READDIRPLUS, readdirplus, sizeof(struct fuse_read_in), 0)                             \
	X(RENAME2, rename2, sizeof(struct fuse_rename2_in), OP_NAMES | OP_MUTATES | OP_ONCE)    \
	X(LSEEK, lseek, sizeof(struct fuse_lseek_in), 0)                                        \
	X(COPY_FILE_RANGE, copy_file_range, sizeof(struct fuse_copy_file_range_in), OP_MUTATES) \
	X(SYNCFS, syncfs, sizeof(struct fuse_syncfs_in), 0)                                     \
	X(TMPFILE, tmpfile, sizeof(struct fuse_create_in), OP_PAYLOAD | OP_MUTATES | OP_ONCE)   \
	X(STATX, statx, sizeof(struct fuse_statx_in), 0)                                        \
	X(COPY_FILE_RANGE_64, copy_file_range_64, sizeof(struct fuse_copy_file_range_in),       \
	  OP_MUTATES)

#endif
