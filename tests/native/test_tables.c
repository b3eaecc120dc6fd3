/* SPDX-License-Identifier: Apache-2.0 */
#include "tables.h"

#include <sys/mman.h>

enum {
	INODES = 8, /* the root is one */
	FIRST = 15, /* slot after the root's */
	SECOND = 27,
	FILES = 8,
	ROOM = 64,
};

static struct bench b;

static void begin(void)
{
	bench_init(&b, INODES, FILES);
}

static void end(void)
{
	bench_end(&b);
}

static int fd_of(uint64_t nodeid)
{
	return inode_table_get(b.inodes, nodeid)->fd;
}

static void release(uint32_t worker, uint64_t fh, uint64_t nodeid)
{
	struct open_file *file = file_table_get(b.files, fh, nodeid);

	CHECK(file);
	file_table_release(b.files, &b.reclaims[worker], file);
}

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
	forget(&b, 0, first, 1); /* stale: takes nothing from the new one */
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
	CHECK_EQUAL(lookup(&b, 0, 3), nodeids[3]); /* the known ones are still known */
	forget(&b, 0, nodeids[4], 1);
	quiesce(&b, 0);
	CHECK(lookup(&b, 0, 100));
	CHECK(!lookup(&b, 0, 101));
	end();
}

/* Pages of the table that are there. */
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

/* As inode_trim.c does it. */
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
		nodeids[i] = lookup(&b, 0, i * 7919 + 1); /* no two are of one run of numbers */
		CHECK(nodeids[i]);
		if (nodeids[i] > largest)
			largest = nodeids[i];
	}
	for (uint32_t i = 0; i < count; i++)
		CHECK_EQUAL(lookup(&b, 0, i * 7919 + 1), nodeids[i]);
	return largest;
}

/* More than 2^20; every page but a few is given back; and no nodeid is given out twice. */
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
		CHECK(full * 4096 / MANY < 120); /* what inode_limit.py counts */
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
	/* What is retired and not closed is still held. */
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

static uint64_t create(uint32_t number, uint64_t *ret_fh, uint32_t *ret_slot)
{
	struct open_file *file = file_table_reserve(b.files, 0);
	int fd = fd_open(&b, number);
	struct inode *inode;
	bool used;

	*ret_slot = open_file_slot(b.files, file);
	inode = inode_table_insert(b.inodes, 0, key(number), fd, *ret_slot, NULL, &used);
	CHECK(inode && used);
	*ret_fh = file_table_publish(b.files, file, inode_nodeid(b.inodes, inode), fd, FILE_LENDS);
	return inode_nodeid(b.inodes, inode);
}

static void test_repaid_before_it_is_closed(void)
{
	uint64_t nodeid, fh;
	uint32_t slot;
	int lent, path;

	begin();
	nodeid = create(5, &fh, &slot);
	lent = fd_of(nodeid);
	CHECK_EQUAL(inode_table_fds(b.inodes, NULL, 0), 1); /* the file lists it */
	release(0, fh, nodeid);
	CHECK_EQUAL(fd_of(nodeid), lent); /* not yet */
	quiesce(&b, 0);
	path = fd_of(nodeid);
	CHECK(path != lent);
	fd_use(&b, path, 5);
	fd_use(&b, lent, 5); /* whoever took it from the inode may still use it */
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
	CHECK_EQUAL(*b.next_fd, opened); /* nothing was opened for it */
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
	CHECK(!inode_table_repay(b.inodes, 0, nodeid, slot, path)); /* it owes nothing any more */
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
	fd_use(&b, lent, 5); /* the file's still */
	CHECK(!inode_table_repay(b.inodes, 0, nodeid, slot, fd_open(&b, 5)));
	release(0, fh, nodeid);
	quiesce(&b, 0);
	quiesce(&b, 0);
	CHECK(!fd_is_open(&b, lent));
	end();
}

/* ---- cached fds of an inode that is held by its handle ---- */

static const struct inode *insert_with_handle(uint32_t number)
{
	struct fhandle handle = {.type = 1, .len = 4, .bytes = {(uint8_t)number}};
	struct inode *inode;

	inode = inode_table_insert_handle(b.inodes, 0, key(number), 0, &handle);
	CHECK(inode);
	return inode;
}

