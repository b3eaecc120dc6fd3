/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
/*
 * Files that a program on the host has under a lease or a delegation (fcntl(2) F_SETLEASE; Samba,
 * knfsd). Who opens or truncates such a file waits until that program gives it back, for up to 45 s
 * (/proc/sys/fs/lease-break-time). The loop does not wait: its open(2) is O_NONBLOCK, which asks
 * the program to give the file back and fails with EAGAIN. A thread waits, then the op is run
 * again.
 *
 * Calls that change names or attributes wait for delegations alone. They cannot be asked to return
 * instead, but the watchdog interrupts them (watchdog.h).
 */
#ifndef VFSD_LEASE_H
#define VFSD_LEASE_H

#include "worker/csrc/fs/fs.h"
#include "worker/csrc/host/watchdog.h"

/*
 * An op found that the regular file of `path_fd` is under a lease that does not
 * allow `access` (O_RDONLY, O_WRONLY, O_RDWR). Return: OUTCOME_DEFER (after the wait the op is run
 * again from its beginning), or -errno.
 */
int lease_wait(struct request *r, int path_fd, int access) must_check;

/* For the next such call of this request; NULL where it is to wait: the interruptions have led to
 * nothing, so it is not a delegation that it waits for. */
struct watchdog *lease_watchdog(const struct fs *fs, const struct request *r);

/*
 * The call was interrupted (-EINTR), and the inode of `path_fd`, or the file of that name, may be
 * under a delegation. Return: OUTCOME_DEFER as lease_wait, -errno, or 0 for a file that is not
 * regular: no delegation is waited for, and the call is to be tried again at once.
 */
int lease_wait_inode(struct request *r, int path_fd) must_check;
int lease_wait_name(struct request *r, int dir_fd, const char *name) must_check;

#endif
