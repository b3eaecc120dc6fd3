/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
/* Security labels: files that appear with the labels that the guest's kernel wants on them
 * (FUSE_SECURITY_CTX). The theory is in label.c. */
#ifndef VFSD_LABEL_H
#define VFSD_LABEL_H

#include "transport/csrc/types.h"
#include "worker/csrc/request/request.h"

struct fs;

/* Creates dir/name as the request says; 0 or -errno. */
typedef int make_fn(const struct request *r, int dir_fd, const char *name);

/* Let `make` create dir/name, with the request's labels if it has any. The requesting user's
 * credentials are in force. Return: 0 or -errno. */
int label_make(struct fs *fs, const struct request *r, int dir_fd, const char *name,
	       make_fn *make) must_check;

/* Create the regular file dir/r->name with the request's labels, opened with `flags` (access mode
 * and status flags). *ret_fd is its fd, or -1 if it was created but not opened (the file system has
 * no O_TMPFILE). Return: 0 or -errno. */
int label_create(struct fs *fs, const struct request *r, int dir_fd, int flags, mode_t mode,
		 int *ret_fd) must_check;

/* Put the request's labels on the file of `fd`, of whatever type. Leaves root acting. */
int label_set(struct fs *fs, const struct request *r, int fd) must_check;

/* The request will never be run again: nothing of it stays. */
void label_forsake(struct fs *fs, const struct request *r);

/* Is this a name that only label_make uses, for a moment? */
bool label_hides(const struct fs *fs, const char *name);

#endif