static void test_readable_takes_the_place_of_a_path(void)
{
	const struct inode *inode;
	int path, readable;

	begin();
	inode = insert_with_handle(5);
	path = fd_open(&b, 5);
	CHECK_EQUAL(inode_table_cache_fd(b.inodes, &b.reclaims[0], inode, path), path);
	CHECK_EQUAL(inode_table_readable_fd(b.inodes, 0, inode), -1);
	readable = fd_open(&b, 5);
	inode_table_cache_readable(b.inodes, &b.reclaims[0], inode, readable);
	CHECK_EQUAL(inode_table_readable_fd(b.inodes, 0, inode), readable);
	CHECK_EQUAL(inode_table_held(b.inodes), 1);
	fd_use(&b, path, 5); /* whoever took it before may still use it */
	quiesce(&b, 0);
	CHECK(!fd_is_open(&b, path));
	inode_table_cache_readable(b.inodes, &b.reclaims[0], inode, fd_open(&b, 5));
	CHECK_EQUAL(inode_table_readable_fd(b.inodes, 0, inode), readable); /* one is enough */
	inode_table_drop_readable(b.inodes, &b.reclaims[0], inode_nodeid(b.inodes, inode), -1);
	CHECK_EQUAL(inode_table_readable_fd(b.inodes, 0, inode), -1);
	CHECK_EQUAL(inode_table_held(b.inodes), 0);
	quiesce(&b, 0);
	CHECK(!fd_is_open(&b, readable));
	path = fd_open(&b, 5);
	CHECK_EQUAL(inode_table_cache_fd(b.inodes, &b.reclaims[0], inode, path), path);
	inode_table_drop_readable(b.inodes, &b.reclaims[0], inode_nodeid(b.inodes, inode), -1);
	CHECK_EQUAL(inode->fd, path); /* that one is not readable */
	forget(&b, 0, inode_nodeid(b.inodes, inode), 1);
	quiesce(&b, 0);
	end();
}

static void test_a_readable_fd_holds_who_has_no_handle(void)
{
	int own, readable, path;
	uint64_t nodeid;

	begin();
	nodeid = lookup(&b, 0, 5);
	own = fd_of(nodeid);
	readable = fd_open(&b, 5);
	inode_table_cache_readable(b.inodes, &b.reclaims[0], inode_table_get(b.inodes, nodeid),
				   readable);
	CHECK_EQUAL(fd_of(nodeid), readable);
	CHECK_EQUAL(inode_table_held(b.inodes), 1);
	quiesce(&b, 0);
	CHECK(!fd_is_open(&b, own));
	inode_table_drop_readable(b.inodes, &b.reclaims[0], nodeid, -1);
	CHECK_EQUAL(fd_of(nodeid), readable); /* it has nothing else */
	path = fd_open(&b, 5);
	inode_table_drop_readable(b.inodes, &b.reclaims[0], nodeid, path);
	CHECK_EQUAL(fd_of(nodeid), path);
	CHECK_EQUAL(inode_table_held(b.inodes), 1);
	inode_table_drop_readable(b.inodes, &b.reclaims[0], nodeid, fd_open(&b, 5));
	CHECK_EQUAL(fd_of(nodeid), path); /* that one is not readable */
	quiesce(&b, 0);
	CHECK(!fd_is_open(&b, readable));
	forget(&b, 0, nodeid, 1);
	quiesce(&b, 0);
	end();
}

static const struct fhandle HANDLE = {.type = 1, .len = 4, .mac = 99, .bytes = {5}};

/* An inode that had an fd, and has a signed handle instead. */
static uint64_t demoted(int64_t btime)
{
	uint64_t nodeid = lookup(&b, 0, 5);
	struct inode *inode = inode_table_get(b.inodes, nodeid);
	int fd = fd_of(nodeid);

	inode_table_give_handle(b.inodes, 0, inode, inode->generation, fd + 1, btime, &HANDLE);
	inode_table_give_handle(b.inodes, 0, inode, inode->generation + 2, fd, btime, &HANDLE);
	CHECK(!inode_table_drop_fd(b.inodes, &b.reclaims[0], inode)); /* seen otherwise: no */
	inode_table_give_handle(b.inodes, 0, inode, inode->generation, fd, btime, &HANDLE);
	CHECK(inode_table_is_checked(inode));
	CHECK(inode_table_drop_fd(b.inodes, &b.reclaims[0], inode));
	CHECK_EQUAL(inode_table_held(b.inodes), 0);
	quiesce(&b, 0);
	CHECK(!fd_is_open(&b, fd));
	return nodeid;
}

