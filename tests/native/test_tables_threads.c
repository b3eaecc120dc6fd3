/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Several threads stand for several workers: lookups, forgets, opens, releases and reads in random
 * order on tables that are too small. Each thread checks what must always hold:
 * - a nodeid resolves to the file it was given out for, or to nothing;
 * - a nodeid resolves as long as its lookups are not taken back;
 * - an fd found in a table stays open, and of the same file, until the finder's quiescent point;
 * - nothing is closed twice; in the end everything is closed and nothing is in use.
 */
#include "tables.h"

#include <pthread.h>
#include <sched.h>

enum {
	KEYS = 12,
	INODES = 10, /* too few for all keys at once */
	FILES = 6,
	HELD = 64,
	ROUNDS_MIN = 2000,
	NANOSECONDS = 1000 * 1000 * 1000,
};

struct held {
	uint64_t nodeid;
	uint32_t number;
};

struct thread {
	pthread_t thread;
	uint32_t worker;
	uint64_t random;
	struct held held[HELD]; /* the lookups of this thread */
	uint32_t held_count;
	struct open_file *pinned;
	uint32_t pinned_number;
	uint16_t *pins;
	uint64_t rounds, reads;
};

static struct bench b;
static struct thread threads[WORKERS];
static uint64_t published[KEYS];    /* the latest nodeid of each file */
static uint64_t published_fh[KEYS]; /* an fh of each file */
static uint64_t fh_nodeid[KEYS];
static uint64_t until;

static uint32_t below(struct thread *t, uint32_t end)
{
	return random_below(&t->random, end);
}

static int inode_fd(const struct inode *inode)
{
	return __atomic_load_n(&inode->fd, __ATOMIC_ACQUIRE);
}

static void check_inode(const struct inode *inode, uint32_t number)
{
	int fd = inode_fd(inode);

	CHECK_EQUAL(inode->ino, number);
	CHECK_EQUAL(inode->mnt_id, MOUNT);
	for (int i = 0; i < 20; i++)
		fd_use(&b, fd, number);
}

static void do_lookup(struct thread *t)
{
	uint32_t number = below(t, KEYS);
	uint64_t nodeid;

	if (t->held_count == HELD)
		return;
	nodeid = lookup(&b, t->worker, number);
	if (!nodeid)
		return;
	t->held[t->held_count++] = (struct held){nodeid, number};
	__atomic_store_n(&published[number], nodeid, __ATOMIC_RELEASE);
	check_inode(inode_table_get(b.inodes, nodeid), number);
}

static void do_forget(struct thread *t)
{
	uint32_t pick;

	if (!t->held_count)
		return;
	pick = below(t, t->held_count);
	CHECK(inode_table_get(b.inodes, t->held[pick].nodeid));
	forget(&b, t->worker, t->held[pick].nodeid, 1);
	t->held[pick] = t->held[--t->held_count];
}

static void do_read_inode(struct thread *t)
{
	uint32_t number = below(t, KEYS);
	uint64_t nodeid = __atomic_load_n(&published[number], __ATOMIC_ACQUIRE);
	struct inode *inode = inode_table_get(b.inodes, nodeid);

	if (!nodeid || !inode)
		return;
	check_inode(inode, number);
	t->reads++;
}

static void do_open(struct thread *t)
{
	struct open_file *file;
	struct held *held;
	uint64_t fh, nodeid;

	if (!t->held_count)
		return;
	held = &t->held[below(t, t->held_count)];
	fh = open_file(&b, t->worker, held->nodeid, held->number);
	if (!fh)
		return;
	/* Other threads see only the latest open file of a key; this thread releases the one
	 * before. */
	nodeid = __atomic_exchange_n(&fh_nodeid[held->number], held->nodeid, __ATOMIC_ACQ_REL);
	fh = __atomic_exchange_n(&published_fh[held->number], fh, __ATOMIC_ACQ_REL);
	file = fh ? file_table_get(b.files, fh, nodeid) : NULL;
	if (file)
		file_table_release(b.files, &b.reclaims[t->worker], file);
}

static struct open_file *find_file(struct thread *t, uint32_t number)
{
	uint64_t nodeid = __atomic_load_n(&fh_nodeid[number], __ATOMIC_ACQUIRE);
	uint64_t fh = __atomic_load_n(&published_fh[number], __ATOMIC_ACQUIRE);

