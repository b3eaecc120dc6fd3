/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
/* A worker's side of the broker of file handles (handle_broker.c): it asks and waits. */
#ifndef VFSD_HANDLE_CLIENT_H
#define VFSD_HANDLE_CLIENT_H

#include "worker/csrc/broker/handle_protocol.h"
#include "worker/csrc/host/identity.h"

struct handle_client {
	int fd;		/* of this worker's slot; -1: there is no broker */
	uint64_t nonce; /* of the latest request */
	bool is_gone;	/* the broker is, for good */
};

/* `now_ns` (a clock that all workers have): no request of this worker has the number of one that a
 * worker before it in its slot made. */
void handle_client_init(struct handle_client *c, int fd, uint64_t now_ns);

/* Sign the files of `count` fds, at most HANDLE_BATCH. `mount_fd`: a directory on their mount.
 * Return: 0, with as many signatures in ret, or -errno (-EIO: the broker is gone; -EXDEV: the mount
 * is not one of the share). */
int handle_client_sign(struct handle_client *c, int mount_fd, const int *fds, uint32_t count,
		       struct handle_signature *ret) must_check;

/* Open the file of `key` by its signed handle. `mount_fd` as above. Return: an O_PATH fd; -ESTALE
 * (the file or the broker is gone), or -errno. */
int handle_client_open(struct handle_client *c, int mount_fd, struct inode_key key,
		       const struct fhandle *handle) must_check;

/* What was signed, as a handle. */
struct fhandle handle_of_signature(const struct handle_signature *signature);

#endif