static uint64_t insert_with_proof(const struct fhandle *proof, int *ret_fd, bool *ret_used)
{
	*ret_fd = fd_open(&b, 5);
	return inode_nodeid(b.inodes,
			    inode_table_insert(b.inodes, 0, key(5), *ret_fd, 0, proof, ret_used));
}

static void test_what_lost_its_fd_is_found_by_its_handle(void)
{
	uint64_t nodeid;
	bool used;
	int fd;

	begin();
	nodeid = demoted(0);
	CHECK(!inode_table_acquire(b.inodes, 0, key(5), 0)); /* nothing is known of its birth */
	CHECK(inode_table_knows(b.inodes, 0, key(5)) && !inode_table_knows(b.inodes, 0, key(6)));
	CHECK_EQUAL(insert_with_proof(&HANDLE, &fd, &used), nodeid);
	CHECK(used);
	CHECK_EQUAL(fd_of(nodeid), fd);
	CHECK_EQUAL(inode_table_held(b.inodes), 1);
	CHECK_EQUAL(insert_with_proof(&HANDLE, &fd, &used), nodeid);
	CHECK(!used);
	fd_close(&b, fd);
	CHECK(inode_table_acquire(b.inodes, 0, key(5), 0)); /* an fd holds it again */
	forget(&b, 0, nodeid, 4);
	quiesce(&b, 0);
	end();
}

static void test_what_lost_its_fd_is_known_by_its_birth(void)
{
	uint64_t nodeid;

	begin();
	nodeid = demoted(1000);
	CHECK(!inode_table_acquire(b.inodes, 0, key(5), 1001));
	CHECK(inode_table_acquire(b.inodes, 0, key(5), 1000));
	forget(&b, 0, nodeid, 2);
	quiesce(&b, 0);
	end();
}

static void test_another_file_of_the_same_number_takes_its_place(void)
{
	const struct fhandle other = {.type = 1, .len = 4, .bytes = {6}};
	uint64_t nodeid, next;
	bool used;
	int fd;

	begin();
	nodeid = demoted(0);
	next = insert_with_proof(&other, &fd, &used);
	CHECK(used && next != nodeid);
	CHECK_EQUAL(fd_of(next), fd);
	CHECK_EQUAL(fd_of(nodeid), -1);
	forget(&b, 0, nodeid, 1);
	forget(&b, 0, next, 1);
	quiesce(&b, 0);
	end();
}

static void test_nothing_is_taken_for_an_inode_that_was_let_go(void)
{
	uint64_t nodeid, next;
	bool used;
	int old, fd;

	begin();
	nodeid = lookup(&b, 0, 5);
	old = fd_of(nodeid);
	inode_table_give_up_fd(b.inodes, &b.reclaims[0], 1);
	CHECK(fd_of(1) >= 0); /* the root stays */
	inode_table_give_up_fd(b.inodes, &b.reclaims[0], nodeid);
	CHECK(fd_of(nodeid) < 0);
	CHECK(fd_is_open(&b, old)); /* another worker may use it */
	quiesce(&b, 0);
	CHECK(!fd_is_open(&b, old));
	CHECK_EQUAL(inode_table_held(b.inodes), 0);
	CHECK(!inode_table_acquire(b.inodes, 0, key(5), 0));
	next = insert_with_proof(NULL, &fd, &used);
	CHECK(used && next != nodeid);
	inode_table_give_up_fd(b.inodes, &b.reclaims[0], nodeid); /* again: there is nothing */
	CHECK_EQUAL(fd_of(next), fd);
	fd = fd_open(&b, 5);
	CHECK_EQUAL(inode_table_cache_fd(b.inodes, &b.reclaims[0],
					 inode_table_get(b.inodes, nodeid), fd),
		    fd); /* it was not removed after all */
	CHECK_EQUAL(fd_of(nodeid), fd);
	CHECK_EQUAL(inode_table_held(b.inodes), 2);
	forget(&b, 0, nodeid, 1);
	forget(&b, 0, next, 1);
	quiesce(&b, 0);
	end();
}