	return fh ? file_table_get(b.files, fh, nodeid) : NULL;
}

static void do_read_file(struct thread *t)
{
	uint32_t number = below(t, KEYS);
	struct open_file *file = find_file(t, number);
	int fd;

	if (!file)
		return;
	fd = file->fd;
	for (int i = 0; i < 20; i++)
		fd_use(&b, fd, number);
	t->reads++;
	if (!t->pinned && !below(t, 8)) {
		file_pin(b.files, t->pins, t->worker, file);
		t->pinned = file;
		t->pinned_number = number;
	}
}

/* Two threads may release the same file. */
static void do_release(struct thread *t)
{
	struct open_file *file = find_file(t, below(t, KEYS));

	if (file)
		file_table_release(b.files, &b.reclaims[t->worker], file);
}

static void unpin(struct thread *t)
{
	if (!t->pinned)
		return;
	fd_use(&b, t->pinned->fd, t->pinned_number);
	file_unpin(b.files, t->pins, t->worker, t->pinned);
	t->pinned = NULL;
}

/* For every other slot an O_PATH fd takes the place of the lent fd. For the other slots no fd can
 * be opened, and the inode keeps the lent fd. */
static int repay_either_way(void *worker, uint32_t slot)
{
	struct open_file *file = file_table_at(b.files, slot);

	if (slot & 1)
		return repay_with_path(worker, slot);
	if (inode_table_repay(b.inodes, (uint32_t)(uintptr_t)worker, file->nodeid, slot, -1))
		file->keep_fd = 1;
	return file->keep_fd ? -1 : file->fd;
}

/* A file is created, released and forgotten at once. */
static void do_create(struct thread *t)
{
	uint32_t number = below(t, KEYS), slot;
	struct open_file *file = file_table_reserve(b.files, t->worker);
	struct inode *inode;
	uint64_t nodeid;
	bool used;
	int fd;

	if (!file)
		return;
	fd = fd_open(&b, number);
	slot = open_file_slot(b.files, file);
	inode = inode_table_insert(b.inodes, t->worker, key(number), fd, slot, NULL, &used);
	if (!inode) {
		fd_close(&b, fd);
		file_table_abandon(b.files, t->worker, file);
		return;
	}
	nodeid = inode_nodeid(b.inodes, inode);
	file_table_publish(b.files, file, nodeid, fd, FILE_LENDS);
	__atomic_store_n(&published[number], nodeid, __ATOMIC_RELEASE);
	check_inode(inode, number);
	file_table_release(b.files, &b.reclaims[t->worker], file);
	forget(&b, t->worker, nodeid, 1);
}

static void turn(struct thread *t)
{
	typedef void action(struct thread *);
	static action *const actions[] = {do_lookup,	 do_lookup,	do_forget,     do_forget,
					  do_read_inode, do_read_inode, do_read_inode, do_open,
					  do_read_file,	 do_read_file,	do_release,    do_create};

	actions[below(t, sizeof(actions) / sizeof(*actions))](t);
	if (t->pinned && !below(t, 20))
		unpin(t);
	if (below(t, 3))
		return;
	if (!below(t, 50)) {
		reclaim_offline(&b.reclaims[t->worker]);
		usleep(below(t, 50));
	}
	quiesce(&b, t->worker);
}

static void *run(void *arg)
{
	struct thread *t = arg;

	reclaim_quiescent(&b.reclaims[t->worker]);
	for (; t->rounds < ROUNDS_MIN || test_clock_ns() < until; t->rounds++)
		turn(t);
	unpin(t);
	while (t->held_count)
		do_forget(t);
	reclaim_offline(&b.reclaims[t->worker]);
	return NULL;
}

/* All threads have ended, so everything can be given back. */
static void check_the_end(void)
{
	int32_t fds[64];

	file_table_reset(b.files, &b.reclaims[0]);
	for (int round = 0; round < 3; round++)
		for (uint32_t i = 0; i < WORKERS; i++) {
			quiesce(&b, i);
			reclaim_offline(&b.reclaims[i]);
		}
	CHECK_EQUAL(file_table_count(b.files), 0);
	CHECK_EQUAL(inode_table_count(b.inodes), 0);
	CHECK_EQUAL(file_table_fds(b.files, fds, 64), 0);
	CHECK_EQUAL(inode_table_fds(b.inodes, fds, 64), 1);
	for (uint32_t fd = FD_FIRST; fd < *b.next_fd; fd++)
		CHECK(!fd_is_open(&b, (int)fd));
	for (uint32_t i = 1; i < INODES; i++)
		CHECK(lookup(&b, 0, i));
	CHECK(!lookup(&b, 0, INODES));
}

