/* SPDX-License-Identifier: Apache-2.0 */
/* The system calls of a FUSE mount that Python has no function for. Each returns 0 or -errno. */
#ifndef VFSD_FUSE_DEVICE_H
#define VFSD_FUSE_DEVICE_H

#include "transport/csrc/types.h"

/* Mount `fuse_fd` (/dev/fuse) at `target`; `options` as mount(8) has them, without fd=. */
int fuse_device_mount(int fuse_fd, const char *source, const char *target,
		      const char *options) must_check;

/* Make `fuse_fd` (/dev/fuse, fresh) one more channel of the mount behind `mounted_fd`. */
int fuse_device_clone(int fuse_fd, int mounted_fd) must_check;

/* Take the mount off; `lazy`: although it is in use. */
int fuse_device_unmount(const char *target, bool lazy) must_check;

#endif
