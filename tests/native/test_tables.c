/* SPDX-License-Identifier: Apache-2.0 */
/* The inode table: looking up, forgetting, borrowed fds, and the successor of a dead worker. */
#include "small_tables.h"

#include <sys/mman.h>

enum {
	FIRST = 16, /* slot after the root's */
	SECOND = 27,
};

/* ---- inodes ---- */

static void test_lookup_and_forget(void)
{
	uint64_t nodeid;
	int fd;

	begin();
	nodeid = lookup(&b, 0, 5);
	CHECK(nodeid > 1);
	CHECK_EQUAL(lookup(&b, 1, 5), nodeid);
	CHECK_EQUAL(inode_table_count(b.inodes), 1);
	fd = fd_of(nodeid);
	forget(&b, 0, nodeid, 1);
	quiesce(&b, 0);
	fd_use(&b, fd, 5);
	forget(&b, 1, nodeid, 1);
	CHECK(!inode_table_get(b.inodes, nodeid)); /* stale at once */
	CHECK(!inode_table_acquire(b.inodes, 0, key(5), 0));
	CHECK(fd_is_open(&b, fd)); /* closed after the quiescent point */
	quiesce(&b, 1);
	reclaim_offline(&b.reclaims[0]);
	quiesce(&b, 1);
	CHECK(!fd_is_open(&b, fd));
	CHECK_EQUAL(inode_table_count(b.inodes), 0);
	end();
}

static void test_a_slot_is_used_again_under_another_nodeid(void)
{
	uint64_t first, second;

	begin();
	first = lookup(&b, 0, 5);
	forget(&b, 0, first, 1);
	quiesce(&b, 0);
	second = lookup(&b, 0, 6);
	CHECK_EQUAL((uint32_t)first, (uint32_t)second);
	CHECK(first != second);
	CHECK(!inode_table_get(b.inodes, first));
	forget(&b, 0, first, 1); /* a stale nodeid takes nothing from the new inode */
	CHECK(inode_table_get(b.inodes, second));
	end();
}

static void test_forgetting_too_much(void)
{
	uint64_t nodeid;

	begin();
	nodeid = lookup(&b, 0, 5);
	forget(&b, 0, nodeid, UINT64_MAX);
	forget(&b, 0, nodeid, 1);
	quiesce(&b, 0);
	forget(&b, 0, nodeid, 1);
	quiesce(&b, 0);
	CHECK_EQUAL(inode_table_count(b.inodes), 0);
	CHECK(lookup(&b, 0, 5));
	CHECK_EQUAL(inode_table_count(b.inodes), 1);
	end();
}

static void test_nodeids_that_were_never_given(void)
{
	static const uint64_t wrong[] = {0,
					 FIRST,
					 1 | UINT64_C(1) << 32,
					 FIRST | UINT64_C(3) << 32,
					 (FIRST + 1) | UINT64_C(1) << 32, /* within a slot */
					 SECOND | UINT64_C(1) << 32,
					 (1 + 14 * INODES) | UINT64_C(1) << 32,
					 (1 + 512) | UINT64_C(1) << 32,
					 UINT32_MAX | UINT64_C(1) << 32,
					 UINT64_MAX};

	begin();
	CHECK(lookup(&b, 0, 5) == (FIRST | UINT64_C(1) << 32));
	for (uint32_t i = 0; i < sizeof(wrong) / sizeof(*wrong); i++) {
		CHECK(!inode_table_get(b.inodes, wrong[i]));
		forget(&b, 0, wrong[i], 1);
	}
	CHECK_EQUAL(inode_table_count(b.inodes), 1);
	end();
}

static void test_the_root_stays(void)
{
	struct inode *root;

	begin();
	root = inode_table_get(b.inodes, 1);
	CHECK(root && S_ISDIR(root->mode) && inode_nodeid(b.inodes, root) == 1);
	forget(&b, 0, 1, UINT64_MAX);
	inode_table_reset(b.inodes, &b.reclaims[0]);
	CHECK(inode_table_get(b.inodes, 1) == root);
	CHECK(inode_table_acquire(b.inodes, 0, inode_key_of(root), 0) == root);
	end();
}

static void test_a_full_table(void)
{
	uint64_t nodeids[INODES];

	begin();
	for (uint32_t i = 1; i < INODES; i++)
		CHECK((nodeids[i] = lookup(&b, 0, i)));
	CHECK(!lookup(&b, 0, 100));
	CHECK_EQUAL(lookup(&b, 0, 3), nodeids[3]); /* known inodes stay known */
	forget(&b, 0, nodeids[4], 1);
	quiesce(&b, 0);
	CHECK(lookup(&b, 0, 100));
	CHECK(!lookup(&b, 0, 101));
	end();
}

/* The number of pages of the table that are in memory. */
static uint64_t pages_of(struct inode_table *t, uint32_t capacity)
{
	uint64_t pages = inode_table_bytes(capacity) / 4096, count = 0;
	uint8_t *present = malloc(pages);

	CHECK(present && !mincore(t, pages * 4096, present));
	for (uint64_t i = 0; i < pages; i++)
		count += present[i] & 1;
	free(present);
	return count;
}

