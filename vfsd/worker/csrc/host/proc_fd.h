/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
#ifndef VFSD_PROC_FD_H
#define VFSD_PROC_FD_H

/* The name of an fd in /proc/self/fd, which is both proc_self_fd and the working directory. */
enum {
	FD_NAME = 16,
};
const char *proc_fd_name(int fd, char name[static FD_NAME]);

#endif
