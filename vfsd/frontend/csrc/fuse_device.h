/* SPDX-License-Identifier: Apache-2.0 */
/* The system calls of a FUSE mount for which Python has no function. Each returns 0 or -errno. */
#ifndef VFSD_FUSE_DEVICE_H
#define VFSD_FUSE_DEVICE_H

#include "transport/csrc/types.h"

/* Mount `fuse_fd` (/dev/fuse) at `target`; `options` as for mount(8), without fd=. */
int fuse_device_mount(int fuse_fd, const char *source, const char *target,
		      const char *options) must_check;

/* Make `fuse_fd` (/dev/fuse, just opened) another channel of the mount behind `mounted_fd`. */
int fuse_device_clone(int fuse_fd, int mounted_fd) must_check;

/* Unmount `target`; `lazy`: even if it is in use. */
int fuse_device_unmount(const char *target, bool lazy) must_check;

#endif