static bool is_really_open(int fd)
{
	return fcntl(fd, F_GETFD) >= 0;
}

/* Of real fds. Worker 1 is in the middle of a turn: what it may use is not closed. */
static void test_a_flush_closes_nothing_under_a_reader(void)
{
	int fd = open("/", O_PATH | O_CLOEXEC);

	begin();
	reclaim_quiescent(&b.reclaims[1]);
	reclaim_retire(&b.reclaims[0], (struct retired){.fd = fd});
	reclaim_flush(&b.reclaims[0]);
	CHECK(is_really_open(fd));
	reclaim_offline(&b.reclaims[1]);
	reclaim_flush(&b.reclaims[0]);
	CHECK(!is_really_open(fd));
	end();
}

static void test_the_clock_spares_what_was_used(void)
{
	uint64_t nodeid;
	struct inode *inode;

	begin();
	nodeid = lookup(&b, 0, 5);
	inode = inode_table_get(b.inodes, nodeid);
	inode_table_touch(inode);
	for (int round = 0; round < 2; round++)
		for (uint32_t place = 0; place < INODE_BLOCK; place++)
			CHECK_EQUAL(inode_table_next_idle(b.inodes) == inode, round && place == 1);
	forget(&b, 0, nodeid, 1);
	quiesce(&b, 0);
	end();
}

/* ---- open files ---- */

static void test_open_and_release(void)
{
	uint64_t fh, again;
	int fd;

	begin();
	fh = open_file(&b, 0, 42, 7);
	CHECK(fh && file_table_get(b.files, fh, 42));
	CHECK(!file_table_get(b.files, fh, 43));
	CHECK(!file_table_get(b.files, fh + 1, 42));
	CHECK(!file_table_get(b.files, 0, 42));
	CHECK(!file_table_get(b.files, UINT64_MAX, 42));
	CHECK(!file_table_get(b.files, fh + (UINT64_C(2) << 32), 42));
	fd = file_table_get(b.files, fh, 42)->fd;
	release(0, fh, 42);
	CHECK(!file_table_get(b.files, fh, 42));
	quiesce(&b, 0);
	CHECK(!fd_is_open(&b, fd));
	again = open_file(&b, 0, 42, 7);
	CHECK((uint32_t)again == (uint32_t)fh && again != fh);
	CHECK(!file_table_get(b.files, fh, 42));
	end();
}

static void test_released_twice(void)
{
	struct open_file *file;
	uint64_t fh;

	begin();
	fh = open_file(&b, 0, 42, 7);
	file = file_table_get(b.files, fh, 42);
	file_table_release(b.files, &b.reclaims[0], file);
	file_table_release(b.files, &b.reclaims[1], file);
	quiesce(&b, 0);
	quiesce(&b, 1);
	CHECK_EQUAL(file_table_count(b.files), 0);
	end();
}

static void test_full_file_table(void)
{
	uint64_t fhs[FILES];
	struct open_file *file;

	begin();
	for (uint32_t i = 1; i < FILES; i++)
		CHECK((fhs[i] = open_file(&b, 0, 42, i)));
	CHECK(!file_table_reserve(b.files, 0));
	release(0, fhs[3], 42);
	CHECK(!file_table_reserve(b.files, 0)); /* not before the quiescent point */
	quiesce(&b, 0);
	file = file_table_reserve(b.files, 0);
	CHECK(file && !file_table_reserve(b.files, 0));
	file_table_abandon(b.files, 0, file);
	CHECK(file_table_reserve(b.files, 0) == file);
	file_table_reset(b.files, &b.reclaims[0]);
	quiesce(&b, 0);
	CHECK_EQUAL(file_table_count(b.files), 0);
	end();
}

static void test_pinned_files_wait(void)
{
	struct open_file *file;
	uint16_t *pins;
	uint64_t fh;
	int fd;

	begin();
	fh = open_file(&b, 0, 42, 7);
	file = file_table_get(b.files, fh, 42);
	fd = file->fd;
	pins = file_pins_create(b.files);
	file_pin(b.files, pins, 2, file);
	release(1, fh, 42);
	for (int i = 0; i < 10; i++)
		quiesce(&b, 1);
	CHECK(fd_is_open(&b, fd));
	file_unpin(b.files, pins, 2, file);
	quiesce(&b, 1);
	CHECK(!fd_is_open(&b, fd));
	free(pins);
	end();
}

