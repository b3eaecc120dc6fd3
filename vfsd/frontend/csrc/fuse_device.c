/* SPDX-License-Identifier: Apache-2.0 */
#include "frontend/csrc/fuse_device.h"

#include <errno.h>
#include <linux/fuse.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/mount.h>

int fuse_device_mount(int fuse_fd, const char *source, const char *target, const char *options)
{
	char data[256];
	int len = snprintf(data, sizeof(data), "fd=%d,%s", fuse_fd, options);

	if (len < 0 || (size_t)len >= sizeof(data))
		return -EINVAL;
	/* The back-end's devices and set-user-id bits must have no effect on this host. */
	return mount(source, target, "fuse.virtiofs", MS_NODEV | MS_NOSUID, data) < 0 ? -errno : 0;
}

int fuse_device_clone(int fuse_fd, int mounted_fd)
{
	uint32_t fd = (uint32_t)mounted_fd;

	return ioctl(fuse_fd, FUSE_DEV_IOC_CLONE, &fd) < 0 ? -errno : 0;
}

int fuse_device_unmount(const char *target, bool lazy)
{
	return umount2(target, UMOUNT_NOFOLLOW | (lazy ? MNT_DETACH : 0)) < 0 ? -errno : 0;
}
