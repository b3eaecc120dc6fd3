/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fuzz target: requests to the broker of file handles as a worker that was taken over makes them,
 * with fds of the share and others.
 *
 * Input: requests, each a struct step, followed by bytes of the request's own if the step says so.
 *
 * What must hold: nothing is opened but what was signed before, as it was signed; nothing is signed
 * but a file of the share that has a name; an answer fits and has the number of its request; no fd
 * is left.
 */
#include "fuzz.h"

#include "worker/csrc/broker/handle_broker.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>

enum {
	STEPS_MAX = 32,
	SIGNED_MAX = 64,
	SHARED = 3, /* the first fds are of the share */
	FDS = 8,
};

struct step {
	uint8_t op;
	uint8_t which;	 /* index of the handle among the signed handles */
	uint8_t changes; /* bits: 1: bytes of its own; 2: another length; 4: another mac */
	uint8_t fd_count;
	uint8_t first_fd;
};

static int root = -1;
static char folder[] = "/tmp/vfsd-fuzz-XXXXXX";
static int fds[FDS];
static struct handle_signature issued[SIGNED_MAX];
static uint32_t issued_count;

static int count_fds(void)
{
	DIR *folder = opendir("/proc/self/fd");
	int count = 0;

	CHECK(folder);
	while (readdir(folder))
		count++;
	closedir(folder);
	return count;
}

static int open_new(int dir, const char *name)
{
	int fd = openat(dir, name, O_RDWR | O_CREAT | O_CLOEXEC, 0600);

	CHECK(fd >= 0);
	close(fd);
	return openat(dir, name, O_PATH | O_CLOEXEC);
}

static void clean_up(void)
{
	(void)!unlinkat(root, "file", 0);
	(void)!unlinkat(root, "directory", AT_REMOVEDIR);
	(void)!rmdir(folder);
}

static void set_up(void)
{
	int pair[2], unlinked;

	if (root >= 0)
		return;
	CHECK(mkdtemp(folder));
	root = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	CHECK(root >= 0 && !atexit(clean_up));
	CHECK(!mkdirat(root, "directory", 0700));
	fds[0] = open_new(root, "file");
	fds[1] = openat(root, "directory", O_PATH | O_CLOEXEC);
	fds[2] = openat(root, ".", O_PATH | O_CLOEXEC);
	fds[3] = make_memfd(1);
	fds[4] = open("/proc/self", O_PATH | O_DIRECTORY | O_CLOEXEC);
	unlinked = open_new(root, "unlinked");
	CHECK(!unlinkat(root, "unlinked", 0));
	fds[5] = unlinked;
	CHECK(!socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair));
	fds[6] = pair[0];
	fds[7] = open("/dev/null", O_PATH | O_CLOEXEC);
	for (int i = 0; i < FDS; i++)
		CHECK(fds[i] >= 0);
}

/* The key depends on every byte of the input. A fuzzer learns constants from comparisons, and so
 * cannot reuse in one input a mac that it has seen in another. */
static struct siphash_key key_of(const uint8_t *data, size_t size)
{
	static const struct siphash_key KEY = {1, 2};

	return (struct siphash_key){siphash(&KEY, data, size), size};
}

static bool was_issued(const struct handle_request *request)
{
	for (uint32_t i = 0; i < issued_count; i++)
		if (issued[i].mac == request->mac &&
		    !memcmp(&issued[i].identity, &request->identity, sizeof(request->identity)))
			return true;
	return false;
}

static void check_signatures(const struct handle_answer *answer, const int *passed)
{
	for (uint32_t i = 0; i < answer->count; i++) {
		const struct handle_signature *s = &answer->signatures[i];
		struct stat st;

		if (s->error)
			continue;
		CHECK(passed[0] == fds[1] || passed[0] == fds[2]);
		CHECK(passed[i + 1] == fds[0] || passed[i + 1] == fds[1] ||
		      passed[i + 1] == fds[2]);
		CHECK(!fstat(passed[i + 1], &st) && st.st_ino == s->identity.ino);
		if (issued_count < SIGNED_MAX)
			issued[issued_count++] = *s;
	}
}

static void check_opened(const struct handle_request *request, int fd)
{
	struct stat st;

	CHECK(request->op == HANDLE_OPEN && was_issued(request));
	CHECK(!fstat(fd, &st) && st.st_ino == request->identity.ino);
	CHECK((st.st_mode & S_IFMT) == request->identity.type);
	CHECK(fcntl(fd, F_GETFL) & O_PATH);
	close(fd);
}

static void run(struct handle_broker *b, struct input *in, uint64_t nonce)
{
	struct handle_request request = {.nonce = nonce};
	size_t len = sizeof(request), answer_len;
	struct handle_answer answer;
	int passed[HANDLE_FDS], fd;
	struct step step;

	take_bytes(in, &step, sizeof(step));
	request.op = step.op % 4;
	if (issued_count) {
		request.identity = issued[step.which % issued_count].identity;
		request.mac = issued[step.which % issued_count].mac;
	}
	if (step.changes & 1)
		take_bytes(in, (uint8_t *)&request + sizeof(nonce),
			   sizeof(request) - sizeof(nonce));
	if (step.changes & 2)
		len = take_u16(in) % (sizeof(request) + 1);
	if (step.changes & 4)
		request.mac ^= take_u64(in);
	step.fd_count %= HANDLE_FDS + 1;
	for (uint8_t i = 0; i < step.fd_count; i++)
		passed[i] = fds[(step.first_fd + i) % FDS];
	answer_len = handle_broker_answer(b, &request, len, passed, step.fd_count, &answer, &fd);
	CHECK((len == sizeof(request)) == (answer_len > 0));
	if (fd >= 0)
		check_opened(&request, fd);
	if (!answer_len)
		return;
	CHECK(answer.nonce == nonce && answer.error <= 0 &&
	      (!answer.count || answer.count < step.fd_count));
	CHECK(answer_len <= sizeof(answer));
	CHECK((fd >= 0) == (request.op == HANDLE_OPEN && !answer.error));
	check_signatures(&answer, passed);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct siphash_key key = key_of(data, size);
	struct input in = {data, data + size};
	struct handle_broker b;
	int before;

	set_up();
	before = count_fds();
	issued_count = 0;
	CHECK(!handle_broker_init(&b, &key, root));
	for (uint64_t step = 0; step < STEPS_MAX && !is_empty(&in); step++)
		run(&b, &in, step);
	CHECK(count_fds() == before);
	return 0;
}
