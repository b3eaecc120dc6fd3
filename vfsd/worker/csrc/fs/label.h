/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
/* Security labels: files that appear together with the labels that the guest's kernel gives them
 * (FUSE_SECURITY_CTX). The theory is in label.c. */
#ifndef VFSD_LABEL_H
#define VFSD_LABEL_H

#include "transport/csrc/types.h"
#include "worker/csrc/request/request.h"

struct fs;

/* A function that creates dir/name as the request asks. Return: 0 or -errno. */
typedef int make_fn(const struct request *r, int dir_fd, const char *name);

/* Call `make` to create dir/name, with the request's labels if the request has any. The requesting
 * user's credentials are in force. Return: 0 or -errno. */
int label_make(struct fs *fs, const struct request *r, int dir_fd, const char *name,
	       make_fn *make) must_check;

/* Create the regular file dir/r->name with the request's labels, opened with `flags` (access mode
 * and status flags). *ret_fd is its fd, or -1 if it was created but not opened (the file system has
 * no O_TMPFILE). Return: 0 or -errno. */
int label_create(struct fs *fs, const struct request *r, int dir_fd, int flags, mode_t mode,
		 int *ret_fd) must_check;

/* Set the request's labels on the file of `fd`, which may have any type. Leaves root acting. */
int label_set(struct fs *fs, const struct request *r, int fd) must_check;

/* The request will never be run again: remove what it has left. */
void label_forsake(struct fs *fs, const struct request *r);

/* Is this a staged name, which only label_make uses, for a moment? */
bool label_hides(const struct fs *fs, const char *name);

#endif
