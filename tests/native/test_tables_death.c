/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Workers that are killed: stepped through an operation on the tables and ended after each of its
 * instructions; killed at random among others; and one that takes over while another worker uses
 * what the dead one had begun to free, stopped after each of its instructions.
 */
#include "tables.h"

#include "worker/csrc/tables/inode_layout.h"

#include "worker/csrc/tables/forgotten.h"

#include <signal.h>
#include <sys/ptrace.h>
#include <sys/prctl.h>
#include <sys/wait.h>

enum {
	INODES = 6,
	FILES = 6,
	VICTIM = 1,
	OTHER = 2,
	KEYS = 8,
	KILLS = 100,
	SLOTS_LOST_MAX = 1, /* per death */
};

static struct bench b;

static void bury(uint32_t worker)
{
	inode_table_bury(b.inodes, worker);
	file_table_bury(b.files, worker);
	worker_table_bury(b.workers, worker);
}

/* What worker_create does. */
static void start(uint32_t worker)
{
	bench_start(&b, worker);
	inode_table_adopt_retired(b.inodes, &b.reclaims[worker]);
	file_table_adopt_retired(b.files, &b.reclaims[worker]);
}

static void wait_for(pid_t pid)
{
	int status;

	CHECK(waitpid(pid, &status, 0) == pid);
	CHECK(WIFEXITED(status) && !WEXITSTATUS(status));
}

/* Every nodeid and fd in the tables is used once, and what is left can be given out once. */
static void check_tables(uint32_t lost_max)
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

/* ---- stepping ---- */

#ifdef __x86_64__

typedef void action(void);

static uint64_t shared_nodeid, shared_fh;

/* Start `run` in a child and let it do `steps` instructions. Return: false if it ended. */
static bool run_steps(action *run, uint64_t steps, pid_t *ret_pid)
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

static void kill_child(pid_t pid)
{
	int status;

	kill(pid, SIGKILL);
	CHECK(waitpid(pid, &status, 0) == pid && WIFSIGNALED(status));
}

/* What tells one moment from another: all shared memory that the operation may change. */
struct image {
	uint8_t *inodes, *files, *workers, *reclaim;
	uint8_t *fd_states;
};

static void image_init(struct image *image)
{
	image->inodes = malloc(inode_table_bytes(INODES));
	image->files = malloc(file_table_bytes(FILES));
	image->workers = malloc(sizeof(struct worker_table));
	image->reclaim = malloc(WORKERS * sizeof(struct reclaim));
	image->fd_states = malloc(0x2000);
	CHECK(image->inodes && image->files && image->workers && image->reclaim);
	CHECK(image->fd_states);
}

static void image_end(struct image *image)
{
	free(image->inodes);
	free(image->files);
	free(image->workers);
	free(image->reclaim);
	free(image->fd_states);
}

static void image_save(struct image *image)
{
	memcpy(image->inodes, b.inodes, inode_table_bytes(INODES));
	memcpy(image->files, b.files, file_table_bytes(FILES));
	memcpy(image->workers, b.workers, sizeof(struct worker_table));
	memcpy(image->reclaim, b.reclaims, WORKERS * sizeof(struct reclaim));
	memcpy(image->fd_states, b.fd_states, 0x2000);
}

static void image_restore(const struct image *image)
{
	memcpy(b.inodes, image->inodes, inode_table_bytes(INODES));
	memcpy(b.files, image->files, file_table_bytes(FILES));
	memcpy(b.workers, image->workers, sizeof(struct worker_table));
	memcpy(b.reclaims, image->reclaim, WORKERS * sizeof(struct reclaim));
	memcpy(b.fd_states, image->fd_states, 0x2000);
}

static bool image_differs(const struct image *image)
{
	return memcmp(b.inodes, image->inodes, inode_table_bytes(INODES)) ||
	       memcmp(b.files, image->files, file_table_bytes(FILES));
}

/* Else the pool's sweep closes it. */
static bool is_in_a_table(int fd)
{
	int32_t fds[64];
	uint64_t count = inode_table_fds(b.inodes, fds, 32);

	count += file_table_fds(b.files, fds + count, 32);
	for (uint64_t i = 0; i < count; i++)
		if (fds[i] == fd)
			return true;
	return false;
}

/* Nobody closes what an inode holds or borrows. */
static void check_shared_inode(void)
{
	const struct inode *inode = inode_table_get(b.inodes, shared_nodeid);

	for (int i = 0; i < 3; i++) {
		quiesce(&b, VICTIM);
		quiesce(&b, OTHER);
	}
	reclaim_offline(&b.reclaims[VICTIM]);
	reclaim_offline(&b.reclaims[OTHER]);
	if (inode && inode_table_get(b.inodes, shared_nodeid) && inode->fd >= 0)
		CHECK(fd_is_open(&b, inode->fd) && is_in_a_table(inode->fd));
}

