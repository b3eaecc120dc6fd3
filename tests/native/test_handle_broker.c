/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The broker of file handles and its clients, over real sockets: what is signed and opened, and
 * what becomes of answers that come late, twice, or never. Only root can open handles; the other
 * tests run for every user.
 */
#include "check.h"

#include "worker/csrc/broker/handle_broker.h"
#include "worker/csrc/broker/handle_client.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

/* The errno with which sendmsg(2) fails in this process; 0: the call is made. */
static int send_error;

ssize_t sendmsg(int sock, const struct msghdr *message, int flags)
{
	if (send_error) {
		errno = send_error;
		return -1;
	}
	return syscall(SYS_sendmsg, sock, message, flags);
}

static const struct siphash_key KEY = {1, 2};

/* A broker in a child process, and a client. */
struct scene {
	struct handle_client client;
	int theirs;
	int mount; /* a directory of the share */
	pid_t pid;
};

static int open_root(void)
{
	return open(".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
}

static void start_broker(struct scene *s)
{
	s->pid = fork();
	CHECK(s->pid >= 0);
	if (!s->pid) {
		struct handle_broker b;
		int32_t sock = s->theirs;

		close(s->client.fd);
		CHECK(!handle_broker_init(&b, &KEY, open_root()));
		handle_broker_serve(&b, &sock, 1, -1);
		_exit(0);
	}
}

/* Sign fds for a directory on the share's own mount. */
static int sign(struct scene *s, const int *fds, uint32_t count, struct handle_signature *ret)
{
	return handle_client_sign(&s->client, s->mount, fds, count, ret);
}

static int open_signed(struct scene *s, struct inode_key key, const struct fhandle *handle)
{
	return handle_client_open(&s->client, s->mount, key, handle);
}

static void begin(struct scene *s)
{
	int pair[2];

	CHECK(!socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair));
	handle_client_init(&s->client, pair[0], 1000);
	s->theirs = pair[1];
	s->mount = open(".", O_PATH | O_DIRECTORY | O_CLOEXEC);
	CHECK(s->mount >= 0);
	start_broker(s);
}

static void await_broker(struct scene *s)
{
	int status;

	CHECK(waitpid(s->pid, &status, 0) == s->pid);
	CHECK(WIFEXITED(status) && !WEXITSTATUS(status));
}

static void end(struct scene *s)
{
	close(s->theirs);
	close(s->client.fd);
	close(s->mount);
	await_broker(s);
}

static int make_file(const char *name)
{
	int fd = open(name, O_RDWR | O_CREAT | O_CLOEXEC, 0600);

	CHECK(fd >= 0);
	close(fd);
	fd = open(name, O_PATH | O_CLOEXEC);
	CHECK(fd >= 0);
	return fd;
}

static struct inode_key key_of(const struct handle_signature *s)
{
	return (struct inode_key){s->identity.ino, s->identity.mnt_id, s->identity.type};
}

static bool is_file(int fd, const char *name)
{
	struct stat a, b;

	return !fstat(fd, &a) && !stat(name, &b) && a.st_ino == b.st_ino && a.st_dev == b.st_dev;
}

static bool may_open_handles(void)
{
	struct fhandle handle;
	int root = open_root();
	int fd = fhandle_get(root, "", &handle) ? -1 : fhandle_open(root, &handle, O_PATH);

	close(root);
	if (fd >= 0)
		close(fd);
	return fd >= 0;
}

static void test_what_is_signed_can_be_opened(void)
{
	int fds[HANDLE_BATCH];
	struct handle_signature signatures[HANDLE_BATCH];
	struct scene s;

	begin(&s);
	for (int i = 0; i < HANDLE_BATCH; i++) {
		char name[16];

		snprintf(name, sizeof(name), "f%d", i);
		fds[i] = make_file(name);
	}
	CHECK(!sign(&s, fds, HANDLE_BATCH, signatures));
	for (int i = 0; i < HANDLE_BATCH; i++) {
		struct fhandle handle = handle_of_signature(&signatures[i]);
		int fd = open_signed(&s, key_of(&signatures[i]), &handle);
		char name[16];

		snprintf(name, sizeof(name), "f%d", i);
		CHECK(!signatures[i].error && signatures[i].btime);
		CHECK(!may_open_handles() || is_file(fd, name));
		if (fd >= 0) {
			CHECK(fcntl(fd, F_GETFL) & O_PATH && fcntl(fd, F_GETFD) & FD_CLOEXEC);
			close(fd);
		}
		close(fds[i]);
	}
	end(&s);
}

