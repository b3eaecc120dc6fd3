/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
/* The life of a struct fs, and of the FUSE sessions that it serves. */
#ifndef VFSD_FS_INIT_H
#define VFSD_FS_INIT_H

#include "worker/csrc/fs/fs.h"

/* Called once, in zeroed memory. The tables have been laid out, and keep their content. Changes the
 * working directory to proc_self_fd, through which the ops name files. Return: 0 or -errno. */
int fs_init(struct fs *fs, const struct fs_config *config) must_check;

/* INIT begins a new session: everything that the old session had open is closed, and the tables
 * hold only the root. */
void fs_session_begin(struct fs *fs, uint32_t minor, uint64_t flags, uint64_t offered);
/* DESTROY ends the session. */
void fs_session_end(struct fs *fs);

#endif
