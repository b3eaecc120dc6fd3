/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
/* The record locks that the guest holds on the host. The theory is in record_lock.c. */
#ifndef VFSD_RECORD_LOCK_H
#define VFSD_RECORD_LOCK_H

#include "worker/csrc/fs/fs.h"

#include <fcntl.h>

struct record_lock {
	int type;	     /* F_RDLCK, F_WRLCK, F_UNLCK */
	uint64_t start, end; /* the first and the last byte; INT64_MAX: to the end */
};

struct flock record_lock_of_host(const struct record_lock *lock);

/* Get the open file that holds the locks of this owner; make it if necessary. Return: 0 or
 * -errno. */
int record_lock_owner(struct fs *fs, uint64_t nodeid, uint64_t owner,
		      struct open_file **ret) must_check;
/* Change what the owner holds, without waiting. Return: 0, -EAGAIN (the lock is held), or -errno.
 */
int record_lock_set(struct fs *fs, struct open_file *file, const struct record_lock *lock);
/* Release all locks of the owner. */
void record_lock_drop(struct fs *fs, struct open_file *file);

#endif
