/* SPDX-License-Identifier: Apache-2.0 */
/* When fds that were retired are closed. */
#include "small_tables.h"

static bool is_open(int fd)
{
	return fcntl(fd, F_GETFD) >= 0;
}

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

/* A full list makes room, and closes only fds that no worker can be using. */
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

/* However long the list is, an fd that another worker may be reading or that is pinned stays open.
 */
static void test_a_full_list_grows_while_all_of_it_is_in_use(void)
{
	uint64_t pinned_by = 1;
	struct retired read_by_other = real_fd(NULL), pinned = real_fd(&pinned_by);
	struct reclaim *r;

	begin();
	r = &b.reclaims[0];
	reclaim_quiescent(&b.reclaims[1]); /* a batch begins, and does not end */
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
	CHECK(r->retired == r->own); /* the list is small again */
	end();
}

/* A request that hangs keeps its own file open, and no file that was released later. */
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

/* A lender stays in the list when it has repaid, and yet room is made. */
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

/* The pool's sweep must not close an fd that a worker is going to close. */
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
	CHECK(worker_table_held_nothing(b.workers, 0, 0)); /* the table still has the fd */
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

/* With a real fd. Worker 1 is in the middle of a turn, so an fd that it may use is not closed. */
static void test_a_flush_closes_nothing_under_a_reader(void)
{
	int fd = open("/", O_PATH | O_CLOEXEC);

	begin();
	reclaim_quiescent(&b.reclaims[1]);
	reclaim_retire(&b.reclaims[0], (struct retired){.fd = fd});
	reclaim_flush(&b.reclaims[0]);
	CHECK(is_open(fd));
	reclaim_offline(&b.reclaims[1]);
	reclaim_flush(&b.reclaims[0]);
	CHECK(!is_open(fd));
	end();
}

int main(void)
{
	RUN(test_nothing_is_closed_under_a_reader);
	RUN(test_a_sleeper_and_a_dead_one_hold_nothing_up);
	RUN(test_a_full_list_closes_no_pinned_fd);
	RUN(test_a_full_list_grows_while_all_of_it_is_in_use);
	RUN(test_what_is_pinned_holds_up_nothing_else);
	RUN(test_a_list_full_of_lenders_makes_room);
	RUN(test_what_waits_to_be_closed_is_held_by_the_worker_if_by_no_table);
	RUN(test_a_flush_closes_nothing_under_a_reader);
	return 0;
}
