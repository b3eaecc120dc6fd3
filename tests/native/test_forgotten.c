/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Inodes that the guest has forgotten: which of them come back, under which nodeid, and for how
 * long. Then the same by several workers at once, on files that never change: as long as there is
 * room, the nodeid of a file is always the same one.
 */
#include "tables.h"

#include "worker/csrc/tables/forgotten.h"

#include <pthread.h>

enum {
	INODES = 64,
	FILES = 4,
	BORN = 1000, /* long ago */
	KEYS = 12,
	ROUNDS = 3000,
};

static struct bench b;

static void begin(uint32_t capacity)
{
	bench_init(&b, capacity, FILES);
	b.workers->session.flags = FUSE_EXPORT_SUPPORT;
	for (uint32_t i = 0; i < WORKERS; i++)
		reclaim_quiescent(&b.reclaims[i]);
}

/* Like key() of tables.h, for files on the mount of the share. */
static struct inode_key share_key(uint32_t number)
{
	struct inode_key ret = key(number);

	ret.mnt_id = inode_table_get(b.inodes, FUSE_ROOT_ID)->mnt_id;
	return ret;
}

static struct fhandle handle_of(uint32_t number)
{
	struct fhandle ret = {.type = 1, .len = sizeof(number)};

	memcpy(ret.bytes, &number, sizeof(number));
	return ret;
}

/* LOOKUP of a name. */
static uint64_t look_up(uint32_t worker, uint32_t number)
{
	struct inode *inode = inode_table_acquire(b.inodes, worker, share_key(number), BORN);
	struct fhandle handle = handle_of(number);

	if (!inode)
		inode = inode_table_insert_handle(b.inodes, worker, share_key(number), BORN,
						  &handle);
	return inode ? inode_nodeid(b.inodes, inode) : 0;
}

/* LOOKUP of "." by nodeid. Return: was the inode found? */
static bool recall(uint32_t worker, uint64_t nodeid)
{
	struct inode known, *inode;

	if (!forgotten_find(b.inodes, worker, nodeid, &known))
		return false;
	inode = forgotten_recall(b.inodes, worker, nodeid);
	if (!inode)
		return false;
	CHECK_EQUAL(inode_nodeid(b.inodes, inode), nodeid);
	CHECK_EQUAL(inode->ino, known.ino);
	return true;
}

static void quiesce_all(void)
{
	uint32_t waiting = 1;

	while (waiting) {
		waiting = 0;
		for (uint32_t i = 0; i < WORKERS; i++) {
			quiesce(&b, i);
			waiting += b.reclaims[i].count;
		}
	}
}

static void test_it_comes_back(void)
{
	uint64_t nodeid;

	begin(INODES);
	nodeid = look_up(0, 5);
	for (int i = 0; i < 3; i++) {
		forget(&b, 0, nodeid, 1);
		CHECK(!inode_table_get(b.inodes, nodeid));
		CHECK_EQUAL(inode_table_count(b.inodes), 0);
		quiesce_all();
		CHECK(recall(1, nodeid));
		CHECK(!recall(1, nodeid)); /* the inode is not forgotten */
		CHECK(inode_table_get(b.inodes, nodeid));
		CHECK_EQUAL(inode_table_count(b.inodes), 1);
	}
	forget(&b, 0, nodeid, 1);
	CHECK_EQUAL(look_up(2, 5), nodeid);
	CHECK_EQUAL(look_up(2, 5), nodeid);
	forget(&b, 0, nodeid, 1);
	CHECK(inode_table_get(b.inodes, nodeid));
	bench_end(&b);
}

static void test_it_holds_no_fd(void)
{
	struct inode *inode;
	uint64_t nodeid;
	int fd;

	begin(INODES);
	nodeid = look_up(0, 5);
	inode = inode_table_get(b.inodes, nodeid);
	fd = fd_open(&b, 5);
	CHECK_EQUAL(inode_table_cache_fd(b.inodes, &b.reclaims[0], inode, fd), fd);
	forget(&b, 0, nodeid, 1);
	CHECK_EQUAL(inode_table_held(b.inodes), 0);
	CHECK(fd_is_open(&b, fd)); /* a worker may be using the fd */
	quiesce_all();
	CHECK(!fd_is_open(&b, fd));
	CHECK(recall(0, nodeid));
	CHECK_EQUAL(inode->fd, -1);
	bench_end(&b);
}

