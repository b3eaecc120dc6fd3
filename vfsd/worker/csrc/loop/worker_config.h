/* SPDX-License-Identifier: Apache-2.0 */
/* The arguments of worker_create (worker.h). */
#ifndef VFSD_WORKER_CONFIG_H
#define VFSD_WORKER_CONFIG_H

#include "transport/csrc/types.h"
#include "transport/csrc/device_state.h"
#include "worker/csrc/fs/fs_config.h"

enum {
	POLL_AUTO = -1,
};

struct worker_config {
	struct fs_config fs;
	int32_t control_fd; /* readable: Python has something to do; edge-triggered is fine */
	int32_t poll_us;    /* how long to poll idle rings: POLL_AUTO, or microseconds (0: never) */
	uint32_t threads; /* upper bound of the pool for requests that block; 0: they run inline */
	/* The mapped shared segments: struct device_state, and the records of rings (records.h). */
	struct device_state *device;
	void *records;
};

#endif
