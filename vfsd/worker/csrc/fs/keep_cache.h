/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
/*
 * --cache=auto: the guest keeps the pages of a file from one OPEN to the next exactly if nobody has
 * changed the file in between. The theory is in keep_cache.c.
 */
#ifndef VFSD_KEEP_CACHE_H
#define VFSD_KEEP_CACHE_H

#include "worker/csrc/fs/fs.h"

#include <sys/stat.h>

/* OPEN has opened the file of `inode` as `file`. `st`: its attributes since it is open; st_mode 0:
 * they were not read. Return: FOPEN_KEEP_CACHE or 0. */
uint32_t keep_cache_at_open(struct fs *fs, const struct inode *inode, struct open_file *file,
			    const struct stat *st);
/* The guest reads from `file` for the first time. */
void keep_cache_at_read(const struct inode *inode, const struct open_file *file);
/* The guest may have data in its page cache that a WRITE did not bring to the file. */
void keep_cache_never(struct fs *fs, uint64_t nodeid);
/* The request is answered without being run. */
void keep_cache_forsake(struct fs *fs, const struct request *r);

#endif
