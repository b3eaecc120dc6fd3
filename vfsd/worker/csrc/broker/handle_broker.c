/* SPDX-License-Identifier: Apache-2.0 */
/*
 * THEORY
 *
 * Purpose. open_by_handle_at(2) can open every file of a file system. If the share is only a part
 * of a file system, an attacker who controls a worker that may make this call reaches more than the
 * share. Without handles each file that a guest knows costs an fd. So only one process, the broker,
 * may make the call, and the broker opens for the workers only files that they had open themselves
 * before.
 *
 * Actors. Workers hold every inode by an fd as long as there are fds. When fds become scarce a
 * worker sends the broker the fds of some inodes that were not used lately, and in any case the
 * fds of inodes that the guest forgets (inode_forget.c). The broker makes the handle of each and
 * signs it (SipHash with a key that only the broker and the guard have), and the worker closes the
 * fd (inode_trim.c). When such an inode is used again the worker sends the handle and the signature
 * back and receives an O_PATH fd. A guest's request that finds an fd never involves the broker.
 *
 * What a signature says. A worker held this file open; the file has this inode number, device and
 * type and is on this mount of the share. The broker reads all of that from the fd that was sent,
 * and believes nothing that a worker says about a file. A worker that holds an fd could as well
 * keep that fd: so a worker that was taken over can open nothing here that it could not have had
 * open all the time. That includes files that the host moved out of the share later (".." of such a
 * directory leads nowhere, as for an fd that was kept).
 *
 * What is not signed: a file on a mount that is not the share's (memory of the VMM, /proc, memfds),
 * and a file without a name, which would be gone when its last fd is closed. Each request comes
 * with a directory on the mount that the request is about, and ".." of that directory must lead up
 * to the shared directory. The kernel decides where ".." leads, by mounts and not by names. Handles
 * are opened through that directory. So the broker keeps no fd of a mount, and keeps no mount busy.
 *
 * The opened file is compared with what was signed: inode number, device, mount and type. The file
 * is opened only with O_PATH, so the broker never opens a device; the seccomp filter requires that
 * flag.
 *
 * Bounds. All requests have the same size, and each has at most HANDLE_FDS fds. Answers are sent
 * without waiting: a worker that does not read them loses them. The data that waits in a socket is
 * bounded (handle_broker.py), because fds in sockets count against a limit that all processes of a
 * user share. The sockets are served in turn, one request each. No worker can read the broker's
 * memory: the broker is not dumpable and has a capability that workers do not have.
 *
 * Stale answers. A worker may die between a request and its answer; the next worker in its slot has
 * the same socket. So each request has a number, which comes back in the answer (handle_client.c).
 *
 * Death. The guard (handle_guard.c) also has the key and the sockets, and starts another broker.
 * The guard has a deputy, which takes its place when the guard dies. A request that was being
 * answered is lost, and the worker sends it again. The signatures of a dead broker stay valid.
 *
 * A limit of this design: a VMM and a worker that conspire can block the broker with an fd of a
 * file system that the VMM serves. They block only their own share.
 */
#include "worker/csrc/broker/handle_broker.h"

#include "worker/csrc/host/identity.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum {
	LEVELS_MAX = 4096, /* directories between a mount and the shared directory */
	SOCKETS_MAX = 64,  /* worker slots: at most REQUEST_QUEUES_MAX */
	OPEN_TO_LOOK = O_PATH | O_NOFOLLOW | O_CLOEXEC,
	OPEN_MOUNT = O_RDONLY | O_DIRECTORY | O_NONBLOCK | O_CLOEXEC,
};

/* ---- mounts ---- */

/* What the kernel itself knows about an fd. No file system is asked, because the VMM may be the
 * server of that file system. */
static int look(int fd, struct inode_key *ret)
{
	int flags = AT_EMPTY_PATH | AT_NO_AUTOMOUNT | AT_STATX_DONT_SYNC;
	struct statx st;

	if (syscall(SYS_statx, fd, "", flags, STATX_TYPE | STATX_INO | STATX_MNT_ID, &st) < 0)
		return -errno;
	*ret = identity_key(&st);
	return 0;
}

int handle_broker_init(struct handle_broker *b, const struct siphash_key *key, int root_fd)
{
	memset(b, 0, sizeof(*b));
	b->key = *key;
	return look(root_fd, &b->root);
}

