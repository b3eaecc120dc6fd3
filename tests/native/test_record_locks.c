/* SPDX-License-Identifier: Apache-2.0 */
/* Record locks (fcntl) when a sandbox is lost: the next one takes them again, whatever moment of a
 * change the death has met. The share is the working directory. */
#include "fs_setup.h"

#include "worker/csrc/fs/record_lock.h"
#include "worker/csrc/fs/session_restore.h"
#include "worker/csrc/tables/lock_notes.h"
#include "worker/csrc/tables/session_image.h"

enum {
	TABLE = 64,
	ONE = 1, /* lock owners */
	TWO = 2,
	FREE = F_UNLCK,
};

static struct fs fs;
static struct fs_config config;
static struct restore_report report;
static uint64_t nodeid;
static int folder, host;

/* Return: the nodeid of "file". */
static uint64_t look_up(void)
{
	static struct asking a;
	struct fuse_in_header in = {.opcode = FUSE_LOOKUP, .unique = 2, .nodeid = FUSE_ROOT_ID};

	CHECK(!ask_bytes(&fs, &a, in, "file", 5));
	CHECK_EQUAL(answer(&fs, &a), sizeof(struct fuse_entry_out));
	return ((const struct fuse_entry_out *)(const void *)a.r.reply)->nodeid;
}

static void configure(void)
{
	CHECK(!fchdir(folder)); /* fs_init leaves it */
	setup_fs(".", TABLE, TABLE, &config);
	config.policy.posix_lock = true;
}

static void begin(void)
{
	CHECK(!fchdir(folder));
	host = open("file", O_CREAT | O_RDWR | O_CLOEXEC, 0644);
	CHECK(host >= 0);
	configure();
	memset(&fs, 0, sizeof(fs));
	CHECK(!fs_init(&fs, &config));
	fs_session_begin(&fs, 38, 0, 0);
	nodeid = look_up();
}

static struct open_file *owner_file(uint64_t owner)
{
	struct open_file *file;

	CHECK(!record_lock_owner(&fs, nodeid, owner, &file));
	return file;
}

static void set(uint64_t owner, int type, uint64_t start, uint64_t end)
{
	CHECK(!record_lock_set(&fs, owner_file(owner), &(struct record_lock){type, start, end}));
}

/* What the worker had noted when it died, before the kernel was asked. */
static void note_try(uint64_t owner, int type, uint64_t start, uint64_t end)
{
	lock_notes_try(file_table_lock_notes(fs.files), owner_file(owner)->notes, start, end, type);
}

static int ask_kernel(uint64_t owner, int type, uint64_t start, uint64_t end)
{
	struct flock lock = record_lock_of_host(&(struct record_lock){type, start, end});

	return fcntl(owner_file(owner)->fd, F_OFD_SETLK, &lock);
}

static void close_all(void)
{
	int32_t fds[TABLE];
	uint64_t count = file_table_fds(config.files, fds, TABLE);

	for (uint64_t i = 0; i < count; i++)
		close(fds[i]);
}

/* The sandbox is lost, and the next one goes on. */
static void lose_sandbox(void)
{
	struct fs_config old = config;
	struct image_tables from = {.inodes = old.inodes,
				    .files = old.files,
				    .workers = old.workers,
				    .inode_capacity = TABLE,
				    .file_capacity = TABLE};

	close_all();
	configure();
	memset(&report, 0, sizeof(report));
	CHECK(!session_restore(&config, &from, &report));
	memset(&fs, 0, sizeof(fs));
	CHECK(!fs_init(&fs, &config));
}

static void end(void)
{
	close_all();
	close(host);
}

/* What others hold at this byte: what stands in the way of a lock of `fd`. */
static int in_the_way_of(int fd, uint64_t byte)
{
	struct flock lock = record_lock_of_host(&(struct record_lock){F_WRLCK, byte, byte});

	CHECK(!fcntl(fd, F_OFD_GETLK, &lock));
	return lock.l_type;
}

static bool others_see(uint64_t owner, int type, uint64_t first, uint64_t last)
{
	struct open_file *file = file_table_lock_owner(fs.files, 0, nodeid, owner);

	for (uint64_t byte = first; byte <= last; byte++)
		if (in_the_way_of(file ? file->fd : host, byte) != type)
			return false;
	return true;
}

static void test_locks_are_taken_again(void)
{
	begin();
	set(ONE, F_WRLCK, 0, 9);
	set(ONE, F_RDLCK, 20, INT64_MAX);
	set(TWO, F_RDLCK, 25, 29);
	for (int i = 0; i < 3; i++) {
		lose_sandbox();
		CHECK_EQUAL(report.lost[LOSS_LOCK], 0);
		CHECK(others_see(TWO, F_WRLCK, 0, 9) && others_see(ONE, FREE, 0, 9));
		CHECK(others_see(TWO, FREE, 10, 19) && others_see(ONE, F_RDLCK, 25, 29));
		CHECK(others_see(TWO, F_RDLCK, 20, 99));
	}
	set(ONE, F_UNLCK, 0, INT64_MAX);
	set(TWO, F_WRLCK, 0, 99);
	end();
}

static void test_what_the_host_has_taken_is_lost_alone(void)
{
	struct flock lock = {.l_type = F_WRLCK, .l_start = 4, .l_len = 1};

	begin();
	set(ONE, F_WRLCK, 0, 9);
	set(ONE, F_WRLCK, 20, 29);
	set(TWO, F_WRLCK, 40, 49);
	close_all();
	CHECK(!fcntl(host, F_OFD_SETLK, &lock));
	lose_sandbox();
	CHECK_EQUAL(report.lost[LOSS_LOCK], 1);
	CHECK(report.loss_count == 1 && report.losses[0].kind == LOSS_LOCK);
	CHECK(others_see(TWO, F_WRLCK, 20, 29) && others_see(ONE, F_WRLCK, 40, 49));
	end();
}

