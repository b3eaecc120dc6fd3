/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Workers that are killed: stepped through an operation on the tables and ended after each of its
 * instructions; killed at random among others; and one that takes over while another worker uses
 * what the dead one had begun to free, stopped after each of its instructions.
 */
#include "tables.h"

#include "worker/csrc/tables/forgotten.h"
#include "worker/csrc/tables/inode_hash.h"
#include "worker/csrc/tables/inode_layout.h"

#include <signal.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
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

/* In place of libc's function, which reads the clock in a loop until nobody has written to it in
 * between: for a process that is stepped through that takes a hundred thousand instructions. */
int clock_gettime(clockid_t clock, struct timespec *ret)
{
	return (int)syscall(SYS_clock_gettime, clock, ret);
}

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

/* What distinguishes one moment from another: all shared memory that the operation may change. */
struct image {
	uint8_t *inodes, *files, *workers, *reclaim;
	uint8_t *fd_states;
};

static void image_init(struct image *image)
{
	image->inodes = malloc(inode_table_bytes(b.inode_capacity));
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
	memcpy(image->inodes, b.inodes, inode_table_bytes(b.inode_capacity));
	memcpy(image->files, b.files, file_table_bytes(FILES));
	memcpy(image->workers, b.workers, sizeof(struct worker_table));
	memcpy(image->reclaim, b.reclaims, WORKERS * sizeof(struct reclaim));
	memcpy(image->fd_states, b.fd_states, 0x2000);
}

static void image_restore(const struct image *image)
{
	memcpy(b.inodes, image->inodes, inode_table_bytes(b.inode_capacity));
	memcpy(b.files, image->files, file_table_bytes(FILES));
	memcpy(b.workers, image->workers, sizeof(struct worker_table));
	memcpy(b.reclaims, image->reclaim, WORKERS * sizeof(struct reclaim));
	memcpy(b.fd_states, image->fd_states, 0x2000);
}

/* The ring of forgotten inodes is large, and only its first entries are used here: what is compared
 * after each instruction ends there, and goes on behind the ring. */
enum {
	COMPARED_TO = offsetof(struct inode_table, forgotten.slots[2 * INODES]),
	COMPARED_AGAIN = offsetof(struct inode_table, stripes),
};

static bool image_differs(const struct image *image)
{
	return memcmp(b.inodes, image->inodes, COMPARED_TO) ||
	       memcmp((const uint8_t *)b.inodes + COMPARED_AGAIN, image->inodes + COMPARED_AGAIN,
		      inode_table_bytes(INODES) - COMPARED_AGAIN) ||
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

/* An operation of VICTIM, and what is to hold after a death in the middle of it. */
struct operation {
	uint32_t inodes; /* room in the table */
	action *prepare, *run, *reborn;
	bool (*differs)(const struct image *image);
	uint32_t steps_max; /* what is looked at is over by then; 0: when `run` returns */
	uint32_t states_min;
};

/* Step through the operation once; whenever the tables changed, go on as if the worker had died
 * there, and put them back. */
static void step_through(const struct operation *o)
{
	struct image now;
	uint32_t states = 0;
	bool more = true;
	pid_t pid;
	int status;

	bench_init(&b, o->inodes, FILES);
	image_init(&now);
	o->prepare();
	image_save(&now);
	CHECK(run_steps(o->run, 0, &pid));
	for (uint32_t step = 1; more && step != o->steps_max; step++) {
		CHECK(!ptrace(PTRACE_SINGLESTEP, pid, NULL, NULL));
		CHECK(waitpid(pid, &status, 0) == pid && WIFSTOPPED(status));
		more = WSTOPSIG(status) != SIGUSR1;
		if (more && !o->differs(&now))
			continue;
		image_save(&now);
		o->reborn();
		image_restore(&now);
		states++;
	}
	kill_child(pid);
	CHECK(states >= o->states_min);
	image_end(&now);
	bench_end(&b);
}

static void die_after_each_store(action *prepare, action *run, uint32_t states_min)
{
	step_through(&(struct operation){
		.inodes = INODES,
		.prepare = prepare,
		.run = run,
		.reborn = be_reborn,
		.differs = image_differs,
		.states_min = states_min,
	});
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

/* A file that was created through OTHER. The inode borrows its fd. */
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
	STEPS_MAX = 700, /* the first stripe is done by then; there are STRIPES of them */
};

static uint32_t chained[CHAINED];
static uint64_t chained_nodeids[CHAINED];
static uint32_t chained_known;

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
	chained_known = count;
}

static void prepare_to_split(void)
{
	look_up_chained(5);
	CHECK_EQUAL(b.inodes->chains[0].end, (ROWS_MIN + 5) * STRIPES);
}

static void prepare_to_join(void)
{
	look_up_chained(CHAINED);
	CHECK_EQUAL(b.inodes->chains[0].end, 2 * ROWS_MIN * STRIPES);
}

static void run_split(void)
{
	lookup(&b, VICTIM, chained[CHAINED - 1]);
}

static void run_join(void)
{
	inode_table_shrink(b.inodes, VICTIM);
}

/* All that says which chain of the stripe an inode is in. */
struct stripe_image {
	struct inode_chains chains;
	struct inode_resize resize;
	uint32_t rows, lock, rows_lock;
	uint32_t heads[2 * ROWS_MIN];
	uint32_t next[CHAINED];
};

static struct stripe_image stripe_image_of(const struct inode_table *t)
{
	struct stripe_image ret = {
		.chains = t->chains[0],
		.resize = t->resizes[0],
		.rows = t->rows,
		.lock = t->stripes[0],
		.rows_lock = t->rows_lock,
	};

	for (uint32_t row = 0; row < 2 * ROWS_MIN; row++)
		ret.heads[row] = *inode_hash_head(t, row * STRIPES);
	for (uint32_t i = 0; i < chained_known; i++)
		ret.next[i] = slot_at(t, (uint32_t)chained_nodeids[i])->next;
	return ret;
}

static bool stripe_differs(const struct image *image)
{
	struct stripe_image now = stripe_image_of(b.inodes);
	struct stripe_image then = stripe_image_of((const struct inode_table *)image->inodes);

	return memcmp(&now, &then, sizeof(now));
}

/* Each is found, once, and can leave. */
static void check_chained(void)
{
	bury(VICTIM);
	for (uint32_t i = 0; i < chained_known; i++) {
		CHECK_EQUAL(lookup(&b, OTHER, chained[i]), chained_nodeids[i]);
		forget(&b, OTHER, chained_nodeids[i], 2);
		CHECK(!inode_table_knows(b.inodes, OTHER, key(chained[i])));
	}
}

static void die_while_chains_change(action *prepare, action *run, uint32_t steps_max,
				    uint32_t states_min)
{
	step_through(&(struct operation){
		.inodes = ROOMY,
		.prepare = prepare,
		.run = run,
		.reborn = check_chained,
		.differs = stripe_differs,
		.steps_max = steps_max,
		.states_min = states_min,
	});
}

static void test_death_while_chains_change(void)
{
	die_while_chains_change(prepare_to_split, run_split, 0, 9);
	die_while_chains_change(prepare_to_join, run_join, STEPS_MAX, 9);
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
