/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
/* The life of a struct fs, and of the FUSE sessions in it. */
#ifndef VFSD_FS_INIT_H
#define VFSD_FS_INIT_H

#include "worker/csrc/fs/fs.h"

/* Once, in zeroed memory. The tables are laid out, and stay. Enters the folder of proc_self_fd,
 * by which the ops name files. Return: 0 or -errno. */
int fs_init(struct fs *fs, const struct fs_config *config) must_check;

/* A new session (INIT): everything the old one had open is closed, the tables hold only the root.
 */
void fs_session_begin(struct fs *fs, uint32_t minor, uint64_t flags, uint64_t offered);
/* DESTROY. */
void fs_session_end(struct fs *fs);

#endif
