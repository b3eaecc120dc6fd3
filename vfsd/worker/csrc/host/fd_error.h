/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
/* The error of a call that was to return a new fd. */
#ifndef VFSD_FD_ERROR_H
#define VFSD_FD_ERROR_H

#include <errno.h>

/* Return: -errno of the call that has just failed. To the guest the limit of this process (EMFILE)
 * is the limit of the system (ENFILE). */
static inline int fd_error(void)
{
	return errno == EMFILE ? -ENFILE : -errno;
}

/* Return: `fd`, or the error of the call that returned it. */
static inline int fd_or_error(int fd)
{
	return fd < 0 ? fd_error() : fd;
}

#endif
