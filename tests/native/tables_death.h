/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Workers that die, for tests of the tables: VICTIM is stepped through an operation in a child, and
 * after each instruction that has changed the tables the test goes on as if VICTIM had died there.
 */
#ifndef TABLES_DEATH_H
#define TABLES_DEATH_H

#include "tables.h"

#include <signal.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>

enum {
	INODES = 6,
	FILES = 8,
	VICTIM = 1,
	OTHER = 2,
};

static struct bench b;

/* In place of libc's function, which reads the clock in a loop until nobody has written to it in
 * between: for a process that is stepped through that takes a hundred thousand instructions. */
int clock_gettime(clockid_t clock, struct timespec *ret)
{
	return (int)syscall(SYS_clock_gettime, clock, ret);
}

static inline void bury(uint32_t worker)
{
	inode_table_bury(b.inodes, worker);
	file_table_bury(b.files, worker);
	worker_table_bury(b.workers, worker);
}

/* What worker_create does. */
static inline void start(uint32_t worker)
{
	bench_start(&b, worker);
	inode_table_adopt_retired(b.inodes, &b.reclaims[worker]);
	file_table_adopt_retired(b.files, &b.reclaims[worker]);
}

static inline void wait_for(pid_t pid)
{
	int status;

	CHECK(waitpid(pid, &status, 0) == pid);
	CHECK(WIFEXITED(status) && !WEXITSTATUS(status));
}

/* Every nodeid and fd in the tables is used once, and what is left can be given out once. */
static inline void check_tables(uint32_t lost_max)
{
	int32_t fds[64];
	uint32_t slots[64], count = 0, fd_count;

	fd_count = (uint32_t)inode_table_fds(b.inodes, fds, 32);
	fd_count += (uint32_t)file_table_fds(b.files, fds + fd_count, 32);
	CHECK(fd_count < 64);
	for (uint32_t i = 0; i < fd_count; i++)
		for (uint32_t j = 0; j < i; j++)
			CHECK(fds[i] != fds[j]);
	/* End the session, as OTHER. */
	file_table_reset(b.files, &b.reclaims[OTHER]);
	inode_table_reset(b.inodes, &b.reclaims[OTHER]);
	for (int i = 0; i < 4; i++) {
		quiesce(&b, VICTIM);
		reclaim_offline(&b.reclaims[VICTIM]);
		quiesce(&b, OTHER);
		reclaim_offline(&b.reclaims[OTHER]);
	}
	CHECK_EQUAL(file_table_fds(b.files, fds, 32), 0);
	CHECK_EQUAL(inode_table_fds(b.inodes, fds, 32), 1);
	/* One death makes a count wrong by one, and never out of bounds. */
	CHECK(inode_table_count(b.inodes) <= 2 && inode_table_held(b.inodes) <= 2);
	CHECK(file_table_count(b.files) <= 1);
	for (uint32_t i = 0;; i++) {
		uint64_t nodeid = lookup(&b, OTHER, 1000 + i);

		if (!nodeid)
			break;
		for (uint32_t j = 0; j < count; j++)
			CHECK(slots[j] != (uint32_t)nodeid);
		CHECK(count < INODES);
		slots[count++] = (uint32_t)nodeid;
	}
	CHECK(count + lost_max >= INODES - 1);
	for (count = 0;;) {
		struct open_file *file = file_table_reserve(b.files, OTHER);

		if (!file)
			break;
		for (uint32_t j = 0; j < count; j++)
			CHECK(slots[j] != open_file_slot(b.files, file));
		CHECK(count < FILES);
		slots[count++] = open_file_slot(b.files, file);
	}
	CHECK(count + lost_max >= FILES - 1);
}

#ifdef __x86_64__

typedef void action(void);