/* Another worker needs an fd of the inode before the dead one has a successor. */
static void other_uses_inode(void)
{
	const struct inode *inode = inode_table_get(b.inodes, shared_nodeid);

	if (inode && inode->handle.len && inode->fd < 0)
		inode_table_cache_fd(b.inodes, &b.reclaims[OTHER], inode, fd_open(&b, 4));
	if (inode && inode->is_readable)
		CHECK(inode_table_readable_fd(b.inodes, OTHER, inode) >= 0);
}

static void be_reborn(void)
{
	bury(VICTIM);
	other_uses_inode();
	start(VICTIM);
	check_shared_inode();
	check_tables(SLOTS_LOST_MAX);
}

/* Step through `run`; whenever the tables changed, go on as if the worker had died there. */
static void die_after_each_store(action *prepare, action *run, uint32_t states_min)
{
	struct image now;
	uint32_t states = 0;
	bool more = true;
	pid_t pid;
	int status;

	bench_init(&b, INODES, FILES);
	image_init(&now);
	prepare();
	image_save(&now);
	CHECK(run_steps(run, 0, &pid));
	while (more) {
		CHECK(!ptrace(PTRACE_SINGLESTEP, pid, NULL, NULL));
		CHECK(waitpid(pid, &status, 0) == pid && WIFSTOPPED(status));
		more = WSTOPSIG(status) != SIGUSR1;
		if (more && !image_differs(&now))
			continue;
		image_save(&now);
		be_reborn();
		image_restore(&now);
		states++;
	}
	kill_child(pid);
	CHECK(states >= states_min);
	image_end(&now);
	bench_end(&b);
}

static void prepare_nothing(void)
{
	reclaim_quiescent(&b.reclaims[VICTIM]);
}

static void prepare_inode_and_file(void)
{
	prepare_nothing();
	CHECK(lookup(&b, OTHER, 3));
	shared_nodeid = lookup(&b, OTHER, 4);
	shared_fh = open_file(&b, OTHER, shared_nodeid, 4);
	CHECK(shared_nodeid && shared_fh);
}

/* A file that was created through OTHER, whose fd the inode borrows. */
static void prepare_lender(void)
{
	struct open_file *file = file_table_reserve(b.files, OTHER);
	int fd = fd_open(&b, 4);
	struct inode *inode;
	bool used;

	prepare_nothing();
	inode = inode_table_insert(b.inodes, OTHER, key(4), fd, open_file_slot(b.files, file), NULL,
				   &used);
	CHECK(inode && used);
	shared_nodeid = inode_nodeid(b.inodes, inode);
	shared_fh = file_table_publish(b.files, file, shared_nodeid, fd, FILE_LENDS);
}

/* The same, with its handle known; and one that was never open. */
static void prepare_handle(void)
{
	struct fhandle handle = {.type = 1, .len = 4, .bytes = {4}};
	struct inode *inode;

	prepare_nothing();
	inode = inode_table_insert_handle(b.inodes, OTHER, key(4), 0, &handle);
	CHECK(inode);
	shared_nodeid = inode_nodeid(b.inodes, inode);
}

static void prepare_readable(void)
{
	prepare_handle();
	inode_table_cache_readable(b.inodes, &b.reclaims[OTHER],
				   inode_table_get(b.inodes, shared_nodeid), fd_open(&b, 4));
}

static void run_cache_path_then_readable(void)
{
	const struct inode *inode = inode_table_get(b.inodes, shared_nodeid);

	inode_table_cache_fd(b.inodes, &b.reclaims[VICTIM], inode, fd_open(&b, 4));
	inode_table_cache_readable(b.inodes, &b.reclaims[VICTIM], inode, fd_open(&b, 4));
	quiesce(&b, VICTIM);
}

static void run_drop_readable(void)
{
	inode_table_drop_readable(b.inodes, &b.reclaims[VICTIM], shared_nodeid, -1);
	quiesce(&b, VICTIM);
}

static const struct fhandle SIGNED = {.type = 1, .len = 4, .mac = 99, .bytes = {4}};

/* One that has an fd and no handle. */
static void prepare_held(void)
{
	prepare_nothing();
	shared_nodeid = lookup(&b, OTHER, 4);
}