/* Give memory back as inode_trim.c does. */
static void give_back(void)
{
	for (uint32_t block = 0; inode_table_take_mark(b.inodes, &block); block++)
		if (inode_table_is_empty(b.inodes, block))
			inode_table_give_back(b.inodes, 0, block);
	while (inode_table_shrink(b.inodes, 0))
		;
}

static uint64_t look_up_all(uint64_t *nodeids, uint32_t count)
{
	uint64_t largest = 0;

	for (uint32_t i = 0; i < count; i++) {
		nodeids[i] = lookup(&b, 0, i * 7919 + 1); /* each number is in a run of its own */
		CHECK(nodeids[i]);
		if (nodeids[i] > largest)
			largest = nodeids[i];
	}
	for (uint32_t i = 0; i < count; i++)
		CHECK_EQUAL(lookup(&b, 0, i * 7919 + 1), nodeids[i]);
	return largest;
}

/* More than 2^20 inodes come and go. Nearly every page is given back, and no nodeid is given out
 * twice. */
static void test_a_large_table(void)
{
	enum {
		MANY = 1500 * 1000,
		CAPACITY = 1 << 24,
	};
	uint64_t *nodeids = malloc(MANY * sizeof(*nodeids)), before, full, generation = 0;

	CHECK(nodeids);
	bench_init(&b, CAPACITY, FILES);
	reclaim_quiescent(&b.reclaims[0]);
	before = pages_of(b.inodes, CAPACITY);
	for (int round = 0; round < 2; round++) {
		CHECK(look_up_all(nodeids, MANY) >> 32 == generation + 1);
		full = pages_of(b.inodes, CAPACITY) - before;
		CHECK(full * 4096 / MANY < 128); /* what inode_limit.py counts */
		for (uint32_t i = 0; i < MANY; i++) {
			forget(&b, 0, nodeids[i], 2);
			if (i % 1000 == 0)
				quiesce(&b, 0);
		}
		for (int i = 0; i < MANY / 64; i++)
			quiesce(&b, 0);
		CHECK_EQUAL(inode_table_count(b.inodes), 0);
		give_back();
		CHECK(pages_of(b.inodes, CAPACITY) - before < full / 100);
		CHECK(!inode_table_get(b.inodes, nodeids[MANY - 1]));
		generation += 2;
	}
	free(nodeids);
	bench_end(&b);
}

static void test_reset(void)
{
	begin();
	for (uint32_t i = 1; i < INODES; i++)
		for (uint32_t j = 0; j < i; j++)
			CHECK(lookup(&b, 0, i));
	inode_table_reset(b.inodes, &b.reclaims[0]);
	quiesce(&b, 0);
	CHECK_EQUAL(inode_table_count(b.inodes), 0);
	for (uint32_t fd = FD_FIRST; fd < *b.next_fd; fd++)
		CHECK(!fd_is_open(&b, (int)fd));
	end();
}

static void test_listing_fds(void)
{
	int32_t fds[ROOM];
	uint64_t nodeid, fh;
	int fd;

	begin();
	nodeid = lookup(&b, 0, 5);
	fd = fd_of(nodeid);
	CHECK_EQUAL(inode_table_fds(b.inodes, fds, ROOM), 2); /* and the root */
	CHECK_EQUAL(fds[1], fd);
	CHECK_EQUAL(inode_table_fds(b.inodes, NULL, 0), 2);
	fh = open_file(&b, 0, nodeid, 5);
	CHECK_EQUAL(file_table_fds(b.files, fds, ROOM), 1);
	/* The tables still hold an fd that was retired and not closed. */
	release(0, fh, nodeid);
	forget(&b, 0, nodeid, 1);
	CHECK_EQUAL(inode_table_fds(b.inodes, fds, ROOM), 2);
	CHECK_EQUAL(file_table_fds(b.files, fds, ROOM), 1);
	quiesce(&b, 0);
	CHECK_EQUAL(inode_table_fds(b.inodes, fds, ROOM), 1);
	CHECK_EQUAL(file_table_fds(b.files, fds, ROOM), 0);
	end();
}

/* ---- an inode that borrows its fd from the open file that created it ---- */

static void test_repaid_before_it_is_closed(void)
{
	uint64_t nodeid, fh;
	uint32_t slot;
	int lent, path;

	begin();
	nodeid = create(5, &fh, &slot);
	lent = fd_of(nodeid);
	CHECK_EQUAL(inode_table_fds(b.inodes, NULL, 0), 1); /* the open file has the fd */
	release(0, fh, nodeid);
	CHECK_EQUAL(fd_of(nodeid), lent); /* the fd is not repaid yet */
	quiesce(&b, 0);
	path = fd_of(nodeid);
	CHECK(path != lent);
	fd_use(&b, path, 5);
	fd_use(&b, lent, 5); /* a worker that took the fd from the inode may still use it */
	quiesce(&b, 0);
	CHECK(!fd_is_open(&b, lent));
	CHECK_EQUAL(file_table_count(b.files), 0);
	forget(&b, 0, nodeid, 1);
	quiesce(&b, 0);
	CHECK(!fd_is_open(&b, path));
	end();
}