static void test_an_fd_and_its_proof_bring_it_back(void)
{
	struct fhandle proof;
	uint64_t nodeid;
	bool used;
	int fd;

	begin(INODES);
	proof = handle_of(5);
	for (uint32_t i = 6; i < 9; i++) /* entries whose place is not the first */
		forget(&b, 0, look_up(0, i), 1);
	nodeid = look_up(0, 5);
	forget(&b, 0, nodeid, 1);
	fd = fd_open(&b, 5);
	CHECK_EQUAL(inode_nodeid(b.inodes, inode_table_insert(b.inodes, 0, share_key(5), fd, 0,
							      &proof, &used)),
		    nodeid);
	CHECK(used);
	CHECK_EQUAL(inode_table_held(b.inodes), 1);
	bench_end(&b);
}

static void test_the_root_is_never_forgotten(void)
{
	struct inode *root;

	begin(INODES);
	root = inode_table_get(b.inodes, FUSE_ROOT_ID);
	CHECK(inode_table_acquire(b.inodes, 0, inode_key_of(root), 0) == root);
	CHECK_EQUAL(inode_nodeid(b.inodes, root), FUSE_ROOT_ID);
	forget(&b, 0, FUSE_ROOT_ID, 9);
	CHECK(!recall(0, FUSE_ROOT_ID));
	CHECK_EQUAL(inode_nodeid(b.inodes, root), FUSE_ROOT_ID);
	bench_end(&b);
}

static void test_what_is_not_kept(void)
{
	struct fhandle handle = handle_of(5);
	uint64_t nodeids[3], again;
	struct inode *inode;

	begin(INODES);
	nodeids[0] = lookup(&b, 0, 4); /* without a handle */
	inode = inode_table_insert_handle(b.inodes, 0, key(5), BORN, &handle); /* another mount */
	nodeids[1] = inode_nodeid(b.inodes, inode);
	nodeids[2] = look_up(0, 6);
	forget(&b, 0, nodeids[0], 1);
	forget(&b, 0, nodeids[1], 1);
	b.workers->session.flags = 0;
	forget(&b, 0, nodeids[2], 1);
	quiesce_all();
	for (int i = 0; i < 3; i++)
		CHECK(!recall(0, nodeids[i]));
	again = look_up(0, 6);
	CHECK(again && again != nodeids[2]);
	bench_end(&b);
}

static void test_a_handle_decides_whose_number_it_is(void)
{
	struct fhandle other = handle_of(99);
	struct inode *inode;
	uint64_t nodeid;

	begin(INODES);
	nodeid = look_up(0, 5);
	forget(&b, 0, nodeid, 1);
	CHECK(!inode_table_acquire(b.inodes, 0, share_key(5), BORN + 1));
	inode = inode_table_insert_handle(b.inodes, 0, share_key(5), BORN + 1, &other);
	CHECK(inode_nodeid(b.inodes, inode) != nodeid);
	CHECK(inode_table_acquire(b.inodes, 0, share_key(5), BORN + 1) == inode);
	bench_end(&b);
}

/* The oldest inodes leave the table. An inode that came back and was let go again is not old. */
static void test_the_latest_are_kept(void)
{
	enum { MORE = 100 };
	uint64_t *nodeids = calloc(FORGOTTEN_MAX + MORE, sizeof(*nodeids));

	CHECK(nodeids);
	begin(4 * FORGOTTEN_MAX);
	for (uint32_t i = 0; i < FORGOTTEN_MAX; i++) {
		nodeids[i] = look_up(0, i + 2);
		forget(&b, 0, nodeids[i], 1);
	}
	CHECK(recall(0, nodeids[0]));
	forget(&b, 0, nodeids[0], 1); /* the new entry replaces the older entry of the same inode */
	CHECK(recall(0, nodeids[3]));
	forget(&b, 0, nodeids[3], 1);
	for (uint32_t i = FORGOTTEN_MAX; i < FORGOTTEN_MAX + MORE; i++) {
		nodeids[i] = look_up(0, i + 2);
		forget(&b, 0, nodeids[i], 1);
	}
	quiesce_all();
	for (uint32_t i = 0; i < FORGOTTEN_MAX + MORE; i++)
		CHECK_EQUAL(recall(0, nodeids[i]), i >= MORE + 2 || i == 0 || i == 3);
	CHECK_EQUAL(inode_table_count(b.inodes), FORGOTTEN_MAX);
	bench_end(&b);
	free(nodeids);
}

static void test_the_oldest_make_room(void)
{
	uint64_t nodeids[INODES], nodeid;

	begin(INODES);
	for (uint32_t i = 2; i < INODES; i++) {
		nodeids[i] = look_up(0, i);
		CHECK(nodeids[i]);
	}
	for (uint32_t i = 2; i < INODES; i++)
		forget(&b, 0, nodeids[i], 1);
	for (uint32_t i = 2; i < INODES; i++) {
		forgotten_make_room(b.inodes, &b.reclaims[0]);
		quiesce_all();
		nodeid = look_up(0, 1000 + i);
		CHECK(nodeid);
		for (uint32_t j = 2; j < INODES; j++)
			CHECK(nodeid != nodeids[j]);
	}
	CHECK_EQUAL(inode_table_count(b.inodes), INODES - 2);
	bench_end(&b);
}

