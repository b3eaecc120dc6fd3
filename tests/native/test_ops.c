/* SPDX-License-Identifier: Apache-2.0 */
/* Ops with a directory and a request, and nothing else: the directory is the working directory. */
#include "fs_setup.h"

#include "worker/csrc/fs/inode_fd.h"
#include "worker/csrc/fs/mount_handles.h"
#include "worker/csrc/fs/mount_facts.h"
#include "worker/csrc/fs/silly_rename.h"

#include <dirent.h>
#include <signal.h>
#include <stddef.h>
#include <sys/file.h>
#include <sys/stat.h>

enum {
	TABLE = 64,
	OWNER = 77, /* owners of a lock, in the guest */
	OTHER = 78,
	SILLY_NAMES = 3000,
};

static struct fs fs;
static struct asking a;
static int folder;
static uint64_t unique;

/* Ask for the op of `opcode`. Return: the same as answer(). */
static int ask(uint32_t opcode, uint64_t nodeid, const void *arg, uint32_t len)
{
	struct fuse_in_header in = {.opcode = opcode, .unique = unique += 2, .nodeid = nodeid};
	int result = ask_bytes(&fs, &a, in, arg, len);

	return result ? result : answer(&fs, &a);
}

static int ask_name(uint32_t opcode, uint64_t nodeid, const void *arg, uint32_t len,
		    const char *name)
{
	char bytes[512];

	memcpy(bytes, arg, len);
	strcpy(bytes + len, name);
	return ask(opcode, nodeid, bytes, len + (uint32_t)strlen(name) + 1);
}

#define REPLY(type) ((const type *)(const void *)a.r.reply)

/* Return: the nodeid, or -errno. */
static int64_t lookup(const char *name)
{
	int result = ask_name(FUSE_LOOKUP, FUSE_ROOT_ID, "", 0, name);

	return result < 0 ? result : (int64_t)REPLY(struct fuse_entry_out)->nodeid;
}

/* Return: the fh. */
static uint64_t open_node(uint64_t nodeid, uint32_t flags)
{
	const struct fuse_open_in in = {.flags = flags};

	CHECK_EQUAL(ask(FUSE_OPEN, nodeid, &in, sizeof(in)), sizeof(struct fuse_open_out));
	return REPLY(struct fuse_open_out)->fh;
}

static void release(uint64_t nodeid, uint64_t fh)
{
	const struct fuse_release_in in = {.fh = fh};

	CHECK_EQUAL(ask(FUSE_RELEASE, nodeid, &in, sizeof(in)), 0);
	settle(&fs);
}

static void make_file(const char *name, const char *text)
{
	int fd = openat(folder, name, O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0644);

	CHECK(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text));
	close(fd);
}

static uint32_t entries_of(const char *path)
{
	DIR *stream = opendir(path);
	uint32_t count = 0;

	CHECK(stream);
	while (readdir(stream))
		count++;
	closedir(stream);
	return count;
}