/* Start `run` in a child and let it do `steps` instructions. Return: false if it ended. */
static inline bool run_steps(action *run, uint64_t steps, pid_t *ret_pid)
{
	pid_t pid = fork();
	int status;

	CHECK(pid >= 0);
	if (!pid) {
		CHECK(!ptrace(PTRACE_TRACEME, 0, NULL, NULL));
		raise(SIGSTOP);
		run();
		raise(SIGUSR1); /* the end, to the tracer */
		_exit(0);
	}
	*ret_pid = pid;
	CHECK(waitpid(pid, &status, 0) == pid && WIFSTOPPED(status));
	for (uint64_t i = 0; i < steps; i++) {
		CHECK(!ptrace(PTRACE_SINGLESTEP, pid, NULL, NULL));
		CHECK(waitpid(pid, &status, 0) == pid && WIFSTOPPED(status));
		if (WSTOPSIG(status) == SIGUSR1)
			return false;
		CHECK(WSTOPSIG(status) == SIGTRAP);
	}
	return true;
}

static inline void kill_child(pid_t pid)
{
	int status;

	kill(pid, SIGKILL);
	CHECK(waitpid(pid, &status, 0) == pid && WIFSIGNALED(status));
}

/* What distinguishes one moment from another: all shared memory that the operation may change. */
struct image {
	uint8_t *inodes, *files, *workers, *reclaim;
	uint8_t *fd_states;
};

static inline void image_init(struct image *image)
{
	image->inodes = malloc(inode_table_bytes(b.inode_capacity));
	image->files = malloc(file_table_bytes(FILES));
	image->workers = malloc(sizeof(struct worker_table));
	image->reclaim = malloc(WORKERS * sizeof(struct reclaim));
	image->fd_states = malloc(0x2000);
	CHECK(image->inodes && image->files && image->workers && image->reclaim);
	CHECK(image->fd_states);
}

static inline void image_end(struct image *image)
{
	free(image->inodes);
	free(image->files);
	free(image->workers);
	free(image->reclaim);
	free(image->fd_states);
}

static inline void image_save(struct image *image)
{
	memcpy(image->inodes, b.inodes, inode_table_bytes(b.inode_capacity));
	memcpy(image->files, b.files, file_table_bytes(FILES));
	memcpy(image->workers, b.workers, sizeof(struct worker_table));
	memcpy(image->reclaim, b.reclaims, WORKERS * sizeof(struct reclaim));
	memcpy(image->fd_states, b.fd_states, 0x2000);
}

static inline void image_restore(const struct image *image)
{
	memcpy(b.inodes, image->inodes, inode_table_bytes(b.inode_capacity));
	memcpy(b.files, image->files, file_table_bytes(FILES));
	memcpy(b.workers, image->workers, sizeof(struct worker_table));
	memcpy(b.reclaims, image->reclaim, WORKERS * sizeof(struct reclaim));
	memcpy(b.fd_states, image->fd_states, 0x2000);
}

/* What operations of one kind have in common. */
struct setting {
	uint32_t inodes;			    /* room in the table */
	action *reborn;				    /* VICTIM has died: check what must hold */
	bool (*differs)(const struct image *image); /* has an instruction changed the tables? */
};

/* An operation of VICTIM. */
struct operation {
	action *prepare, *run;
	uint32_t states_min; /* the number of changes that are seen at least */
	uint32_t steps_max;  /* instructions after which the rest is not looked at; 0: no limit */
};

/* Step through the operation once. Whenever the tables have changed, go on as if the worker had
 * died there, and then put the tables back. */
static inline void step_through(const struct setting *s, const struct operation *o)
{
	struct image now;
	uint32_t states = 0;
	bool more = true;
	pid_t pid;
	int status;

	bench_init(&b, s->inodes, FILES);
	image_init(&now);
	o->prepare();
	image_save(&now);
	CHECK(run_steps(o->run, 0, &pid));
	for (uint32_t step = 1; more && step != o->steps_max; step++) {
		CHECK(!ptrace(PTRACE_SINGLESTEP, pid, NULL, NULL));
		CHECK(waitpid(pid, &status, 0) == pid && WIFSTOPPED(status));
		more = WSTOPSIG(status) != SIGUSR1;
		if (more && !s->differs(&now))
			continue;
		image_save(&now);
		s->reborn();
		image_restore(&now);
		states++;
	}
	kill_child(pid);
	CHECK(states >= o->states_min);
	image_end(&now);
	bench_end(&b);
}

#endif

#endif