static void run_sign_and_drop(void)
{
	struct inode *inode = inode_table_get(b.inodes, shared_nodeid);

	inode_table_give_handle(b.inodes, VICTIM, inode, inode->generation, inode->fd, 1000,
				&SIGNED);
	CHECK(inode_table_drop_fd(b.inodes, &b.reclaims[VICTIM], inode));
	quiesce(&b, VICTIM);
}

static void prepare_signed(void)
{
	prepare_held();
	run_sign_and_drop();
}

static void run_lookup_with_proof(void)
{
	bool used;

	CHECK(inode_table_insert(b.inodes, VICTIM, key(4), fd_open(&b, 4), 0, &SIGNED, &used));
	CHECK(used);
}

static void run_cache_readable(void)
{
	inode_table_cache_readable(b.inodes, &b.reclaims[VICTIM],
				   inode_table_get(b.inodes, shared_nodeid), fd_open(&b, 4));
	quiesce(&b, VICTIM);
}

static void prepare_held_by_readable(void)
{
	prepare_held();
	run_cache_readable();
}

static void run_drop_readable_for_path(void)
{
	inode_table_drop_readable(b.inodes, &b.reclaims[VICTIM], shared_nodeid, fd_open(&b, 4));
	quiesce(&b, VICTIM);
}

static void run_repay_with_handle(void)
{
	struct fhandle handle = {.type = 1, .len = 4, .bytes = {4}};

	CHECK(inode_table_repay_handle(b.inodes, VICTIM, shared_nodeid, (uint32_t)shared_fh,
				       &handle));
}

/* ---- what is let go when it is forgotten, and comes back ---- */

static struct inode_key share_key(void)
{
	struct inode_key ret = key(4);

	ret.mnt_id = inode_table_get(b.inodes, 1)->mnt_id;
	return ret;
}

static struct inode *shared_inode;

static void prepare_exported(void)
{
	prepare_nothing();
	b.workers->session.flags = FUSE_EXPORT_SUPPORT;
	shared_inode = inode_table_insert_handle(b.inodes, OTHER, share_key(), 1000, &SIGNED);
	CHECK(shared_inode);
	shared_nodeid = inode_nodeid(b.inodes, shared_inode);
	inode_table_cache_fd(b.inodes, &b.reclaims[OTHER], shared_inode, fd_open(&b, 4));
}

static void prepare_let_go(void)
{
	prepare_exported();
	forget(&b, OTHER, shared_nodeid, 1);
}

static void run_recall(void)
{
	struct inode known;

	CHECK(forgotten_find(b.inodes, VICTIM, shared_nodeid, &known));
	CHECK(forgotten_recall(b.inodes, VICTIM, shared_nodeid));
}

static void run_acquire(void)
{
	CHECK(inode_table_acquire(b.inodes, VICTIM, share_key(), 1000));
}

static void run_insert_with_proof(void)
{
	bool used;

	CHECK(inode_table_insert(b.inodes, VICTIM, share_key(), fd_open(&b, 4), 0, &SIGNED, &used));
	CHECK(used);
}

static void run_remove(void)
{
	forgotten_remove(b.inodes, &b.reclaims[VICTIM], shared_inode);
	quiesce(&b, VICTIM);
}

static void prepare_without_handle(void)
{
	bool used;

	prepare_nothing();
	b.workers->session.flags = FUSE_EXPORT_SUPPORT;
	shared_nodeid = inode_nodeid(b.inodes, inode_table_insert(b.inodes, OTHER, share_key(),
								  fd_open(&b, 4), 0, NULL, &used));
}

static void run_forget_later(void)
{
	struct inode *inode = inode_table_get(b.inodes, shared_nodeid);

	CHECK(inode_table_forget_later(b.inodes, &b.reclaims[VICTIM], shared_nodeid, 1));
	inode_table_give_handle(b.inodes, VICTIM, inode, inode->generation, inode->fd, 1000,
				&SIGNED);
	forget(&b, VICTIM, shared_nodeid, 0);
	quiesce(&b, VICTIM);
}

static void run_lookup(void)
{
	CHECK(lookup(&b, VICTIM, 5));
}

static void run_forget(void)
{
	forget(&b, VICTIM, shared_nodeid, 1);
}

static void run_forget_and_free(void)
{
	run_forget();
	quiesce(&b, VICTIM);
}

static void run_open(void)
{
	CHECK(open_file(&b, VICTIM, shared_nodeid, 4));
}

static void run_release_and_free(void)
{
	struct open_file *file = file_table_get(b.files, shared_fh, shared_nodeid);

	file_table_release(b.files, &b.reclaims[VICTIM], file);
	quiesce(&b, VICTIM);
}

static void run_release_and_repay(void)
{
	run_release_and_free();
	quiesce(&b, VICTIM);
}

