/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
/* The broker of file handles: what it does with one request. The theory is in handle_broker.c. */
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
 * Obey a request of `len` bytes that came with `fds`, which stay the caller's. *ret_fd is an fd for
 * the answer, the caller's, or -1. Return: bytes of the answer; 0: there is none to give.
 */
size_t handle_broker_answer(const struct handle_broker *b, const void *request, size_t len,
			    const int *fds, uint32_t fd_count, struct handle_answer *ret,
			    int *ret_fd);

/* Serve these sockets until the other ends of all of them are closed. */
void handle_broker_serve(const struct handle_broker *b, const int32_t *sockets, uint32_t count);

#endif
