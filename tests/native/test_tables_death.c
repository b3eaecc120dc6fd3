/* SPDX-License-Identifier: Apache-2.0 */
/* A worker that dies after any instruction of an operation on the tables: another worker and the
 * next worker in its slot find tables in order. */
#include "tables_death.h"

#include "worker/csrc/tables/forgotten.h"
#include "worker/csrc/tables/inode_layout.h"

#include <stddef.h>

enum {
	SLOTS_LOST_MAX = 1, /* per death */
};

#ifdef __x86_64__

static uint64_t shared_nodeid, shared_fh;

/* The ring of forgotten inodes is large, and only its first entries are used here. So the memory
 * that is compared after each instruction leaves out the rest of the ring. */
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

/* The pool's sweep closes an fd that is in no table. */
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

/* No worker closes an fd that an inode holds or borrows. */
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

/* Another worker needs an fd of the inode before the dead worker has a successor. */
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

/* An inode with a handle and without an fd. */
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

/* An inode with an fd and without a handle. */
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

/* ---- inodes that are let go when they are forgotten, and come back ---- */

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

static const struct operation OPERATIONS[] = {
	{prepare_nothing, run_lookup, 9, 0},
	{prepare_inode_and_file, run_forget, 4, 0},
	{prepare_inode_and_file, run_forget_and_free, 8, 0},
	{prepare_inode_and_file, run_open, 5, 0},
	{prepare_inode_and_file, run_release_and_free, 6, 0},
	{prepare_lender, run_release_and_repay, 9, 0},
	{prepare_lender, run_repay_with_handle, 6, 0},
	{prepare_handle, run_cache_path_then_readable, 8, 0},
	{prepare_readable, run_drop_readable, 4, 0},
	{prepare_held, run_sign_and_drop, 9, 0},
	{prepare_signed, run_lookup_with_proof, 4, 0},
	{prepare_held, run_cache_readable, 3, 0},
	{prepare_held_by_readable, run_drop_readable_for_path, 3, 0},
	{prepare_exported, run_forget_and_free, 9, 0},
	{prepare_let_go, run_recall, 5, 0},
	{prepare_let_go, run_acquire, 5, 0},
	{prepare_let_go, run_insert_with_proof, 7, 0},
	{prepare_let_go, run_remove, 6, 0},
	{prepare_without_handle, run_forget_later, 12, 0},
};

static void test_death_after_each_store(void)
{
	const struct setting setting = {INODES, be_reborn, image_differs};

	for (size_t i = 0; i < sizeof(OPERATIONS) / sizeof(OPERATIONS[0]); i++)
		step_through(&setting, &OPERATIONS[i]);
}

#endif

int main(void)
{
#ifdef __x86_64__
	RUN(test_death_after_each_store);
#endif
	return 0;
}
