/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
/* A worker's side of the broker of file handles (handle_broker.c): send a request, wait for the
 * answer. */
#ifndef VFSD_HANDLE_CLIENT_H
#define VFSD_HANDLE_CLIENT_H

#include "worker/csrc/broker/handle_protocol.h"
#include "worker/csrc/host/identity.h"

struct handle_client {
	int fd;		/* the socket of this worker's slot; -1: without a broker */
	uint64_t nonce; /* the number of the latest request */
	bool is_gone;	/* the broker is gone, for good */
};

/* `now_ns`: the time, by a clock that all workers share. The numbers of requests count up from it,
 * so no request has the number of an earlier worker's request in the same slot. */
void handle_client_init(struct handle_client *c, int fd, uint64_t now_ns);

/* Sign the files of `count` fds, at most HANDLE_BATCH. `mount_fd`: a directory on their mount.
 * Return: 0, with `count` signatures in ret, or -errno (-EIO: the broker is gone; -EXDEV: the mount
 * does not belong to the share). */
int handle_client_sign(struct handle_client *c, int mount_fd, const int *fds, uint32_t count,
		       struct handle_signature *ret) must_check;

/* Open the file of `key` by its signed handle. `mount_fd` as above. Return: an O_PATH fd; -ESTALE
 * (the file or the broker is gone), or -errno. */
int handle_client_open(struct handle_client *c, int mount_fd, struct inode_key key,
		       const struct fhandle *handle) must_check;

/* The handle in a signature, with its MAC. */
struct fhandle handle_of_signature(const struct handle_signature *signature);

#endif