static void test_nothing_else_can(void)
{
	int fd = make_file("x"), other_fd = make_file("y");
	struct handle_signature signature, other;
	struct fhandle handle;
	struct inode_key key;
	struct scene s;

	begin(&s);
	CHECK(!sign(&s, &fd, 1, &signature));
	CHECK(!sign(&s, &other_fd, 1, &other));
	key = key_of(&signature);
	handle = handle_of_signature(&other); /* the handle of another file */
	CHECK_EQUAL(open_signed(&s, key, &handle), -EACCES);
	handle = handle_of_signature(&signature);
	handle.mac = other.mac;
	CHECK_EQUAL(open_signed(&s, key, &handle), -EACCES);
	handle = handle_of_signature(&signature);
	handle.len = FHANDLE_BYTES_MAX + 1;
	CHECK_EQUAL(open_signed(&s, key, &handle), -EACCES);
	for (unsigned int bit = 0; bit < 64; bit++) {
		handle = handle_of_signature(&signature);
		handle.mac ^= UINT64_C(1) << bit;
		CHECK_EQUAL(open_signed(&s, key, &handle), -EACCES);
		key.mnt_id ^= UINT64_C(1) << bit;
		handle = handle_of_signature(&signature);
		CHECK_EQUAL(open_signed(&s, key, &handle), -EACCES);
		key = key_of(&signature);
	}
	key.type = S_IFBLK;
	CHECK_EQUAL(open_signed(&s, key, &handle), -EACCES);
	close(fd);
	close(other_fd);
	end(&s);
}

static int sign_error(struct scene *s, int fd)
{
	struct handle_signature signature;

	CHECK(fd >= 0);
	CHECK(!sign(s, &fd, 1, &signature));
	close(fd);
	CHECK(!signature.mac == !!signature.error);
	return signature.error;
}

static void test_what_is_not_of_the_share_is_not_signed(void)
{
	struct scene s;
	int fd;

	begin(&s);
	CHECK_EQUAL(sign_error(&s, make_file("x")), 0);
	CHECK_EQUAL(sign_error(&s, make_memfd(1)), -EXDEV);
	CHECK_EQUAL(sign_error(&s, open("/proc/self", O_PATH | O_DIRECTORY)), -EXDEV);
	CHECK(sign_error(&s, dup(s.client.fd)) < 0);
	CHECK(!mkdir("gone", 0700));
	fd = open("gone", O_PATH | O_DIRECTORY);
	CHECK_EQUAL(sign_error(&s, dup(fd)), 0);
	CHECK(!rmdir("gone"));
	CHECK_EQUAL(sign_error(&s, fd), -ENOENT); /* its handle would keep no file */
	end(&s);
}

static void test_a_mount_is_of_the_share_if_the_way_up_leads_there(void)
{
	int outside = open("/proc", O_PATH | O_DIRECTORY), file = make_file("x");
	struct handle_signature signature;
	struct fhandle handle;
	struct scene s;

	begin(&s);
	CHECK(!sign(&s, &file, 1, &signature));
	handle = handle_of_signature(&signature);
	CHECK_EQUAL(handle_client_sign(&s.client, outside, &outside, 1, &signature), -EXDEV);
	CHECK_EQUAL(handle_client_sign(&s.client, outside, &file, 1, &signature), -EXDEV);
	CHECK_EQUAL(handle_client_open(&s.client, outside, key_of(&signature), &handle), -EXDEV);
	CHECK(handle_client_sign(&s.client, file, &file, 1, &signature) <
	      0); /* `file` is not a directory */
	close(outside);
	close(file);
	end(&s);
}