static void test_death_after_each_store(void)
{
	die_after_each_store(prepare_nothing, run_lookup, 9);
	die_after_each_store(prepare_inode_and_file, run_forget, 4);
	die_after_each_store(prepare_inode_and_file, run_forget_and_free, 8);
	die_after_each_store(prepare_inode_and_file, run_open, 5);
	die_after_each_store(prepare_inode_and_file, run_release_and_free, 6);
	die_after_each_store(prepare_lender, run_release_and_repay, 9);
	die_after_each_store(prepare_lender, run_repay_with_handle, 6);
	die_after_each_store(prepare_handle, run_cache_path_then_readable, 8);
	die_after_each_store(prepare_readable, run_drop_readable, 4);
	die_after_each_store(prepare_held, run_sign_and_drop, 9);
	die_after_each_store(prepare_signed, run_lookup_with_proof, 4);
	die_after_each_store(prepare_held, run_cache_readable, 3);
	die_after_each_store(prepare_held_by_readable, run_drop_readable_for_path, 3);
	die_after_each_store(prepare_exported, run_forget_and_free, 9);
	die_after_each_store(prepare_let_go, run_recall, 5);
	die_after_each_store(prepare_let_go, run_acquire, 5);
	die_after_each_store(prepare_let_go, run_insert_with_proof, 7);
	die_after_each_store(prepare_let_go, run_remove, 6);
	die_after_each_store(prepare_without_handle, run_forget_later, 12);
}

/* ---- hash chains that change ---- */

enum {
	ROOMY = 20 * 1024, /* inodes, which may have twice ROWS_MIN rows */
	CHAINED = 24,
	STEPS_MAX = 700, /* the change is over by then */
};

static uint32_t chained[CHAINED];
static uint64_t chained_nodeids[CHAINED];

/* Files of one stripe, of which each more that is looked up makes a chain split. */
static void look_up_chained(uint32_t count)
{
	uint32_t found = 0;

	__atomic_store_n(&b.inodes->rows, 2 * ROWS_MIN, __ATOMIC_RELEASE);
	for (uint32_t number = 1; found < CHAINED; number++)
		if (hash_of(key(number)) % STRIPES == 0)
			chained[found++] = number;
	for (uint32_t i = 0; i < count; i++)
		chained_nodeids[i] = lookup(&b, OTHER, chained[i]);
}

static void run_split(void)
{
	lookup(&b, VICTIM, chained[CHAINED - 1]);
}

static void run_join(void)
{
	inode_table_shrink(b.inodes, VICTIM);
}

/* Each is found, once, and can leave. */
static void check_chained(uint32_t count)
{
	for (uint32_t i = 0; i < count; i++) {
		CHECK_EQUAL(lookup(&b, OTHER, chained[i]), chained_nodeids[i]);
		forget(&b, OTHER, chained_nodeids[i], 2);
		CHECK(!inode_table_knows(b.inodes, OTHER, key(chained[i])));
	}
}

static void die_while_chains_change(action *run, uint32_t known, uint32_t rows)
{
	bool more = true;

	for (uint64_t steps = 0; more && steps < STEPS_MAX; steps++) {
		pid_t pid;

		bench_init(&b, ROOMY, FILES);
		look_up_chained(known);
		CHECK_EQUAL(b.inodes->chains[0].end, rows * STRIPES);
		more = run_steps(run, steps, &pid);
		kill_child(pid);
		bury(VICTIM);
		check_chained(known);
		bench_end(&b);
	}
}

static void test_death_while_chains_change(void)
{
	die_while_chains_change(run_split, 5, ROWS_MIN + 5);
	die_while_chains_change(run_join, CHAINED, 2 * ROWS_MIN);
}

/* ---- a worker that takes over, and another one that is faster ---- */

/* The victim died in forget when it had only said so: the inode is still there. */
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

/* In a child: it may have to wait for a lock that the stopped one holds. */
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

/* Only what it does first: the files are free of this, a compare-and-swap decides. */
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

/* Both must not free it. */
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
	prctl(PR_SET_PDEATHSIG, SIGKILL); /* a check that fails leaves nobody behind */
	start(worker);
	reclaim_quiescent(&b.reclaims[worker]);
	for (;;)
		worker_turn(worker, &seed);
}

/* The others go on: a lock that a dead one held does not stop them. */
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

	/* A killed worker may lose a slot: room for that. */
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
		CHECK(WIFSIGNALED(status)); /* or a check has failed in it */
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
	RUN(test_death_after_each_store);
	RUN(test_death_while_chains_change);
	RUN(test_taking_over_among_others);
#endif
	RUN(test_killed_at_random);
	return 0;
}