static void test_forgotten_before_it_is_repaid(void)
{
	uint64_t nodeid, fh;
	uint32_t slot, opened;
	int lent;

	begin();
	nodeid = create(5, &fh, &slot);
	lent = fd_of(nodeid);
	opened = *b.next_fd;
	release(0, fh, nodeid);
	forget(&b, 0, nodeid, 1);
	quiesce(&b, 0);
	fd_use(&b, lent, 5);
	quiesce(&b, 0);
	CHECK(!fd_is_open(&b, lent));
	CHECK_EQUAL(*b.next_fd, opened); /* no fd was opened to repay with */
	end();
}

static void test_only_the_lender_repays_and_once(void)
{
	uint64_t nodeid, fh;
	uint32_t slot;
	int path;

	begin();
	nodeid = create(5, &fh, &slot);
	path = fd_open(&b, 5);
	CHECK(!inode_table_repay(b.inodes, 0, nodeid, slot + 1, path));
	CHECK(inode_table_repay(b.inodes, 0, nodeid, slot, path));
	CHECK(!inode_table_repay(b.inodes, 0, nodeid, slot,
				 path)); /* the inode owes nothing any more */
	release(0, fh, nodeid);
	quiesce(&b, 0);
	quiesce(&b, 0);
	CHECK_EQUAL(fd_of(nodeid), path);
	end();
}

static void test_repaid_with_the_lent_fd(void)
{
	uint64_t nodeid, fh;
	uint32_t slot;
	int lent;

	begin();
	nodeid = create(5, &fh, &slot);
	lent = fd_of(nodeid);
	CHECK(inode_table_repay(b.inodes, 0, nodeid, slot, -1));
	file_table_at(b.files, slot)->keep_fd = 1;
	release(0, fh, nodeid);
	quiesce(&b, 0);
	quiesce(&b, 0);
	fd_use(&b, lent, 5);
	CHECK_EQUAL(file_table_count(b.files), 0);
	forget(&b, 0, nodeid, 1);
	quiesce(&b, 0);
	CHECK(!fd_is_open(&b, lent));
	end();
}

static void test_forgotten_while_it_borrows(void)
{
	uint64_t nodeid, fh;
	uint32_t slot;
	int lent;

	begin();
	nodeid = create(5, &fh, &slot);
	lent = fd_of(nodeid);
	forget(&b, 0, nodeid, 1);
	quiesce(&b, 0);
	fd_use(&b, lent, 5); /* still the fd of the file */
	CHECK(!inode_table_repay(b.inodes, 0, nodeid, slot, fd_open(&b, 5)));
	release(0, fh, nodeid);
	quiesce(&b, 0);
	quiesce(&b, 0);
	CHECK(!fd_is_open(&b, lent));
	end();
}

/* ---- death ---- */

static void test_burying_releases_locks(void)
{
	uint32_t word = 0;

	owner_lock(&word, 3);
	owner_lock_bury(&word, 2);
	CHECK_EQUAL(word, 4);
	owner_lock_bury(&word, 3);
	CHECK_EQUAL(word, 0);
}

static void test_the_next_worker_frees_what_was_retired(void)
{
	uint64_t nodeid, fh;

	begin();
	reclaim_quiescent(&b.reclaims[1]);
	nodeid = lookup(&b, 1, 5);
	fh = open_file(&b, 1, nodeid, 5);
	release(1, fh, nodeid);
	forget(&b, 1, nodeid, 1);
	/* Worker 1 dies, and another worker takes its place. */
	inode_table_bury(b.inodes, 1);
	file_table_bury(b.files, 1);
	worker_table_bury(b.workers, 1);
	bench_start(&b, 1);
	inode_table_adopt_retired(b.inodes, &b.reclaims[1]);
	file_table_adopt_retired(b.files, &b.reclaims[1]);
	quiesce(&b, 1);
	CHECK_EQUAL(inode_table_count(b.inodes), 0);
	CHECK_EQUAL(file_table_count(b.files), 0);
	for (uint32_t fd = FD_FIRST; fd < *b.next_fd; fd++)
		CHECK(!fd_is_open(&b, (int)fd));
	end();
}

int main(void)
{
	RUN(test_lookup_and_forget);
	RUN(test_a_slot_is_used_again_under_another_nodeid);
	RUN(test_forgetting_too_much);
	RUN(test_nodeids_that_were_never_given);
	RUN(test_the_root_stays);
	RUN(test_a_full_table);
	RUN(test_a_large_table);
	RUN(test_reset);
	RUN(test_listing_fds);
	RUN(test_repaid_before_it_is_closed);
	RUN(test_forgotten_before_it_is_repaid);
	RUN(test_only_the_lender_repays_and_once);
	RUN(test_repaid_with_the_lent_fd);
	RUN(test_forgotten_while_it_borrows);
	RUN(test_burying_releases_locks);
	RUN(test_the_next_worker_frees_what_was_retired);
	return 0;
}
