/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
/* The broker of file handles. The theory is in handle_broker.c. */
#ifndef VFSD_HANDLE_BROKER_H
#define VFSD_HANDLE_BROKER_H

#include "worker/csrc/broker/handle_protocol.h"
#include "worker/csrc/host/identity.h"
#include "worker/csrc/host/siphash.h"

struct handle_broker {
	struct siphash_key key;
	struct inode_key root; /* the shared directory */
};

/* `root_fd`: the shared directory, open for reading. Return: 0 or -errno. */
int handle_broker_init(struct handle_broker *b, const struct siphash_key *key,
		       int root_fd) must_check;

/*
 * Carry out a request of `len` bytes that came with `fds`; the caller still owns `fds`. *ret_fd is
 * -1 or an fd to send with the answer, which the caller closes. Return: the size of the answer in
 * bytes; 0 if the request has the wrong size and gets no answer.
 */
size_t handle_broker_answer(const struct handle_broker *b, const void *request, size_t len,
			    const int *fds, uint32_t fd_count, struct handle_answer *ret,
			    int *ret_fd);

/* Serve these sockets until the other ends of all of them are closed, or the other end of the pipe
 * `lifeline` is. */
void handle_broker_serve(const struct handle_broker *b, const int32_t *sockets, uint32_t count,
			 int lifeline);

#endif