/* The guest knows none of the forgotten inodes, so no fullness is reported, and their pages can be
 * given back. */
static void test_what_is_forgotten_does_not_fill_the_table(void)
{
	enum { ROOM = 4000, AT_A_TIME = 16 };

	begin(ROOM);
	for (uint32_t i = 2; i < 2 * ROOM; i++) {
		forget(&b, 0, look_up(0, i), 1);
		if (i % AT_A_TIME)
			continue;
		quiesce_all();
		forgotten_make_room(b.inodes, &b.reclaims[0]);
	}
	CHECK_EQUAL(inode_table_fullness(b.inodes), INODES_FEW);
	bench_end(&b);
}

static void test_a_session_ends(void)
{
	uint64_t nodeids[INODES];

	begin(INODES);
	for (uint32_t i = 2; i < INODES; i++) {
		nodeids[i] = look_up(0, i);
		if (i % 2)
			forget(&b, 0, nodeids[i], 1);
	}
	inode_table_reset(b.inodes, &b.reclaims[0]);
	quiesce_all();
	for (uint32_t i = 2; i < INODES; i++)
		CHECK(!recall(0, nodeids[i]) && !inode_table_get(b.inodes, nodeids[i]));
	for (uint32_t i = 2; i < INODES; i++)
		CHECK(look_up(0, i) && look_up(0, i) != nodeids[i]);
	bench_end(&b);
}

/* ---- several workers ---- */

static uint64_t nodeid_of[KEYS];

static void turn(uint32_t worker, uint64_t *random)
{
	uint32_t number = random_below(random, KEYS);
	uint64_t nodeid = __atomic_load_n(&nodeid_of[number], __ATOMIC_ACQUIRE);
	struct inode *inode;

	if (random_below(random, 2) || !recall(worker, nodeid))
		CHECK_EQUAL(look_up(worker, number), nodeid);
	inode = inode_table_get(b.inodes, nodeid);
	CHECK(inode); /* the guest knows the inode */
	CHECK_EQUAL(inode->ino, number);
	if (!random_below(random, 4))
		inode_table_cache_fd(b.inodes, &b.reclaims[worker], inode, fd_open(&b, number));
	if (inode_table_get(b.inodes, nodeid) && __atomic_load_n(&inode->fd, __ATOMIC_ACQUIRE) >= 0)
		fd_use(&b, __atomic_load_n(&inode->fd, __ATOMIC_ACQUIRE), number);
	forget(&b, worker, nodeid, 1);
}

static void *run(void *arg)
{
	uint32_t worker = (uint32_t)(uintptr_t)arg;
	uint64_t random = worker + 1;

	reclaim_quiescent(&b.reclaims[worker]);
	for (uint32_t i = 0; i < ROUNDS; i++) {
		turn(worker, &random);
		quiesce(&b, worker);
	}
	reclaim_offline(&b.reclaims[worker]);
	return NULL;
}

static void test_several_workers(void)
{
	pthread_t threads[WORKERS];

	begin(INODES);
	for (uint32_t i = 0; i < KEYS; i++) {
		nodeid_of[i] = look_up(0, i);
		forget(&b, 0, nodeid_of[i], 1);
	}
	for (uint32_t i = 0; i < WORKERS; i++)
		CHECK(!pthread_create(&threads[i], NULL, run, (void *)(uintptr_t)i));
	for (uint32_t i = 0; i < WORKERS; i++)
		CHECK(!pthread_join(threads[i], NULL));
	quiesce_all();
	CHECK_EQUAL(inode_table_count(b.inodes), 0);
	CHECK_EQUAL(inode_table_held(b.inodes), 0);
	for (uint32_t fd = FD_FIRST; fd < *b.next_fd; fd++)
		CHECK(!fd_is_open(&b, (int)fd));
	for (uint32_t i = 0; i < KEYS; i++)
		CHECK(recall(0, nodeid_of[i]));
	bench_end(&b);
}

int main(void)
{
	RUN(test_it_comes_back);
	RUN(test_it_holds_no_fd);
	RUN(test_an_fd_and_its_proof_bring_it_back);
	RUN(test_the_root_is_never_forgotten);
	RUN(test_what_is_not_kept);
	RUN(test_a_handle_decides_whose_number_it_is);
	RUN(test_the_latest_are_kept);
	RUN(test_the_oldest_make_room);
	RUN(test_what_is_forgotten_does_not_fill_the_table);
	RUN(test_a_session_ends);
	RUN(test_several_workers);
	return 0;
}