/* The worker died before the kernel was asked, or the kernel refused. */
static void test_a_change_that_has_not_happened_leaves_all_as_it_was(void)
{
	static const int types[] = {F_RDLCK, F_WRLCK, F_UNLCK};

	for (int i = 0; i < 3; i++) {
		begin();
		set(ONE, F_WRLCK, 0, 9);
		note_try(ONE, types[i], 5, 30);
		lose_sandbox();
		CHECK_EQUAL(report.lost[LOSS_LOCK], 0);
		CHECK(others_see(TWO, F_WRLCK, 0, 9) && others_see(TWO, FREE, 10, 40));
		end();
	}
}

/* ... or after the kernel had granted it, and another owner holds what was given up. */
static void test_what_another_owner_got_is_kept(void)
{
	static const int types[] = {F_RDLCK, F_UNLCK};

	for (int i = 0; i < 2; i++) {
		begin();
		set(ONE, F_WRLCK, 0, 9);
		note_try(ONE, types[i], 3, 5);
		CHECK(!ask_kernel(ONE, types[i], 3, 5));
		set(TWO, F_RDLCK, 5, 5);
		lose_sandbox();
		CHECK_EQUAL(report.lost[LOSS_LOCK], 0);
		CHECK(others_see(ONE, F_RDLCK, 5, 5) && others_see(ONE, FREE, 0, 4));
		CHECK(others_see(TWO, F_WRLCK, 0, 2) && others_see(TWO, F_WRLCK, 6, 9));
		CHECK(others_see(TWO, types[i], 3, 5));
		end();
	}
}

/* The kernel has granted the change, and the worker died while it changed the list. */
static void test_a_change_that_has_happened_is_made(void)
{
	struct lock_note *head;

	begin();
	set(ONE, F_RDLCK, 0, 9);
	note_try(ONE, F_WRLCK, 3, 30);
	CHECK(!ask_kernel(ONE, F_WRLCK, 3, 30));
	head = (struct lock_note *)lock_notes_head(file_table_lock_notes(fs.files),
						   owner_file(ONE)->notes);
	head->state = LOCK_NOTES_CHANGED;
	lose_sandbox();
	CHECK_EQUAL(report.lost[LOSS_LOCK], 0);
	CHECK(others_see(TWO, F_RDLCK, 0, 2) && others_see(TWO, F_WRLCK, 3, 30));
	end();
}

/* The next request of the owner finds out what a dead worker has left. */
static void test_the_next_worker_settles_a_change(void)
{
	begin();
	set(ONE, F_WRLCK, 0, 9);
	note_try(ONE, F_WRLCK, 40, 49);
	CHECK(!ask_kernel(ONE, F_WRLCK, 40, 49));
	set(ONE, F_RDLCK, 60, 60);
	set(TWO, F_WRLCK, 70, 79);
	note_try(TWO, F_WRLCK, 5, 5); /* the kernel refuses it */
	set(TWO, F_RDLCK, 60, 60);
	lose_sandbox();
	CHECK_EQUAL(report.lost[LOSS_LOCK], 0);
	CHECK(others_see(TWO, F_WRLCK, 0, 9) && others_see(TWO, F_WRLCK, 40, 49));
	CHECK(others_see(ONE, F_RDLCK, 60, 60) && others_see(ONE, F_WRLCK, 70, 79));
	CHECK(others_see(ONE, FREE, 5, 5));
	end();
}

static void test_a_lock_without_a_note_holds_and_its_loss_is_counted(void)
{
	begin();
	set(ONE, F_WRLCK, 0, 9);
	while (lock_notes_begin(file_table_lock_notes(fs.files), 0))
		continue;
	set(ONE, F_WRLCK, 20, 29);
	set(ONE, F_UNLCK, 3, 3);
	set(TWO, F_WRLCK, 40, 49);
	CHECK(others_see(TWO, F_WRLCK, 20, 29) && others_see(ONE, F_WRLCK, 40, 49));
	CHECK(others_see(TWO, FREE, 3, 3));
	lose_sandbox();
	CHECK_EQUAL(report.lost[LOSS_LOCK], 2);
	CHECK(others_see(TWO, F_WRLCK, 0, 2) && others_see(TWO, FREE, 3, 3));
	end();
}

static void test_dropped_locks_leave_no_note(void)
{
	begin();
	for (int i = 0; i < 10 * TABLE; i++) {
		struct open_file *file;

		set(ONE, F_WRLCK, 0, 9);
		set(ONE, F_UNLCK, 5, 5);
		file = owner_file(ONE);
		CHECK(!(file->flags & FILE_LOCKS_MISSED));
		record_lock_drop(&fs, file);
		file_table_drop_lock_owner(fs.files, &fs.reclaim, file);
		settle(&fs);
	}
	end();
}

int main(void)
{
	folder = open(".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	CHECK(folder >= 0);
	RUN(test_locks_are_taken_again);
	RUN(test_what_the_host_has_taken_is_lost_alone);
	RUN(test_a_change_that_has_not_happened_leaves_all_as_it_was);
	RUN(test_what_another_owner_got_is_kept);
	RUN(test_a_change_that_has_happened_is_made);
	RUN(test_the_next_worker_settles_a_change);
	RUN(test_a_lock_without_a_note_holds_and_its_loss_is_counted);
	RUN(test_dropped_locks_leave_no_note);
	return 0;
}
