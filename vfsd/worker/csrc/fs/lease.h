/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
/*
 * Files that a program on the host holds under a lease or a delegation (fcntl(2) F_SETLEASE; Samba,
 * knfsd). A process that opens or truncates such a file waits until the program gives the lease
 * back, for up to 45 s (/proc/sys/fs/lease-break-time). The loop does not wait: its open(2) has
 * O_NONBLOCK, so the kernel asks the program to give the lease back, and open(2) fails with EAGAIN.
 * A thread then waits, and after that the op is run again.
 *
 * Calls that change names or attributes wait for delegations only. No flag makes these calls return
 * instead, but the watchdog interrupts them (watchdog.h).
 */
#ifndef VFSD_LEASE_H
#define VFSD_LEASE_H

#include "worker/csrc/fs/fs.h"
#include "worker/csrc/host/watchdog.h"

/*
 * An op found that the regular file of `path_fd` is under a lease that does not allow `access`
 * (O_RDONLY, O_WRONLY, O_RDWR). Return: OUTCOME_DEFER (after the wait the op is run again from its
 * beginning), or -errno.
 */
int lease_wait(struct request *r, int path_fd, int access) must_check;

/* The watchdog for the request's next call that changes names or attributes. NULL if that call is
 * to wait: the interruptions have led to nothing, so the call does not wait for a delegation. */
struct watchdog *lease_watchdog(const struct fs *fs, const struct request *r);

/*
 * The call was interrupted (-EINTR), and the inode of `path_fd`, or the file dir/name, may be under
 * a delegation. Return: OUTCOME_DEFER as from lease_wait; -errno; or 0 if the file is not regular:
 * then there is no delegation to wait for, and the call is to be tried again immediately.
 */
int lease_wait_inode(struct request *r, int path_fd) must_check;
int lease_wait_name(struct request *r, int dir_fd, const char *name) must_check;

#endif
