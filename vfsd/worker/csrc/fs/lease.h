/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
/*
 * Files that a program on the host has under a lease or a delegation (fcntl(2) F_SETLEASE; Samba,
 * knfsd). Who opens or truncates such a file waits until that program gives it back, for up to 45 s
 * (/proc/sys/fs/lease-break-time). The loop does not wait: its open(2) is O_NONBLOCK, which asks
 * the program to give the file back and fails with EAGAIN. A thread waits, then the op is run
 * again.
 */
#ifndef VFSD_LEASE_H
#define VFSD_LEASE_H

#include "worker/csrc/fs/fs.h"

/*
 * An op without a payload found that the regular file of `path_fd` is under a lease that does not
 * allow `access` (O_RDONLY, O_WRONLY, O_RDWR). Return: OUTCOME_DEFER (after the wait the op is run
 * again from its beginning), or -errno.
 */
int lease_wait(struct request *r, int path_fd, int access) must_check;

#endif