static void test_a_removed_file_is_stale(void)
{
	struct handle_signature signature;
	struct fhandle handle;
	struct scene s;
	int fd;

	if (!may_open_handles())
		return;
	begin(&s);
	fd = make_file("x"); /* after begin(): the broker has a copy of each fd that is open when it
				starts */
	CHECK(!sign(&s, &fd, 1, &signature));
	CHECK(!unlink("x"));
	CHECK(!sign(&s, &fd, 1, &signature) && !signature.error);
	close(fd);
	handle = handle_of_signature(&signature);
	CHECK_EQUAL(open_signed(&s, key_of(&signature), &handle), -ESTALE);
	end(&s);
}

/* ---- answers to another client ---- */

/* A worker that asked and died: its request waits in the socket, and its answer will come. */
static void ask_and_die(struct scene *s)
{
	struct handle_client dead = s->client;
	pid_t pid = fork();
	int fd = make_file("dead"), status;
	struct handle_signature signature;

	CHECK(pid >= 0);
	if (!pid) {
		alarm(1); /* the broker is stopped: no answer comes */
		(void)!handle_client_sign(&dead, s->mount, &fd, 1, &signature);
		_exit(1);
	}
	CHECK(waitpid(pid, &status, 0) == pid && WIFSIGNALED(status));
	close(fd);
}

static void test_the_answer_for_a_dead_worker_is_passed_over(void)
{
	struct handle_signature signature;
	struct scene s;
	int fd = make_file("x");

	begin(&s);
	kill(s.pid, SIGSTOP);
	ask_and_die(&s);
	handle_client_init(&s.client, s.client.fd, 2000); /* the next worker */
	kill(s.pid, SIGCONT);
	CHECK(!sign(&s, &fd, 1, &signature));
	CHECK(is_file(fd, "x") && signature.identity.ino);
	for (int i = 0; i < 10; i++) {
		struct stat st;

		CHECK(!sign(&s, &fd, 1, &signature));
		CHECK(!fstat(fd, &st) && st.st_ino == signature.identity.ino);
	}
	close(fd);
	end(&s);
}

static void test_a_request_survives_its_broker(void)
{
	struct handle_signature before, after;
	struct scene s;
	int fd = make_file("x");
	pid_t killer;

	begin(&s);
	CHECK(!sign(&s, &fd, 1, &before));
	kill(s.pid, SIGKILL);
	CHECK(waitpid(s.pid, NULL, 0) == s.pid);
	start_broker(&s);
	kill(s.pid, SIGSTOP);
	killer = fork();
	if (!killer) {
		usleep(300 * 1000); /* the client sends the request again during this time */
		kill(s.pid, SIGCONT);
		_exit(0);
	}
	CHECK(!sign(&s, &fd, 1, &after));
	CHECK(before.mac == after.mac);
	CHECK(waitpid(killer, NULL, 0) == killer);
	close(fd);
	end(&s);
}

static void test_without_a_broker_it_is_an_error(void)
{
	struct handle_signature signature;
	struct scene s;
	int fd = make_file("x");

	begin(&s);
	kill(s.pid, SIGKILL);
	CHECK(waitpid(s.pid, NULL, 0) == s.pid);
	close(s.theirs);
	CHECK_EQUAL(sign(&s, &fd, 1, &signature), -EIO);
	close(fd);
	close(s.client.fd);
	close(s.mount);
}

static void test_a_lack_of_memory_is_the_requests_alone(void)
{
	const int errors[] = {ENOMEM, ENOBUFS};
	struct handle_signature signature;
	struct scene s;
	int fd = make_file("x");

	begin(&s);
	for (size_t i = 0; i < sizeof(errors) / sizeof(*errors); i++) {
		send_error = errors[i];
		CHECK_EQUAL(sign(&s, &fd, 1, &signature), -errors[i]);
		send_error = 0;
		CHECK(!s.client.is_gone);
		CHECK(sign(&s, &fd, 1, &signature) != -EIO);
	}
	close(fd);
	end(&s);
}

