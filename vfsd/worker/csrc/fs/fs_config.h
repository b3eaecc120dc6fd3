/* SPDX-License-Identifier: Apache-2.0 */
/* What the file system of a worker is set up from; see fs.h. */
#ifndef VFSD_FS_CONFIG_H
#define VFSD_FS_CONFIG_H

#include "transport/csrc/types.h"
#include "worker/csrc/fs/policy.h"
#include "worker/csrc/tables/worker_table.h"

struct fs_config {
	uint32_t slot;	      /* row in the worker table */
	int32_t root_fd;      /* O_PATH, the shared directory */
	int32_t proc_self_fd; /* /proc/self/fd of this process, O_PATH */
	int32_t handles_fd;   /* socket of the broker that opens file handles, or -1 */
	/* The shared segments, mapped; see tables.h for their sizes. */
	struct worker_table *workers;
	void *inodes;
	void *files;
	struct fs_policy policy;
};

#endif