/* Does ".." of this directory lead up to the shared directory? Return: 0, -EXDEV if not, or
 * -errno. */
static int climb(const struct handle_broker *b, int dir_fd)
{
	int fd = openat(dir_fd, ".", OPEN_TO_LOOK | O_DIRECTORY);
	struct inode_key at, below = {0};
	int err = fd < 0 ? -errno : -EXDEV;

	for (int level = 0; fd >= 0; level++) {
		int above;

		if (look(fd, &at))
			break;
		if (inode_key_equal(at, b->root)) {
			err = 0;
			break;
		}
		if (level == LEVELS_MAX || inode_key_equal(at, below))
			break; /* the top of a tree that is not the share */
		above = openat(fd, "..", OPEN_TO_LOOK | O_DIRECTORY);
		close(fd);
		fd = above;
		below = at;
	}
	if (fd >= 0)
		close(fd);
	return err;
}

/* The mount of this directory, if the mount belongs to the share. Return: 0, -EXDEV if it does not,
 * or -errno. */
static int find_mount(const struct handle_broker *b, int dir_fd, uint32_t *ret)
{
	struct inode_key key;
	int err = look(dir_fd, &key);

	*ret = inode_key_mount_id(key);
	return err ? err : climb(b, dir_fd);
}

/* ---- signatures ---- */

static uint64_t sign(const struct handle_broker *b, const struct handle_identity *identity)
{
	return siphash(&b->key, identity, sizeof(*identity));
}

/* Called before any other look at the file: the mount is checked first, so a file system that does
 * not belong to the share is asked nothing. */
static int get_handle(int fd, uint32_t mount_id, struct fhandle *ret)
{
	struct inode_key key;
	int err = look(fd, &key);

	if (!err && inode_key_mount_id(key) != mount_id)
		err = -EXDEV;
	return err ? err : fhandle_get_on_mount(fd, "", mount_id, ret);
}

static void sign_one(const struct handle_broker *b, int fd, uint32_t mount_id,
		     struct handle_signature *ret)
{
	struct handle_identity *identity = &ret->identity;
	struct fhandle handle;
	struct statx st;

	ret->error = get_handle(fd, mount_id, &handle);
	if (!ret->error)
		ret->error = identity_stat_fd(fd, &st);
	if (!ret->error && !st.stx_nlink && S_ISDIR(st.stx_mode))
		ret->error = -ENOENT;
	if (ret->error)
		return;
	identity->ino = identity_key(&st).ino;
	identity->mnt_id = identity_key(&st).mnt_id;
	identity->type = identity_key(&st).type;
	identity->handle_type = handle.type;
	identity->handle_len = handle.len;
	memcpy(identity->handle_bytes, handle.bytes, sizeof(handle.bytes));
	ret->btime = identity_birth_time(&st);
	ret->mac = sign(b, identity);
}

/* `mount_id`: the mount of the directory `dir_fd`. Return: an fd or -errno. */
static int open_signed(const struct handle_broker *b, const struct handle_request *request,
		       int dir_fd, uint32_t mount_id)
{
	const struct handle_identity *identity = &request->identity;
	struct inode_key key = {identity->ino, identity->mnt_id, identity->type}, found;
	struct fhandle handle = {.type = identity->handle_type, .len = identity->handle_len};
	int mount_fd, fd, err;

	if (sign(b, identity) != request->mac || handle.len > sizeof(handle.bytes))
		return -EACCES;
	if (inode_key_mount_id(key) != mount_id)
		return -EXDEV;
	mount_fd = openat(dir_fd, ".", OPEN_MOUNT);
	if (mount_fd < 0)
		return -errno;
	memcpy(handle.bytes, identity->handle_bytes, sizeof(handle.bytes));
	fd = fhandle_open(mount_fd, &handle, OPEN_TO_LOOK);
	close(mount_fd);
	if (fd < 0)
		return fd;
	err = look(fd, &found);
	if (!err && !inode_key_equal(found, key))
		err = -ESTALE;
	if (!err)
		return fd;
	close(fd);
	return err;
}

/* ---- one request ---- */

