/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
/*
 * The protocol between a worker and the broker of file handles: one packet for a request and one
 * packet for its answer. Each worker slot has a socket pair. The theory is in handle_broker.c.
 * The first fd of a request is a directory on the mount that the request is about.
 * HANDLE_SIGN: up to HANDLE_BATCH more fds; the answer has a signature for each.
 * HANDLE_OPEN: `identity` and `mac` as they were signed; an O_PATH fd comes with the answer.
 */
#ifndef VFSD_HANDLE_PROTOCOL_H
#define VFSD_HANDLE_PROTOCOL_H

#include "worker/csrc/host/fhandle.h"

#include <sys/socket.h>

enum handle_op {
	HANDLE_SIGN = 1,
	HANDLE_OPEN = 2,
};

enum {
	HANDLE_FDS = 64,	       /* in one request */
	HANDLE_BATCH = HANDLE_FDS - 1, /* files in one request */
};

/* What is signed: the identity of a file (identity.h) and its handle. The struct has no padding. */
struct handle_identity {
	uint64_t ino;
	uint64_t mnt_id;
	uint32_t type;
	int32_t handle_type;
	uint32_t handle_len;
	uint8_t handle_bytes[FHANDLE_BYTES_MAX];
	uint32_t zero;
};

struct handle_request {
	uint64_t nonce; /* comes back in the answer */
	uint32_t op;	/* enum handle_op */
	uint32_t zero;
	uint64_t mac;
	struct handle_identity identity;
};

struct handle_signature {
	int32_t error; /* 0, or -errno: the reason why this file was not signed */
	uint32_t zero;
	int64_t btime; /* ns; 0: unknown */
	uint64_t mac;
	struct handle_identity identity;
};

/* Only the first `count` signatures are sent. */
struct handle_answer {
	uint64_t nonce;
	int32_t error; /* 0 or -errno */
	uint32_t count;
	struct handle_signature signatures[HANDLE_BATCH];
};

/* Room for the fds of one packet. */
union handle_fds {
	struct cmsghdr header;
	uint8_t room[CMSG_SPACE(HANDLE_FDS * sizeof(int))];
};

/* Send one packet with `count` fds, at most HANDLE_FDS, without waiting. Return: 0 or -errno.
 */
int handle_send(int sock, const void *data, size_t len, const int *fds, uint32_t count) must_check;

_Static_assert(CMSG_SPACE(HANDLE_FDS * sizeof(int)) == CMSG_LEN(HANDLE_FDS * sizeof(int)),
	       "CMSG_SPACE leaves room for another fd, which the kernel would use");
_Static_assert(sizeof(struct handle_identity) == 64, "padding: a byte that is not signed");

#endif