static void start(void)
{
	const uint64_t flags = FUSE_DO_READDIRPLUS;
	struct fs_config config;
	uint32_t fds;

	folder = open(".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	CHECK(folder >= 0);
	setup_fs(".", TABLE, TABLE, &config);
	config.policy.posix_lock = config.policy.flock = true;
	config.policy.lock_wait_ns = UINT64_MAX;
	fds = entries_of("/proc/self/fd");
	CHECK(!fs_init(&fs, &config));
	CHECK_EQUAL(entries_of("/proc/self/fd"), fds); /* fs_init makes neither an eventfd … */
	CHECK_EQUAL(entries_of("/proc/self/task"), 2 + 1); /* … nor a thread */
	CHECK_EQUAL(ask_name(FUSE_LOOKUP, FUSE_ROOT_ID, "", 0, "file"),
		    -EIO); /* no session has begun */
	fs_session_begin(&fs, 38, flags, flags);
}

/* ---- names and attributes ---- */

static void test_a_name_becomes_a_node_with_attributes(void)
{
	const struct fuse_getattr_in in = {0};
	int64_t nodeid;

	make_file("file", "twelve bytes");
	nodeid = lookup("file");
	CHECK(nodeid > FUSE_ROOT_ID);
	CHECK_EQUAL(ask(FUSE_GETATTR, (uint64_t)nodeid, &in, sizeof(in)),
		    sizeof(struct fuse_attr_out));
	CHECK_EQUAL(REPLY(struct fuse_attr_out)->attr.size, 12);
	CHECK_EQUAL(lookup("nothing"), -ENOENT);
	CHECK_EQUAL(lookup("../file"), -EINVAL);
}

static void test_what_is_forgotten_is_stale(void)
{
	const struct fuse_forget_in forget = {.nlookup = 1};
	const struct fuse_getattr_in in = {0};
	int64_t nodeid;

	make_file("forgotten", "");
	nodeid = lookup("forgotten");
	CHECK(nodeid > 0);
	CHECK_EQUAL(ask(FUSE_FORGET, (uint64_t)nodeid, &forget, sizeof(forget)), OUTCOME_NO_REPLY);
	CHECK_EQUAL(ask(FUSE_GETATTR, (uint64_t)nodeid, &in, sizeof(in)), -ESTALE);
	settle(&fs);
}

static void test_a_read_only_share_is_not_changed(void)
{
	const struct fuse_mkdir_in in = {.mode = 0755};

	fs.policy.readonly = true;
	CHECK_EQUAL(ask_name(FUSE_MKDIR, FUSE_ROOT_ID, &in, sizeof(in), "dir"), -EROFS);
	fs.policy.readonly = false;
	CHECK_EQUAL(ask_name(FUSE_MKDIR, FUSE_ROOT_ID, &in, sizeof(in), "dir"),
		    sizeof(struct fuse_entry_out));
	CHECK(!unlinkat(folder, "dir", AT_REMOVEDIR));
}

static void test_an_opcode_without_an_op_is_refused(void)
{
	CHECK_EQUAL(ask(FUSE_BMAP, FUSE_ROOT_ID, "", 0), -ENOSYS);
	CHECK_EQUAL(ask(FUSE_DESTROY, FUSE_ROOT_ID, "", 0), -ENOSYS);
}

/* ---- data ---- */

static void test_what_is_written_is_read(void)
{
	struct {
		struct fuse_write_in in;
		char data[5];
	} write = {.in = {.size = 5}, .data = "hello"};
	struct fuse_read_in read = {.size = 100};
	int64_t nodeid;

	make_file("data", "");
	nodeid = lookup("data");
	write.in.fh = read.fh = open_node((uint64_t)nodeid, O_RDWR);
	CHECK_EQUAL(ask(FUSE_WRITE, (uint64_t)nodeid, &write,
			offsetof(__typeof__(write), data) + sizeof(write.data)),
		    sizeof(struct fuse_write_out));
	CHECK_EQUAL(ask(FUSE_READ, (uint64_t)nodeid, &read, sizeof(read)), 5);
	CHECK(!memcmp(a.reply + sizeof(struct fuse_out_header), "hello", 5));
	CHECK_EQUAL(request_reply(&a.r, 5), sizeof(struct fuse_out_header) + 5);
	release((uint64_t)nodeid, read.fh);
	CHECK_EQUAL(ask(FUSE_READ, (uint64_t)nodeid, &read, sizeof(read)), -EBADF);
}

static void test_what_may_block_is_returned_and_not_done(void)
{
	struct fuse_in_header header = {.opcode = FUSE_FSYNC, .unique = unique += 2};
	struct fuse_fsync_in in = {0};
	int64_t nodeid;

	make_file("synced", "");
	nodeid = lookup("synced");
	in.fh = open_node((uint64_t)nodeid, O_RDWR);
	header.nodeid = (uint64_t)nodeid;
	CHECK(!ask_bytes(&fs, &a, header, &in, sizeof(in)));
	CHECK_EQUAL(ops_run(&fs, &a.r), OUTCOME_DEFER);
	CHECK(a.r.file && a.r.fd == a.r.file->fd); /* the loop would pin this fd */
	CHECK_EQUAL(a.r.run(&a.r), 0);
	release((uint64_t)nodeid, in.fh);
}

static void test_a_direct_read_says_where_it_reads(void)
{
	struct fuse_in_header header = {.opcode = FUSE_READ, .unique = unique += 2};
	struct fuse_read_in in = {.size = 4, .offset = 3};
	int64_t nodeid;

	make_file("direct", "0123456789");
	nodeid = lookup("direct");
	in.fh = open_node((uint64_t)nodeid, O_RDONLY);
	file_table_get(fs.files, in.fh, (uint64_t)nodeid)->flags |=
		FILE_DIRECT; /* as for any file */
	file_table_get(fs.files, in.fh, (uint64_t)nodeid)->flags &= ~(uint32_t)FILE_IN_MEMORY;
	header.nodeid = (uint64_t)nodeid;
	CHECK(!ask_bytes(&fs, &a, header, &in, sizeof(in)));
	CHECK_EQUAL(ops_run(&fs, &a.r), OUTCOME_DEFER_READ);
	CHECK_EQUAL(a.r.offset, 3);
	CHECK_EQUAL(a.r.run(&a.r), 4);
	CHECK(!memcmp(a.reply + sizeof(struct fuse_out_header), "3456", 4));
	release((uint64_t)nodeid, in.fh);
}

/* ---- waiting ---- */

static int lock(uint32_t opcode, uint64_t nodeid, uint64_t fh, uint64_t owner, uint32_t type)
{
	const struct fuse_lk_in in = {
		.fh = fh, .owner = owner, .lk = {.end = INT64_MAX, .type = type}};

	return ask(opcode, nodeid, &in, sizeof(in));
}

static void test_a_lock_that_is_taken_is_waited_for(void)
{
	struct asking *waits = malloc(sizeof(*waits));
	uint64_t nodeid, fh;

	CHECK(waits);
	make_file("locked", "");
	nodeid = (uint64_t)lookup("locked");
	fh = open_node(nodeid, O_RDWR);
	CHECK_EQUAL(lock(FUSE_SETLK, nodeid, fh, OWNER, F_WRLCK), 0);
	CHECK_EQUAL(lock(FUSE_SETLK, nodeid, fh, OTHER, F_WRLCK), -EAGAIN);
	CHECK_EQUAL(lock(FUSE_SETLKW, nodeid, fh, OTHER, F_WRLCK), OUTCOME_WAIT);
	memcpy(waits, &a, sizeof(a)); /* the code that runs the ops keeps the request */
	CHECK_EQUAL(ops_retry(&fs, &waits->r), OUTCOME_WAIT);
	fs.gave_up_lock = false;
	CHECK_EQUAL(lock(FUSE_SETLK, nodeid, fh, OWNER, F_UNLCK), 0);
	CHECK(fs.gave_up_lock);
	CHECK_EQUAL(ops_retry(&fs, &waits->r), 0);
	free(waits);
	release(nodeid, fh);
}

static void test_an_interrupt_is_noted_for_every_worker(void)
{
	const struct fuse_interrupt_in in = {.unique = 4711};
	uint32_t at = fs.table->interrupt_count;

	CHECK_EQUAL(ask(FUSE_INTERRUPT, 0, &in, sizeof(in)), OUTCOME_NO_REPLY);
	CHECK_EQUAL(fs.table->interrupts[at % INTERRUPTS_MAX], 4711);
}

static void test_an_open_waits_for_a_lease_off_the_loop(void)
{
	struct fuse_in_header header = {.opcode = FUSE_OPEN, .unique = unique += 2};
	const struct fuse_open_in in = {.flags = O_WRONLY};
	uint64_t nodeid, fh;
	int holder;

	make_file("leased", "");
	nodeid = (uint64_t)lookup("leased");
	signal(SIGIO, SIG_IGN);
	holder = openat(folder, "leased", O_RDONLY | O_CLOEXEC);
	CHECK(holder >= 0 && !fcntl(holder, F_SETLEASE, F_RDLCK));
	header.nodeid = nodeid;
	CHECK(!ask_bytes(&fs, &a, header, &in, sizeof(in)));
	CHECK_EQUAL(ops_run(&fs, &a.r), OUTCOME_DEFER);
	CHECK(a.r.run_again && a.r.holds_fd);
	CHECK(!fcntl(holder, F_SETLEASE, F_UNLCK));
	CHECK_EQUAL(a.r.run(&a.r), 0);
	CHECK_EQUAL(ops_run(&fs, &a.r), sizeof(struct fuse_open_out));
	fh = REPLY(struct fuse_open_out)->fh;
	release(nodeid, fh);
	close(holder);
}

/* ---- a death ---- */

static void test_an_op_that_had_happened_is_not_done_twice(void)
{
	const struct fuse_mkdir_in in = {.mode = 0755};
	int result;

	CHECK(ask_name(FUSE_MKDIR, FUSE_ROOT_ID, &in, sizeof(in), "once") > 0);
	/* The reply was recorded, and the worker died before the guest received it. */
	a.r.from_dead = true;
	CHECK(intent_settles(&a.r, true, &result));
	CHECK_EQUAL(result, sizeof(struct fuse_entry_out));
	/* The worker died before the reply was recorded. */
	a.intent.state = INTENT_BEGUN;
	CHECK(!intent_settles(&a.r, true, &result) && a.r.replayed);
	CHECK_EQUAL(ops_run(&fs, &a.r), sizeof(struct fuse_entry_out));
	a.r.from_dead = false;
	CHECK_EQUAL(ask_name(FUSE_MKDIR, FUSE_ROOT_ID, &in, sizeof(in), "once"), -EEXIST);
	CHECK(!unlinkat(folder, "once", AT_REMOVEDIR));
}

/* The mount of the working directory, as if its file system renamed what it should remove. */
static void pretend_silly_renames(void)
{
	(void)mount_fact_of(&fs, inode_table_get(fs.inodes, FUSE_ROOT_ID));
	fs.share.silly_renames = true;
}

static void make_silly_names(uint32_t count)
{
	char name[64];

	for (uint32_t i = 0; i < count; i++) {
		int fd;

		snprintf(name, sizeof(name), "silly/.nfs%024u", i);
		fd = openat(folder, name, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
		CHECK(fd >= 0);
		close(fd);
	}
}

static void remove_silly_names(uint32_t count)
{
	char name[64];

	for (uint32_t i = 0; i < count; i++) {
		snprintf(name, sizeof(name), "silly/.nfs%024u", i);
		CHECK(!unlinkat(folder, name, 0));
	}
}

static void test_the_removal_of_a_large_directory_does_not_wait(void)
{
	uint32_t tries = 0;

	CHECK(!mkdirat(folder, "silly", 0700));
	pretend_silly_renames();
	make_silly_names(1);
	CHECK(silly_rename_passes(&fs, FUSE_ROOT_ID, "silly", &tries));
	make_silly_names(SILLY_NAMES);
	CHECK(!silly_rename_passes(&fs, FUSE_ROOT_ID, "silly", &tries));
	remove_silly_names(SILLY_NAMES);
	CHECK(!unlinkat(folder, "silly", AT_REMOVEDIR));
	fs.share = (struct mount_fact){0};
}

/* The file that was given up, as it is seen after its removal has failed. */
static const struct inode *give_up_and_back(const char *name, int64_t later)
{
	struct given_up gone = {0};

	silly_rename_prevent(&fs, FUSE_ROOT_ID, name, &gone);
	CHECK_EQUAL(inode_table_get(fs.inodes, gone.nodeid)->fd, -1);
	gone.btime -= later;
	silly_rename_done(&fs, FUSE_ROOT_ID, name, &gone, -EACCES);
	return inode_table_get(fs.inodes, gone.nodeid);
}

/* The number of a file that nothing holds may be another file's a moment later. */
static void test_a_file_that_was_not_removed_is_known_by_its_birth(void)
{
	make_file("kept", "");
	make_file("younger", "");
	CHECK(lookup("kept") > 0 && lookup("younger") > 0);
	pretend_silly_renames();
	CHECK(give_up_and_back("kept", 0)->fd >= 0);
	CHECK_EQUAL(give_up_and_back("younger", 1)->fd, -1);
	fs.share = (struct mount_fact){0};
	CHECK(!unlinkat(folder, "kept", 0) && !unlinkat(folder, "younger", 0));
}

/* A user may not open handles, and what is found out about a mount is kept. */
static void test_a_mount_is_tried_as_root_while_a_user_stands_in(void)
{
	const uint64_t mount = inode_table_get(fs.inodes, FUSE_ROOT_ID)->mnt_id;
	const struct requester user = {.uid = 1000, .gid = 1000};

	fs.policy.file_handles = FILE_HANDLES_PREFER;
	CHECK(!credentials_stand_in(&fs.credentials, &user));
	mount_handles_find_out(&fs, mount, folder);
	CHECK_EQUAL(geteuid(), user.uid);
	CHECK(!credentials_stand_in(&fs.credentials, NULL));
	CHECK(inode_table_mount_fd(fs.inodes, mount) >= 0);
	fs.policy.file_handles = FILE_HANDLES_NEVER;
}

/* Facts that a stale inode does not show are learned from the next inode. */
static void test_a_stale_inode_says_nothing_of_its_mount(void)
{
	const struct inode *inode;
	uint64_t nodeid;

	make_file("stale", "");
	nodeid = (uint64_t)lookup("stale");
	inode_table_give_up_fd(fs.inodes, &fs.reclaim, nodeid);
	inode = inode_table_get(fs.inodes, nodeid);
	CHECK(inode);
	CHECK_EQUAL(inode->fd, -1);
	fs.share = (struct mount_fact){0};
	CHECK(!mount_fact_of(&fs, inode)->mnt_id);
	inode = inode_table_get(fs.inodes, FUSE_ROOT_ID);
	CHECK(mount_fact_of(&fs, inode)->mnt_id == inode->mnt_id);
	CHECK(!unlinkat(folder, "stale", 0));
}

static void test_the_end_of_a_session_closes_all(void)
{
	uint32_t fds = entries_of("/proc/self/fd");
	uint64_t nodeid;

	make_file("open", "");
	nodeid = (uint64_t)lookup("open");
	open_node(nodeid, O_RDONLY);
	CHECK(entries_of("/proc/self/fd") > fds);
	fs_session_end(&fs);
	settle(&fs);
	CHECK_EQUAL(inode_table_count(fs.inodes), 0);
	CHECK_EQUAL(file_table_count(fs.files), 0);
	CHECK(entries_of("/proc/self/fd") <= fds);
}

int main(void)
{
	start();
	RUN(test_a_name_becomes_a_node_with_attributes);
	RUN(test_what_is_forgotten_is_stale);
	RUN(test_a_read_only_share_is_not_changed);
	RUN(test_an_opcode_without_an_op_is_refused);
	RUN(test_what_is_written_is_read);
	RUN(test_what_may_block_is_returned_and_not_done);
	RUN(test_a_direct_read_says_where_it_reads);
	RUN(test_a_lock_that_is_taken_is_waited_for);
	RUN(test_an_interrupt_is_noted_for_every_worker);
	RUN(test_an_open_waits_for_a_lease_off_the_loop);
	RUN(test_an_op_that_had_happened_is_not_done_twice);
	RUN(test_the_removal_of_a_large_directory_does_not_wait);
	RUN(test_a_file_that_was_not_removed_is_known_by_its_birth);
	RUN(test_a_mount_is_tried_as_root_while_a_user_stands_in);
	RUN(test_a_stale_inode_says_nothing_of_its_mount);
	RUN(test_the_end_of_a_session_closes_all);
	return 0;
}