static int obey(const struct handle_broker *b, const struct handle_request *request, const int *fds,
		uint32_t fd_count, struct handle_answer *ret, int *ret_fd)
{
	uint32_t mount_id;
	int err = fd_count ? find_mount(b, fds[0], &mount_id) : -EINVAL;

	if (err)
		return err;
	switch (request->op) {
	case HANDLE_SIGN:
		if (fd_count > HANDLE_FDS)
			return -EINVAL;
		for (; ret->count + 1 < fd_count; ret->count++)
			sign_one(b, fds[ret->count + 1], mount_id, &ret->signatures[ret->count]);
		return 0;
	case HANDLE_OPEN:
		*ret_fd = fd_count > 1 ? -EINVAL : open_signed(b, request, fds[0], mount_id);
		return *ret_fd < 0 ? *ret_fd : 0;
	}
	return -EINVAL;
}

size_t handle_broker_answer(const struct handle_broker *b, const void *request, size_t len,
			    const int *fds, uint32_t fd_count, struct handle_answer *ret,
			    int *ret_fd)
{
	struct handle_request copy;

	*ret_fd = -1;
	if (len != sizeof(copy))
		return 0;
	memcpy(&copy, request, sizeof(copy));
	memset(ret, 0, sizeof(*ret));
	ret->nonce = copy.nonce;
	ret->error = obey(b, &copy, fds, fd_count, ret, ret_fd);
	return offsetof(struct handle_answer, signatures) +
	       ret->count * sizeof(struct handle_signature);
}

/* ---- the sockets ---- */

static uint32_t passed_fds(struct msghdr *message, int fds[static HANDLE_FDS])
{
	const struct cmsghdr *header = CMSG_FIRSTHDR(message);
	size_t bytes;

	if (!header || header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS)
		return 0;
	bytes = header->cmsg_len - CMSG_LEN(0);
	memcpy(fds, CMSG_DATA(header), bytes);
	return (uint32_t)(bytes / sizeof(int));
}

/* The kernel refuses to pass an fd while this user has too many fds in sockets (ETOOMANYREFS). The
 * answer is then an error. */
static void send_answer(int sock, struct handle_answer *answer, size_t len, int fd)
{
	if (handle_send(sock, answer, len, &fd, fd >= 0) != -ETOOMANYREFS)
		return;
	answer->error = -ENFILE;
	(void)!handle_send(sock, answer, len, NULL, 0);
}

/* Take one message and answer it. Return: true if there was a message. */
static bool serve_one(const struct handle_broker *b, int sock)
{
	uint8_t room[sizeof(struct handle_request) + 1];
	struct iovec data = {room, sizeof(room)};
	union handle_fds passed;
	struct msghdr message = {.msg_iov = &data,
				 .msg_iovlen = 1,
				 .msg_control = &passed,
				 .msg_controllen = sizeof(passed)};
	ssize_t len = recvmsg(sock, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	bool whole = !(message.msg_flags & (MSG_TRUNC | MSG_CTRUNC));
	struct handle_answer answer;
	int fds[HANDLE_FDS], ret_fd = -1;
	uint32_t fd_count;
	size_t answer_len;

	if (len < 0)
		return false;
	fd_count = passed_fds(&message, fds);
	answer_len =
		whole ? handle_broker_answer(b, room, (size_t)len, fds, fd_count, &answer, &ret_fd)
		      : 0;
	for (uint32_t i = 0; i < fd_count; i++)
		close(fds[i]);
	if (answer_len)
		send_answer(sock, &answer, answer_len, ret_fd);
	if (ret_fd >= 0)
		close(ret_fd);
	return len > 0 || fd_count;
}

void handle_broker_serve(const struct handle_broker *b, const int32_t *sockets, uint32_t count,
			 int lifeline)
{
	struct pollfd polled[SOCKETS_MAX + 1];
	uint32_t open = count < SOCKETS_MAX ? count : SOCKETS_MAX;

	count = open;
	for (uint32_t i = 0; i < count; i++)
		polled[i] = (struct pollfd){.fd = sockets[i], .events = POLLIN};
	polled[count] = (struct pollfd){.fd = lifeline};
	while (open && !polled[count].revents) {
		if (poll(polled, count + 1, -1) < 0)
			continue;
		for (uint32_t i = 0; i < count; i++) {
			bool got = polled[i].revents && serve_one(b, polled[i].fd);

			/* An empty packet does not end the connection. A closed socket does, once
			 * all packets in it have been read. */
			if (!got && polled[i].revents & (POLLHUP | POLLNVAL)) {
				polled[i].fd = -1;
				open--;
			}
		}
	}
}
