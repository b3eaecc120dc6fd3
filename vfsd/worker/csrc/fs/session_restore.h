/* SPDX-License-Identifier: Apache-2.0 */
/* A FUSE session goes on in another sandbox. The theory is in session_restore.c. */
#ifndef VFSD_SESSION_RESTORE_H
#define VFSD_SESSION_RESTORE_H

#include "transport/csrc/types.h"
#include "worker/csrc/fs/fs_config.h"
#include "worker/csrc/fs/restore_report.h"
#include "worker/csrc/tables/session_image.h"

/* The image of a sandbox that has ended its service, and the fds that have come from it. */
struct restore_source {
	const void *image;
	uint64_t bytes;
	int32_t *kept; /* fds, by their number in that sandbox; -1: none. Those in use become -1 */
	uint32_t kept_count;
};

/*
 * Bring the session in the tables `from` back into the tables of `config`, which were laid out and
 * are empty. This is for a process of its own, before the first worker. What cannot be found again
 * is left out, and counted. Return: 0 or -errno (-EINVAL: `from` has another layout).
 */
int session_restore(const struct fs_config *config, const struct image_tables *from,
		    struct restore_report *ret) must_check;

/* As session_restore(), from an image. The mounts of that sandbox are the mounts of this one. */
int session_take_over(const struct fs_config *config, const struct restore_source *from,
		      struct restore_report *ret) must_check;

#endif
