/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A worker that dies in the middle of a request, as the driver sees it. The ops here are the test's
 * own: each run of an op counts itself in shared memory, and kills its process if the test has
 * asked for that.
 */
#include "worker_setup.h"

#include "worker/csrc/request/intent.h"

#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>

enum {
	SIZE = 16,
	INODES = 16,
	FILES = 16,
	REPLY = DRIVER_DATA + 0x10000,
	SECONDS = 20,
};

struct story {
	uint32_t runs;	  /* how often an op ran */
	uint32_t replays; /* runs that were marked as replayed */
	uint32_t deaths;  /* runs that are still to die before the op has its result */
	uint32_t nap_us;  /* how long an op takes */
	int signal;	  /* that ends a worker */
};

static struct driver d;
static struct story *story;
static struct worker_config config;
static uint32_t die_at; /* the run in which a worker dies, whatever `story` says */

__attribute__((used)) int test_op(struct fs *fs, struct request *r)
{
	__atomic_add_fetch(&story->runs, 1, __ATOMIC_SEQ_CST);
	if (r->replayed)
		__atomic_add_fetch(&story->replays, 1, __ATOMIC_SEQ_CST);
	if (story->runs == die_at)
		raise(story->signal);
	if (story->deaths) {
		story->deaths--;
		raise(story->signal);
	}
	if (story->nap_us)
		usleep(story->nap_us);
	if (fuse_op(r->in.opcode)->flags & OP_NO_REPLY)
		return OUTCOME_NO_REPLY;
	memset(r->reply, (int)r->in.unique, 8);
	return 8;
}

/* In this test no inode borrows an fd. */
int lending_repay(void *context, uint32_t slot)
{
	(void)context;
	(void)slot;
	return -1;
}

/* In this test no session ends, and no guest locks a file. */
void ops_lock_drop_all(struct fs *fs)
{
	(void)fs;
}