static void test_a_dead_workers_pins_are_taken_back(void)
{
	struct open_file *file;
	uint16_t *pins;
	uint64_t fh;
	int fd;

	begin();
	fh = open_file(&b, 0, 42, 7);
	file = file_table_get(b.files, fh, 42);
	fd = file->fd;
	pins = file_pins_create(b.files);
	file_pin(b.files, pins, 2, file);
	file_pin(b.files, pins, 2, file);
	release(1, fh, 42);
	quiesce(&b, 1);
	CHECK(fd_is_open(&b, fd));
	file_table_bury(b.files, 2);
	quiesce(&b, 1);
	CHECK(!fd_is_open(&b, fd));
	free(pins);
	end();
}

static void test_lock_owners_are_found_once_each(void)
{
	struct open_file *file, *same, *other;
	bool added;

	begin();
	CHECK(!file_table_lock_owner(b.files, 0, 42, 1));
	file = file_table_reserve(b.files, 0);
	CHECK(file_table_add_lock_owner(b.files, 0, file, 42, 1, fd_open(&b, 7), &added) == file);
	CHECK(added && file_table_lock_owner(b.files, 1, 42, 1) == file);
	CHECK(!file_table_lock_owner(b.files, 1, 42, 2) &&
	      !file_table_lock_owner(b.files, 1, 43, 1));
	other = file_table_reserve(b.files, 1);
	same = file_table_add_lock_owner(b.files, 1, other, 42, 1, -1, &added);
	CHECK(!added && same == file);
	CHECK(file_table_add_lock_owner(b.files, 1, other, 42, 2, fd_open(&b, 8), &added) == other);
	file_table_drop_lock_owner(b.files, &b.reclaims[0], file);
	file_table_drop_lock_owner(b.files, &b.reclaims[0], file); /* two may drop the same */
	CHECK(!file_table_lock_owner(b.files, 0, 42, 1));
	CHECK(file_table_lock_owner(b.files, 0, 42, 2) == other);
	file_table_reset(b.files, &b.reclaims[0]);
	CHECK(!file_table_lock_owner(b.files, 0, 42, 2));
	quiesce(&b, 0);
	CHECK_EQUAL(file_table_count(b.files), 0);
	end();
}

/* Each is found before it is added: with all of them in one list that would take minutes. Return:
 * seconds of the CPU, as the machine may be busy. */
static double add_and_find_lock_owners(const uint64_t *owners, uint32_t count)
{
	clock_t started = clock();
	bool added;

	bench_init(&b, INODES, count + 8);
	for (uint32_t i = 0; i < count; i++) {
		struct open_file *file = file_table_reserve(b.files, 0);

		CHECK(file && !file_table_lock_owner(b.files, 0, 42, owners[i]));
		file_table_add_lock_owner(b.files, 0, file, 42, owners[i], fd_open(&b, 7), &added);
		CHECK(added);
	}
	for (uint32_t i = 0; i < count; i++)
		CHECK(file_table_lock_owner(b.files, 0, 42, owners[i]));
	file_table_reset(b.files, &b.reclaims[0]);
	end();
	return (double)(clock() - started) / CLOCKS_PER_SEC;
}

static void test_a_quarter_of_a_million_lock_owners_cost_what_a_few_do(void)
{
	static uint64_t owners[250000];
	double seconds;

	for (uint32_t i = 0; i < 250000; i++)
		owners[i] = (uint64_t)i * 4096;
	seconds = add_and_find_lock_owners(owners, 250000);
	printf("%.1f us per owner\n", seconds * 1e6 / 250000);
	CHECK(seconds < 20);
}

/* The factor that takes a multiplication with the odd `factor` back, modulo 2^64. */
static uint64_t inverse(uint64_t factor)
{
	uint64_t found = factor;

	for (int i = 0; i < 6; i++)
		found *= 2 - factor * found;
	return found;
}

