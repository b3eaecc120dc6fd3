/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A worker makes one request at a time. Until the answer comes, the request is sent again with the
 * same number: the broker may have died with it, or another worker that was taken over may have
 * read the answer. An answer with another number belongs to an earlier request, maybe of a worker
 * that died; such an answer is skipped, and its fd is closed. Requests are idempotent, so a request
 * that is carried out twice does no harm.
 */
#include "worker/csrc/broker/handle_client.h"

#include "worker/csrc/host/identity.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
	FIRST_WAIT_MS = 100, /* before a request is sent again */
	LONGEST_WAIT_MS = 2000,
};

void handle_client_init(struct handle_client *c, int fd, uint64_t now_ns)
{
	*c = (struct handle_client){.fd = fd, .nonce = now_ns};
}

static int send_request(const struct handle_client *c, const struct handle_request *request,
			const int *fds, uint32_t count)
{
	int err = handle_send(c->fd, request, sizeof(*request), fds, count);

	if (err == -EAGAIN)
		return 0;	  /* a full socket: many requests wait for the broker already */
	if (err == -ETOOMANYREFS) /* this user has too many fds in sockets */
		return -ENFILE;
	if (err == -ENOMEM || err == -ENOBUFS) /* for the moment; the broker is not gone */
		return err;
	return err ? -EIO : 0;
}

/* Receive a packet without waiting. Return: its size in bytes, 0 (the broker is gone), or -errno;
 * *ret_fd is the fd that came with the packet, or -1. */
static ssize_t receive(const struct handle_client *c, struct handle_answer *ret, int *ret_fd)
{
	union handle_fds passed = {0};
	struct iovec data = {ret, sizeof(*ret)};
	struct msghdr message = {.msg_iov = &data,
				 .msg_iovlen = 1,
				 .msg_control = &passed,
				 .msg_controllen = CMSG_SPACE(sizeof(int))};
	ssize_t len = recvmsg(c->fd, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	const struct cmsghdr *header = len < 0 ? NULL : CMSG_FIRSTHDR(&message);

	*ret_fd = -1;
	if (header && header->cmsg_type == SCM_RIGHTS && header->cmsg_len == CMSG_LEN(sizeof(int)))
		memcpy(ret_fd, CMSG_DATA(header), sizeof(int));
	return len < 0 ? -errno : len;
}

static bool is_whole(const struct handle_answer *answer, size_t len)
{
	size_t head = offsetof(struct handle_answer, signatures);

	return len >= head && answer->count <= HANDLE_BATCH &&
	       len == head + answer->count * sizeof(answer->signatures[0]);
}

/* Take the answer with the number of the latest request, if that answer has come. *ret_fd is its fd
 * or -1. Return: 0, -EAGAIN (no answer yet), or -EIO (the broker is gone). */
static int take_answer(const struct handle_client *c, struct handle_answer *ret, int *ret_fd)
{
	for (;;) {
		ssize_t len = receive(c, ret, ret_fd);

		if (len <= 0)
			return len == -EAGAIN || len == -EINTR ? -EAGAIN : -EIO;
		if (is_whole(ret, (size_t)len) && ret->nonce == c->nonce)
			return 0;
		if (*ret_fd >= 0)
			close(*ret_fd);
	}
}

/* Send a request and wait for its answer. Return: 0, the error in the answer, or -errno of this
 * side (-EIO: the broker is gone). */
static int exchange(struct handle_client *c, struct handle_request *request, const int *fds,
		    uint32_t count, struct handle_answer *ret, int *ret_fd)
{
	struct pollfd polled = {.fd = c->fd, .events = POLLIN};
	int wait_ms = FIRST_WAIT_MS, err = -EAGAIN;

	*ret_fd = -1;
	request->nonce = ++c->nonce;
	while (err == -EAGAIN) {
		err = send_request(c, request, fds, count);
		if (err)
			break;
		/* The first packet that comes may be an answer to an earlier request. */
		while ((err = take_answer(c, ret, ret_fd)) == -EAGAIN &&
		       poll(&polled, 1, wait_ms) > 0)
			continue;
		wait_ms = wait_ms * 2 < LONGEST_WAIT_MS ? wait_ms * 2 : LONGEST_WAIT_MS;
	}
	c->is_gone |= err == -EIO;
	return err ? err : ret->error;
}

int handle_client_sign(struct handle_client *c, int mount_fd, const int *fds, uint32_t count,
		       struct handle_signature *ret)
{
	struct handle_request request = {.op = HANDLE_SIGN};
	struct handle_answer answer;
	int passed[HANDLE_FDS] = {mount_fd};
	int fd, err;

	memcpy(&passed[1], fds, count * sizeof(*fds));
	err = exchange(c, &request, passed, 1 + count, &answer, &fd);
	if (fd >= 0)
		close(fd);
	if (!err && answer.count != count)
		err = -EIO;
	if (!err)
		memcpy(ret, answer.signatures, count * sizeof(*ret));
	return err;
}

int handle_client_open(struct handle_client *c, int mount_fd, struct inode_key key,
		       const struct fhandle *handle)
{
	struct handle_request request = {
		.op = HANDLE_OPEN,
		.mac = handle->mac,
		.identity = {.ino = key.ino,
			     .mnt_id = key.mnt_id,
			     .type = key.type,
			     .handle_type = handle->type,
			     .handle_len = handle->len},
	};
	struct handle_answer answer;
	int fd, err;

	memcpy(request.identity.handle_bytes, handle->bytes, sizeof(handle->bytes));
	err = exchange(c, &request, &mount_fd, 1, &answer, &fd);
	if (!err)
		return fd < 0 ? -ENFILE : fd; /* our fd table had no room for the fd */
	if (fd >= 0)
		close(fd);
	return c->is_gone ? -ESTALE : err;
}

struct fhandle handle_of_signature(const struct handle_signature *signature)
{
	struct fhandle ret = {.type = signature->identity.handle_type,
			      .len = signature->identity.handle_len,
			      .mac = signature->mac};

	memcpy(ret.bytes, signature->identity.handle_bytes, sizeof(ret.bytes));
	return ret;
}