/* ---- the order of stores and loads that reclaim.c depends on ---- */

/* On an idle machine all meetings take a second. On a loaded machine each meeting may take the time
 * slice of another process, so the test ends after 10 seconds with fewer meetings. */
enum {
	MEETINGS = 20 * 1000,
	MEETINGS_MIN = 200,
	MEETINGS_SECONDS = 10,
	MEETING_SPINS = 1000,
};

static uint64_t arrived, nodeid_at_stake;
static bool found, is_last; /* is_last is written before the second meeting of a round */

/* Wait for the other thread, so that both go on at nearly the same moment. */
static void meet(uint64_t number)
{
	uint32_t spins = 0;

	__atomic_add_fetch(&arrived, 1, __ATOMIC_SEQ_CST);
	while (__atomic_load_n(&arrived, __ATOMIC_SEQ_CST) < 2 * number)
		if (++spins > MEETING_SPINS) /* the other thread waits for a CPU */
			sched_yield();
}

static bool is_enough(uint64_t meetings)
{
	return meetings >= MEETINGS || (meetings >= MEETINGS_MIN && test_clock_ns() >= until);
}

static void *look(void *arg)
{
	for (uint64_t i = 1; !is_last; i++) {
		meet(2 * i - 1);
		for (uint64_t pause = i * 7 % 100; pause > 0; pause--)
			cpu_relax();
		__atomic_add_fetch(&b.workers->epoch, 1, __ATOMIC_ACQ_REL);
		reclaim_quiescent(&b.reclaims[1]);
		found = inode_table_get(b.inodes, nodeid_at_stake);
		meet(2 * i);
	}
	return NULL;
}

/* An inode is made stale before the epoch is read in which it is retired. Otherwise a worker could
 * find the inode in a later epoch, and use it while it is freed. */
static void test_what_is_retired_is_not_found_in_a_later_epoch(void)
{
	struct reclaim *r;
	pthread_t thread;

	bench_init(&b, INODES, FILES);
	r = &b.reclaims[0];
	nodeid_at_stake = lookup(&b, 0, 1);
	until = test_clock_ns() + MEETINGS_SECONDS * (uint64_t)NANOSECONDS;
	CHECK(!pthread_create(&thread, NULL, look, NULL));
	for (uint64_t i = 1; !is_last; i++) {
		meet(2 * i - 1);
		forget(&b, 0, nodeid_at_stake, 1);
		is_last = is_enough(i);
		meet(2 * i);
		CHECK_EQUAL(r->count, 1);
		if (found)
			CHECK(b.workers->rows[1].epoch <= r->retired[r->first].epoch);
		reclaim_offline(&b.reclaims[1]);
		while (r->count)
			quiesce(&b, 0);
		nodeid_at_stake = lookup(&b, 0, 1);
	}
	pthread_join(thread, NULL);
	bench_end(&b);
}

static void test_hammered(void)
{
	bench_init(&b, INODES, FILES);
	until = test_clock_ns() + NANOSECONDS;
	for (uint32_t i = 0; i < WORKERS; i++) {
		threads[i].worker = i;
		threads[i].random = i + 1;
		threads[i].pins = file_pins_create(b.files);
		b.reclaims[i].repay = repay_either_way;
		CHECK(!pthread_create(&threads[i].thread, NULL, run, &threads[i]));
	}
	for (uint32_t i = 0; i < WORKERS; i++) {
		pthread_join(threads[i].thread, NULL);
		free(threads[i].pins);
		printf("worker %u: %" PRIu64 " turns, %" PRIu64 " reads\n", i, threads[i].rounds,
		       threads[i].reads);
	}
	check_the_end();
	bench_end(&b);
}

int main(void)
{
	RUN(test_what_is_retired_is_not_found_in_a_later_epoch);
	RUN(test_hammered);
	return 0;
}