/* Owners that have one hash: of a hash that was used here and had no secret. */
static void test_lock_owners_of_a_guests_choice_are_not_in_one_list(void)
{
	const uint64_t golden = UINT64_C(0x9e3779b97f4a7c15);
	static uint64_t owners[50000];

	for (uint32_t i = 0; i < 50000; i++) {
		uint64_t mixed = i * inverse(golden);

		mixed ^= mixed >> 32;
		owners[i] = mixed * inverse(UINT64_C(0xd6e8feb86659fd93)) ^ 42 * golden;
	}
	CHECK(add_and_find_lock_owners(owners, 50000) < 2);
}

/* ---- reclaim ---- */

static void test_nothing_is_closed_under_a_reader(void)
{
	uint64_t fh;
	int fd;

	begin();
	fh = open_file(&b, 0, 42, 7);
	reclaim_quiescent(&b.reclaims[1]); /* a batch begins … */
	fd = file_table_get(b.files, fh, 42)->fd;
	release(0, fh, 42);
	for (int i = 0; i < 10; i++)
		quiesce(&b, 0);
	fd_use(&b, fd, 7);
	reclaim_quiescent(&b.reclaims[1]); /* … and ends */
	quiesce(&b, 0);
	CHECK(!fd_is_open(&b, fd));
	end();
}

static void test_a_sleeper_and_a_dead_one_hold_nothing_up(void)
{
	uint64_t fh;

	begin();
	reclaim_quiescent(&b.reclaims[1]);
	reclaim_offline(&b.reclaims[1]);
	reclaim_quiescent(&b.reclaims[2]);
	fh = open_file(&b, 0, 42, 7);
	release(0, fh, 42);
	quiesce(&b, 0);
	CHECK_EQUAL(file_table_count(b.files), 1); /* worker 2 */
	worker_table_bury(b.workers, 2);
	quiesce(&b, 0);
	CHECK_EQUAL(file_table_count(b.files), 0);
	end();
}

static struct retired real_fd(uint64_t *pinned_by)
{
	return (struct retired){.fd = dup(2), .pinned_by = pinned_by};
}

static bool is_open(int fd)
{
	return fcntl(fd, F_GETFD) >= 0;
}

/* Close what is ready, until the list is empty. */
static void collect_all(struct reclaim *r)
{
	do {
		reclaim_quiescent(r);
		reclaim_collect(r);
		for (uint32_t i = 0; i < r->close_count; i++)
			close(r->close[i]);
		r->close_count = 0;
	} while (r->count);
}

/* A full list makes room; it may close only what nobody can be using. */
static void test_a_full_list_closes_no_pinned_fd(void)
{
	struct reclaim *r;
	uint64_t pinned_by = 1;
	struct retired pinned = real_fd(&pinned_by);

	begin();
	r = &b.reclaims[0];
	reclaim_retire(r, real_fd(NULL));
	reclaim_retire(r, pinned);
	while (r->count < RECLAIM_MAX)
		reclaim_retire(r, (struct retired){.fd = -1});
	reclaim_retire(r, (struct retired){.fd = -1});
	CHECK(is_open(pinned.fd));
	CHECK(r->count < RECLAIM_MAX);
	pinned_by = 0;
	collect_all(r);
	CHECK(!is_open(pinned.fd));
	end();
}

/* However much waits: neither what another worker may be reading nor what is pinned is closed. */
static void test_a_full_list_grows_while_all_of_it_is_in_use(void)
{
	uint64_t pinned_by = 1;
	struct retired read_by_other = real_fd(NULL), pinned = real_fd(&pinned_by);
	struct reclaim *r;

	begin();
	r = &b.reclaims[0];
	reclaim_quiescent(&b.reclaims[1]); /* a batch begins that does not end */
	reclaim_retire(r, pinned);
	reclaim_retire(r, read_by_other);
	for (int i = 0; i < 3 * RECLAIM_MAX; i++)
		reclaim_retire(r, (struct retired){.fd = -1});
	CHECK(is_open(pinned.fd));
	CHECK(is_open(read_by_other.fd));
	CHECK_EQUAL(r->count, 3 * RECLAIM_MAX + 2);
	reclaim_offline(&b.reclaims[1]);
	pinned_by = 0;
	collect_all(r);
	CHECK(!is_open(pinned.fd));
	CHECK(!is_open(read_by_other.fd));
	CHECK(r->retired == r->own); /* and it is small again */
	end();
}

