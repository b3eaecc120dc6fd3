/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Workers that are killed while other workers go on. First a worker takes over from a dead worker,
 * and is stopped after each of its instructions; then another worker uses what the dead worker had
 * begun to free. After that, workers are killed at random.
 */
#include "tables_death.h"

#include <sys/prctl.h>

enum {
	KEYS = 8,
	KILLS = 100,
};

#ifdef __x86_64__

/* ---- a worker that takes over, and another worker that is faster ---- */

static uint64_t shared_nodeid;

/* The victim died in a forget, after it had marked the inode and before it had removed it. */
static void prepare_half_forgotten(void)
{
	struct inode *inode;

	shared_nodeid = lookup(&b, VICTIM, 4);
	inode = inode_table_get(b.inodes, shared_nodeid);
	CHECK(inode);
	inode->lookup_count = 0;
	inode->retired_by = VICTIM + 1;
	bury(VICTIM);
	bench_start(&b, VICTIM);
}

/* This runs in a child, because it may wait for a lock that the stopped process holds. */
static pid_t other_looks_up_and_forgets(void)
{
	pid_t pid = fork();

	CHECK(pid >= 0);
	if (!pid) {
		reclaim_quiescent(&b.reclaims[OTHER]);
		forget(&b, OTHER, lookup(&b, OTHER, 4), 1);
		reclaim_offline(&b.reclaims[OTHER]);
		_exit(0);
	}
	return pid;
}

/* The part of taking over that is about inodes. For open files one compare-and-swap decides. */
static void run_adopt(void)
{
	inode_table_adopt_retired(b.inodes, &b.reclaims[VICTIM]);
}

static bool ends_within(pid_t pid, int milliseconds)
{
	for (int i = 0; i < milliseconds * 10; i++) {
		siginfo_t info = {0};

		CHECK(!waitid(P_PID, (id_t)pid, &info, WEXITED | WNOHANG | WNOWAIT));
		if (info.si_pid == pid)
			return true;
		usleep(100);
	}
	return false;
}

static void let_end(pid_t traced)
{
	int status;

	CHECK(!ptrace(PTRACE_CONT, traced, NULL, NULL));
	CHECK(waitpid(traced, &status, 0) == traced && WIFSTOPPED(status));
	CHECK_EQUAL(WSTOPSIG(status), SIGUSR1);
	kill_child(traced);
}

/* Only one of the two workers may free the inode. */
static void test_taking_over_among_others(void)
{
	uint64_t instructions = 0;
	bool more = true;

	for (uint64_t steps = 0; more; steps++) {
		pid_t traced, other;

		bench_init(&b, INODES, FILES);
		prepare_half_forgotten();
		more = run_steps(run_adopt, steps, &traced);
		instructions = steps;
		other = other_looks_up_and_forgets();
		if (more) {
			ends_within(other, 2);
			let_end(traced);
		} else {
			kill_child(traced);
		}
		wait_for(other);
		check_tables(0);
		bench_end(&b);
	}
	printf("%" PRIu64 " instructions\n", instructions);
}

#endif

/* ---- at random ---- */

static uint64_t *turns;
static uint64_t *published;

static void check_published(uint32_t number)
{
	uint64_t nodeid = __atomic_load_n(&published[number], __ATOMIC_ACQUIRE);
	struct inode *inode = inode_table_get(b.inodes, nodeid);

	if (!nodeid || !inode)
		return;
	CHECK_EQUAL(inode->ino, number);
	fd_use(&b, __atomic_load_n(&inode->fd, __ATOMIC_ACQUIRE), number);
}

static void worker_turn(uint32_t worker, uint64_t *random)
{
	uint32_t number = random_below(random, KEYS);
	uint64_t nodeid = lookup(&b, worker, number), fh = 0;

	if (nodeid) {
		__atomic_store_n(&published[number], nodeid, __ATOMIC_RELEASE);
		fh = open_file(&b, worker, nodeid, number);
	}
	check_published(random_below(random, KEYS));
	if (fh)
		file_table_release(b.files, &b.reclaims[worker],
				   file_table_get(b.files, fh, nodeid));
	if (nodeid)
		forget(&b, worker, nodeid, 1);
	quiesce(&b, worker);
	__atomic_add_fetch(&turns[worker], 1, __ATOMIC_RELAXED);
}

static pid_t spawn(uint32_t worker, uint64_t seed)
{
	pid_t pid = fork();

	CHECK(pid >= 0);
	if (pid)
		return pid;
	prctl(PR_SET_PDEATHSIG, SIGKILL); /* a failed check leaves no process behind */
	start(worker);
	reclaim_quiescent(&b.reclaims[worker]);
	for (;;)
		worker_turn(worker, &seed);
}

/* Every worker goes on: a lock that a dead worker held does not stop it. */
static void wait_for_progress(void)
{
	for (uint32_t i = 0; i < WORKERS; i++) {
		uint64_t before = __atomic_load_n(&turns[i], __ATOMIC_RELAXED);
		uint64_t deadline = test_clock_ns() + UINT64_C(20) * 1000000000;

		while (__atomic_load_n(&turns[i], __ATOMIC_RELAXED) == before) {
			CHECK(test_clock_ns() < deadline);
			usleep(100);
		}
	}
}

static void test_killed_at_random(void)
{
	pid_t pids[WORKERS];
	uint64_t random = 99;
	int status;

	/* The tables have room for a slot that is lost with each killed worker. */
	bench_init(&b, KEYS + 2 + KILLS, KEYS + KILLS);
	turns = make_shared(WORKERS * sizeof(*turns));
	published = make_shared(KEYS * sizeof(*published));
	for (uint32_t i = 0; i < WORKERS; i++)
		pids[i] = spawn(i, i + 1);
	for (uint32_t i = 0; i < KILLS; i++) {
		uint32_t victim = random_below(&random, WORKERS);

		usleep(500 + random_below(&random, 2000));
		kill(pids[victim], SIGKILL);
		CHECK(waitpid(pids[victim], &status, 0) == pids[victim]);
		CHECK(WIFSIGNALED(status)); /* else a check has failed in the worker */
		bury(victim);
		pids[victim] = spawn(victim, i + 100);
		if (i % 10 == 9)
			wait_for_progress();
	}
	for (uint32_t i = 0; i < WORKERS; i++) {
		kill(pids[i], SIGKILL);
		CHECK(waitpid(pids[i], &status, 0) == pids[i] && WIFSIGNALED(status));
		bury(i);
	}
	munmap(turns, WORKERS * sizeof(*turns));
	munmap(published, KEYS * sizeof(*published));
	bench_end(&b);
}

int main(void)
{
#ifdef __x86_64__
	RUN(test_taking_over_among_others);
#endif
	RUN(test_killed_at_random);
	return 0;
}