/* ---- messages that no client sends ---- */

static void send_raw(int sock, const void *bytes, size_t len, int fd, uint32_t count)
{
	union handle_fds passed = {.header = {.cmsg_len = CMSG_LEN(count * sizeof(int)),
					      .cmsg_level = SOL_SOCKET,
					      .cmsg_type = SCM_RIGHTS}};
	struct iovec data = {(void *)bytes, len};
	struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1};

	if (count) {
		message.msg_control = &passed;
		message.msg_controllen = CMSG_SPACE(count * sizeof(int));
		for (uint32_t i = 0; i < count; i++)
			memcpy(CMSG_DATA(&passed.header) + i * sizeof(int), &fd, sizeof(int));
	}
	CHECK(sendmsg(sock, &message, 0) == (ssize_t)len);
}

static void test_odd_messages_change_nothing(void)
{
	struct handle_request request = {.nonce = 1, .op = HANDLE_OPEN};
	uint8_t large[4096] = {HANDLE_SIGN};
	struct handle_signature signature;
	struct scene s;
	int fd = make_file("x");

	begin(&s);
	for (uint32_t op = 0; op < 6; op++)
		for (uint32_t fds = 0; fds <= HANDLE_FDS; fds += 8) {
			request.op = op;
			send_raw(s.client.fd, &request, sizeof(request), fd, fds);
			send_raw(s.client.fd, &request, sizeof(request) - 1, fd, fds);
			send_raw(s.client.fd, large, sizeof(large), fd, fds);
			send_raw(s.client.fd, "", 0, fd, fds);
			CHECK(!sign(&s, &fd, 1, &signature));
		}
	close(fd);
	end(&s);
}

/* The broker does not wait until answers are read: it continues for the clients that read theirs.
 * */
static void test_who_does_not_read_stops_nobody(void)
{
	struct handle_request request = {.op = HANDLE_SIGN};
	int32_t theirs[2];
	struct handle_client client;
	struct handle_signature signature;
	int greedy[2], honest[2], fd = make_file("x"), status;
	int mount = open(".", O_PATH | O_DIRECTORY | O_CLOEXEC);
	pid_t pid;

	CHECK(!socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0, greedy));
	CHECK(!socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, honest));
	theirs[0] = greedy[1];
	theirs[1] = honest[1];
	pid = fork();
	if (!pid) {
		struct handle_broker b;

		close(greedy[0]);
		close(honest[0]);
		CHECK(!handle_broker_init(&b, &KEY, open_root()));
		handle_broker_serve(&b, theirs, 2, -1);
		_exit(0);
	}
	handle_client_init(&client, honest[0], 1);
	for (int i = 0; i < 2000; i++) {
		(void)!send(greedy[0], &request, sizeof(request), MSG_DONTWAIT);
		if (i % 100 == 0)
			CHECK(!handle_client_sign(&client, mount, &fd, 1, &signature));
	}
	close(greedy[0]);
	close(greedy[1]);
	close(honest[0]);
	close(honest[1]);
	close(mount);
	close(fd);
	CHECK(waitpid(pid, &status, 0) == pid && WIFEXITED(status) && !WEXITSTATUS(status));
}

int main(void)
{
	RUN(test_what_is_signed_can_be_opened);
	RUN(test_nothing_else_can);
	RUN(test_what_is_not_of_the_share_is_not_signed);
	RUN(test_a_mount_is_of_the_share_if_the_way_up_leads_there);
	RUN(test_a_removed_file_is_stale);
	RUN(test_the_answer_for_a_dead_worker_is_passed_over);
	RUN(test_a_request_survives_its_broker);
	RUN(test_without_a_broker_it_is_an_error);
	RUN(test_a_lack_of_memory_is_the_requests_alone);
	RUN(test_odd_messages_change_nothing);
	RUN(test_who_does_not_read_stops_nobody);
	return EXIT_SUCCESS;
}