/* Every op is test_op. This includes the ops that C does not implement, which are never called. */
#define OWN_OP(NAME, handler, size, flags) \
	__asm__(".globl op_" #handler "\n.set op_" #handler ", test_op");
VFSD_FUSE_OPS(OWN_OP)

/* ---- a device and its workers ---- */

static void begin(void)
{
	driver_init(&d, SIZE);
	story = make_shared(sizeof(*story));
	story->signal = SIGKILL;
	setup_worker(&d, "/tmp", INODES, FILES, &config);
	config.fs.workers->session.ready = 1;
}

static void end(void)
{
	close(config.device->vrings[0].kick_fd);
	munmap(config.device, sizeof(*config.device));
	munmap(config.fs.workers, sizeof(*config.fs.workers));
	munmap(config.fs.inodes, inode_table_bytes(INODES));
	munmap(config.fs.files, file_table_bytes(FILES));
	munmap(config.records, records_bytes());
	munmap(story, sizeof(*story));
	close(config.fs.root_fd);
	close(config.fs.proc_self_fd);
	close(config.control_fd);
	driver_end(&d);
}

static pid_t spawn(void)
{
	pid_t pid = fork();
	struct worker *w;

	CHECK(pid >= 0);
	if (pid)
		return pid;
	prctl(PR_SET_PDEATHSIG, SIGKILL); /* if a check fails, no process is left behind */
	w = worker_create(&config);
	if (!w || worker_adopt(w, 0) < 0)
		_exit(2);
	while (serve(w) == SERVE_CONTROL)
		continue;
	_exit(3);
}

/* Wait for the worker's death and do what the pool does then. */
static void bury(pid_t pid)
{
	int status;

	CHECK(waitpid(pid, &status, 0) == pid);
	CHECK(WIFSIGNALED(status));
	CHECK(WTERMSIG(status) == SIGKILL || WTERMSIG(status) == story->signal);
	config.fs.workers->rows[0].faulted = WTERMSIG(status) != SIGKILL;
	inode_table_bury(config.fs.inodes, 0);
	file_table_bury(config.fs.files, 0);
	worker_table_bury(config.fs.workers, 0);
}

static void stop(pid_t pid)
{
	kill(pid, SIGKILL);
	bury(pid);
}

/* ---- requests ---- */

/* MKDIR through head `head`; its reply will be at REPLY + head * 256. */
static void send_mkdir(uint16_t head, uint64_t unique)
{
	uint32_t len = sizeof(struct fuse_in_header) + sizeof(struct fuse_mkdir_in) + 2;
	uint64_t at = DRIVER_DATA + head * UINT64_C(256);
	struct fuse_in_header in = {.len = len, .opcode = FUSE_MKDIR, .unique = unique};

	memset(d.ram + at, 0, 256);
	memcpy(d.ram + at, &in, sizeof(in));
	memcpy(d.ram + at + len - 2, "x", 2);
	driver_set(&d, head, at, len, DRIVER_NEXT, (uint16_t)(head + 1));
	driver_set(&d, head + 1, REPLY + head * UINT64_C(256), 256, DRIVER_WRITE, 0);
	driver_offer(&d, head);
}

static void kick(void)
{
	CHECK(write(config.device->vrings[0].kick_fd, &(uint64_t){1}, 8) == 8);
}

static void expect_reply(uint16_t head, uint64_t unique, int error)
{
	uint64_t deadline = test_clock_ns() + UINT64_C(1000000000) * SECONDS;
	struct fuse_out_header out;
	uint32_t id, len;

	while (!driver_take(&d, &id, &len))
		CHECK(test_clock_ns() < deadline);
	memcpy(&out, d.ram + REPLY + head * 256, sizeof(out));
	CHECK_EQUAL(id, head);
	CHECK_EQUAL(out.unique, unique);
	CHECK_EQUAL(out.error, error);
	CHECK_EQUAL(len, out.len);
	if (!error)
		CHECK_EQUAL(d.ram[REPLY + head * UINT64_C(256) + sizeof(out)], (uint8_t)unique);
}

/* ---- stories ---- */

static void test_a_request_is_finished_by_the_next_worker(void)
{
	pid_t pid;

	begin();
	pid = spawn();
	story->deaths = 1;
	send_mkdir(0, 10);
	kick();
	bury(pid);
	CHECK_EQUAL(driver_used_idx(&d), 0);
	pid = spawn();
	expect_reply(0, 10, 0);
	CHECK_EQUAL(story->runs, 2);
	CHECK_EQUAL(story->replays, 1);
	stop(pid);
	end();
}

static void test_a_deadly_request_is_given_up(void)
{
	pid_t pid;

	begin();
	story->deaths = 100;
	story->signal = SIGABRT;
	send_mkdir(0, 10);
	pid = spawn();
	bury(pid);
	pid = spawn();
	bury(pid);
	pid = spawn();
	expect_reply(0, 10, -EIO);
	CHECK_EQUAL(story->runs, 2);
	stop(pid);
	end();
}

/* A kill -9 comes from outside. */
static void test_a_request_is_not_given_up_for_kills(void)
{
	pid_t pid;

	begin();
	story->deaths = 5;
	send_mkdir(0, 10);
	for (uint32_t i = 0; i < 5; i++) {
		pid = spawn();
		bury(pid);
	}
	pid = spawn();
	expect_reply(0, 10, 0);
	CHECK_EQUAL(story->runs, 6);
	CHECK_EQUAL(story->replays, 5);
	stop(pid);
	end();
}

/* The request faults, is killed, and faults again. */
static void test_a_kill_between_two_faults_clears_no_request(void)
{
	const int signals[] = {SIGABRT, SIGKILL, SIGABRT};
	pid_t pid;

	begin();
	story->deaths = 100;
	send_mkdir(0, 10);
	for (uint32_t i = 0; i < 3; i++) {
		story->signal = signals[i];
		pid = spawn();
		bury(pid);
	}
	pid = spawn();
	expect_reply(0, 10, -EIO);
	CHECK_EQUAL(story->runs, 3);
	stop(pid);
	end();
}

/* Each request is in flight at only one death, however often its head was in flight. */
static void test_deaths_are_counted_for_the_request_not_its_head(void)
{
	pid_t pid;

	begin();
	pid = spawn();
	for (uint64_t unique = 10; unique < 14; unique++) {
		story->deaths = 1;
		send_mkdir(0, unique);
		kick();
		bury(pid);
		pid = spawn();
		expect_reply(0, unique, 0);
	}
	CHECK_EQUAL(story->runs, 8);
	stop(pid);
	end();
}

/* The first request of a batch is done but not published when the second one kills the worker. */
static void test_what_is_done_is_not_done_again(void)
{
	pid_t pid;

	begin();
	send_mkdir(0, 10);
	send_mkdir(4, 11);
	send_mkdir(8, 12);
	story->deaths = 0;
	pid = spawn();
	expect_reply(0, 10, 0);
	expect_reply(4, 11, 0);
	expect_reply(8, 12, 0);
	stop(pid);
	CHECK_EQUAL(story->runs, 3);
	story->runs = 0;
	die_at = 2;
	send_mkdir(0, 20);
	send_mkdir(4, 21);
	send_mkdir(8, 22);
	pid = spawn();
	bury(pid);
	die_at = 0;
	pid = spawn();
	expect_reply(0, 20, 0);
	expect_reply(4, 21, 0);
	expect_reply(8, 22, 0);
	CHECK_EQUAL(story->runs, 4); /* the requests 20, 21, 21, 22 */
	CHECK_EQUAL(story->replays, 1);
	stop(pid);
	end();
}

/* Replies are held back while the driver sleeps, but not for longer than a turn. */
static void test_no_reply_waits_for_a_slow_request(void)
{
	pid_t pid;

	begin();
	story->nap_us = 200 * 1000;
	for (uint16_t i = 0; i < 3; i++)
		send_mkdir((uint16_t)(i * 4), 10 + i);
	pid = spawn();
	for (uint16_t i = 0; i < 3; i++) {
		expect_reply((uint16_t)(i * 4), 10 + i, 0);
		CHECK(story->runs <= i + 2u); /* at most the next request has begun */
	}
	stop(pid);
	end();
}

static struct intent *intent_of_head(uint32_t head)
{
	uint64_t offset = 64 + inflight_region_bytes(VRING_SIZE_MAX); /* the layout of ring.c */

	return (struct intent *)(void *)((uint8_t *)config.records + offset) + head;
}

/* A record says only what the dead worker wrote there, and must be checked. */
static void test_a_recorded_reply_is_no_longer_than_its_room(void)
{
	pid_t pid;

	begin();
	pid = spawn();
	story->deaths = 1;
	send_mkdir(0, 10);
	kick();
	bury(pid);
	CHECK_EQUAL(intent_of_head(0)->unique, 10);
	intent_of_head(0)->state = INTENT_DONE;
	intent_of_head(0)->reply_len = 1 << 20;
	pid = spawn();
	expect_reply(0, 10, -EIO);
	CHECK_EQUAL(story->runs, 1);
	stop(pid);
	end();
}

/* Without the folder of its fds a worker would look the names of fds up in the share. */
static void test_a_worker_that_cannot_enter_the_folder_of_its_fds_is_not_made(void)
{
	int folder;

	begin();
	folder = config.fs.proc_self_fd;
	config.fs.proc_self_fd = config.control_fd;
	CHECK(!worker_create(&config));
	config.fs.proc_self_fd = folder;
	end();
}

int main(void)
{
	RUN(test_a_request_is_finished_by_the_next_worker);
	RUN(test_a_deadly_request_is_given_up);
	RUN(test_a_request_is_not_given_up_for_kills);
	RUN(test_a_kill_between_two_faults_clears_no_request);
	RUN(test_what_is_done_is_not_done_again);
	RUN(test_deaths_are_counted_for_the_request_not_its_head);
	RUN(test_no_reply_waits_for_a_slow_request);
	RUN(test_a_recorded_reply_is_no_longer_than_its_room);
	RUN(test_a_worker_that_cannot_enter_the_folder_of_its_fds_is_not_made);
	return 0;
}
