/* SPDX-License-Identifier: Apache-2.0 */
/* The fds of inodes that are held by their handles: cached, replaced, given up. */
#include "small_tables.h"

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
	fd_use(&b, path, 5); /* a worker that took the fd before may still use it */
	quiesce(&b, 0);
	CHECK(!fd_is_open(&b, path));
	inode_table_cache_readable(b.inodes, &b.reclaims[0], inode, fd_open(&b, 5));
	CHECK_EQUAL(inode_table_readable_fd(b.inodes, 0, inode),
		    readable); /* the inode has one already */
	inode_table_drop_readable(b.inodes, &b.reclaims[0], inode_nodeid(b.inodes, inode), -1);
	CHECK_EQUAL(inode_table_readable_fd(b.inodes, 0, inode), -1);
	CHECK_EQUAL(inode_table_held(b.inodes), 0);
	quiesce(&b, 0);
	CHECK(!fd_is_open(&b, readable));
	path = fd_open(&b, 5);
	CHECK_EQUAL(inode_table_cache_fd(b.inodes, &b.reclaims[0], inode, path), path);
	inode_table_drop_readable(b.inodes, &b.reclaims[0], inode_nodeid(b.inodes, inode), -1);
	CHECK_EQUAL(inode->fd, path); /* that fd is not readable */
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
	CHECK_EQUAL(fd_of(nodeid), readable); /* the inode has no other fd */
	path = fd_open(&b, 5);
	inode_table_drop_readable(b.inodes, &b.reclaims[0], nodeid, path);
	CHECK_EQUAL(fd_of(nodeid), path);
	CHECK_EQUAL(inode_table_held(b.inodes), 1);
	inode_table_drop_readable(b.inodes, &b.reclaims[0], nodeid, fd_open(&b, 5));
	CHECK_EQUAL(fd_of(nodeid), path); /* that fd is not readable */
	quiesce(&b, 0);
	CHECK(!fd_is_open(&b, readable));
	forget(&b, 0, nodeid, 1);
	quiesce(&b, 0);
	end();
}

static const struct fhandle HANDLE = {.type = 1, .len = 4, .mac = 99, .bytes = {5}};

/* An inode that had an fd, and has a signed handle in its place. */
static uint64_t demoted(int64_t btime)
{
	uint64_t nodeid = lookup(&b, 0, 5);
	struct inode *inode = inode_table_get(b.inodes, nodeid);
	int fd = fd_of(nodeid);

	inode_table_give_handle(b.inodes, 0, inode, inode->generation, fd + 1, btime, &HANDLE);
	inode_table_give_handle(b.inodes, 0, inode, inode->generation + 2, fd, btime, &HANDLE);
	CHECK(!inode_table_drop_fd(b.inodes, &b.reclaims[0],
				   inode)); /* neither call gave a handle */
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
	CHECK(!inode_table_acquire(b.inodes, 0, key(5), 0)); /* its birth time is not known */
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
	CHECK(fd_is_open(&b, old)); /* another worker may use the fd */
	quiesce(&b, 0);
	CHECK(!fd_is_open(&b, old));
	CHECK_EQUAL(inode_table_held(b.inodes), 0);
	CHECK(!inode_table_acquire(b.inodes, 0, key(5), 0));
	next = insert_with_proof(NULL, &fd, &used);
	CHECK(used && next != nodeid);
	inode_table_give_up_fd(b.inodes, &b.reclaims[0], nodeid); /* a second call finds no fd */
	CHECK_EQUAL(fd_of(next), fd);
	fd = fd_open(&b, 5);
	CHECK_EQUAL(inode_table_cache_fd(b.inodes, &b.reclaims[0],
					 inode_table_get(b.inodes, nodeid), fd),
		    fd); /* the file was not removed after all */
	CHECK_EQUAL(fd_of(nodeid), fd);
	CHECK_EQUAL(inode_table_held(b.inodes), 2);
	forget(&b, 0, nodeid, 1);
	forget(&b, 0, next, 1);
	quiesce(&b, 0);
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

int main(void)
{
	RUN(test_readable_takes_the_place_of_a_path);
	RUN(test_a_readable_fd_holds_who_has_no_handle);
	RUN(test_what_lost_its_fd_is_found_by_its_handle);
	RUN(test_what_lost_its_fd_is_known_by_its_birth);
	RUN(test_another_file_of_the_same_number_takes_its_place);
	RUN(test_nothing_is_taken_for_an_inode_that_was_let_go);
	RUN(test_the_clock_spares_what_was_used);
	return 0;
}