/* A request that hangs keeps its own file open, not those that were released later. */
static void test_what_is_pinned_holds_up_nothing_else(void)
{
	uint64_t pinned_by = 1;
	struct retired pinned = real_fd(&pinned_by), later = real_fd(NULL);
	struct reclaim *r;

	begin();
	r = &b.reclaims[0];
	reclaim_retire(r, pinned);
	reclaim_retire(r, later);
	reclaim_quiescent(r);
	CHECK_EQUAL(reclaim_collect(r), 1);
	CHECK_EQUAL(r->close[0], later.fd);
	CHECK_EQUAL(r->count, 1);
	pinned_by = 0;
	collect_all(r);
	CHECK(!is_open(pinned.fd));
	end();
}

/* A lender stays in the list when it has repaid: room is made all the same. */
static void test_a_list_full_of_lenders_makes_room(void)
{
	struct reclaim *r;
	uint64_t nodeid, fh;
	uint32_t slot;

	begin();
	r = &b.reclaims[0];
	nodeid = create(5, &fh, &slot);
	file_table_at(b.files, slot)->keep_fd = 1;
	release(0, fh, nodeid);
	while (r->count < RECLAIM_MAX)
		reclaim_retire(r, (struct retired){.fd = -1, .lends = true, .slot = slot});
	for (int i = 0; i < 2 * RECLAIM_MAX; i++) {
		reclaim_retire(r, (struct retired){.fd = -1, .lends = true, .slot = slot});
		CHECK(r->count <= RECLAIM_MAX);
	}
	end();
}

/* The pool's sweep must not close what its worker is going to close. */
static void test_what_waits_to_be_closed_is_held_by_the_worker_if_by_no_table(void)
{
	struct retired cached = real_fd(NULL);
	struct reclaim *r;
	uint64_t fh;

	begin();
	r = &b.reclaims[0];
	b.workers->rows[0].pid = 1;
	fh = open_file(&b, 0, 42, 7);
	release(0, fh, 42);
	CHECK(worker_table_held_nothing(b.workers, 0, 0)); /* the table still has it */
	reclaim_retire(r, cached);
	CHECK(!worker_table_held_nothing(b.workers, 0, 0));
	reclaim_quiescent(r);
	CHECK_EQUAL(reclaim_collect(r), 2);
	CHECK_EQUAL(b.workers->rows[0].loose_fds, 2);
	reclaim_close(&b.workers->rows[0], cached.fd);
	CHECK(!worker_table_held_nothing(b.workers, 0, 0));
	fd_close(&b, r->close[0]);
	b.workers->rows[0].loose_fds--;
	CHECK(worker_table_held_nothing(b.workers, 0, 0));
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
	/* It dies; another one takes its place. */
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
	RUN(test_readable_takes_the_place_of_a_path);
	RUN(test_a_readable_fd_holds_who_has_no_handle);
	RUN(test_what_lost_its_fd_is_found_by_its_handle);
	RUN(test_what_lost_its_fd_is_known_by_its_birth);
	RUN(test_another_file_of_the_same_number_takes_its_place);
	RUN(test_nothing_is_taken_for_an_inode_that_was_let_go);
	RUN(test_a_flush_closes_nothing_under_a_reader);
	RUN(test_the_clock_spares_what_was_used);
	RUN(test_open_and_release);
	RUN(test_released_twice);
	RUN(test_full_file_table);
	RUN(test_pinned_files_wait);
	RUN(test_a_dead_workers_pins_are_taken_back);
	RUN(test_lock_owners_are_found_once_each);
	RUN(test_a_quarter_of_a_million_lock_owners_cost_what_a_few_do);
	RUN(test_lock_owners_of_a_guests_choice_are_not_in_one_list);
	RUN(test_nothing_is_closed_under_a_reader);
	RUN(test_a_sleeper_and_a_dead_one_hold_nothing_up);
	RUN(test_a_full_list_closes_no_pinned_fd);
	RUN(test_a_full_list_grows_while_all_of_it_is_in_use);
	RUN(test_what_is_pinned_holds_up_nothing_else);
	RUN(test_a_list_full_of_lenders_makes_room);
	RUN(test_what_waits_to_be_closed_is_held_by_the_worker_if_by_no_table);
	RUN(test_burying_releases_locks);
	RUN(test_the_next_worker_frees_what_was_retired);
	return 0;
}
