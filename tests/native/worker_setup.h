/* SPDX-License-Identifier: Apache-2.0 */
/* The configuration of a worker that serves a driver's one ring, in memory that a forked worker
 * shares. */
#ifndef VFSD_TEST_WORKER_SETUP_H
#define VFSD_TEST_WORKER_SETUP_H

#include "driver.h"

#include "worker/csrc/loop/adopt.h"
#include "worker/csrc/loop/records.h"
#include "worker/csrc/loop/serve.h"
#include "worker/csrc/loop/worker.h"
#include "worker/csrc/loop/worker_state.h"

#include <fcntl.h>
#include <sys/eventfd.h>

static inline void setup_device(const struct driver *d, struct device_state *device)
{
	device->layout = DEVICE_STATE_LAYOUT;
	device->region_count = 1;
	device->vring_count = 1;
	device->regions[0] = driver_region(d);
	device->vrings[0] = driver_vring(d);
	device->vrings[0].running = 1;
	device->vrings[0].start = 1;
	device->vrings[0].kick_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	device->generation = 2;
	for (uint32_t i = 1; i < DEVICE_VRINGS_MAX; i++)
		device->vrings[i].worker = UINT32_MAX;
}

/* A worker for the directory `path`, with room for `inodes` and `files` entries. */
static inline void setup_worker(const struct driver *d, const char *path, uint32_t inodes,
				uint32_t files, struct worker_config *ret)
{
	memset(ret, 0, sizeof(*ret));
	ret->fs.root_fd = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
	ret->fs.proc_self_fd = open("/proc/self/fd", O_PATH | O_DIRECTORY | O_CLOEXEC);
	ret->fs.handles_fd = -1;
	ret->control_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	CHECK(ret->fs.root_fd >= 0 && ret->fs.proc_self_fd >= 0 && ret->control_fd >= 0);
	ret->device = make_shared(sizeof(*ret->device));
	ret->fs.workers = make_shared(sizeof(*ret->fs.workers));
	ret->fs.inodes = make_shared(inode_table_bytes(inodes));
	ret->fs.files = make_shared(file_table_bytes(files));
	ret->records = make_shared(records_bytes());
	worker_table_init(ret->fs.workers, 1);
	CHECK(!inode_table_init(ret->fs.inodes, inodes, ret->fs.root_fd));
	file_table_init(ret->fs.files, files);
	setup_device(d, ret->device);
}

#endif
