/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The instructions that the hot ops cost in user space, for test_instructions.py: a worker with the
 * real ops serves a ring in this process, under callgrind, which counts the instructions within
 * serve() and writes one file for each op.
 *
 * Requests come in batches of BATCH, as from a busy guest. The last request of a batch is DESTROY:
 * it is Python's, so serve() returns when it reaches DESTROY, and nothing depends on time.
 */
#include "worker_setup.h"

#include "worker/csrc/fs/mount_handles.h"

#include <dlfcn.h>
#include <sys/stat.h>
#include <valgrind/callgrind.h>

enum {
	BATCH = 32,
	ROUNDS = 8, /* counted batches of each op */
	HEADS = 4,  /* descriptors of a request, as Linux' driver cuts it */
	SIZE = 256,
	TABLE = 4096,
	SLOT = 32 * 1024, /* guest memory of a request: header, argument, reply header, reply */
	ARGUMENT = 64,
	REPLY_HEADER = 12 * 1024,
	REPLY = 16 * 1024,
	REPLY_ROOM = 8 * 1024,
	PAGE = 4096,
	ENTRIES = 100,	     /* entries of the directory that is listed */
	LOOK_NS = 10 * 1000, /* from one look at the clock to the next */
};

static struct driver d;
static struct worker_config config;
static struct worker *worker;
static int folder;
static uint16_t queued; /* requests in the batch */
static uint64_t unique;

/* ---- time ---- */

/* The worker ends a turn and closes fds by its clock. By this clock these things happen after the
 * same number of requests in each run, however slow the machine is. A call costs what the real
 * clock costs. */
int clock_gettime(clockid_t clock, struct timespec *ret)
{
	static int (*real)(clockid_t, struct timespec *);
	static uint64_t now_ns;
	int err;

	if (!real)
		real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
	err = real(clock, ret);
	if (clock == CLOCK_MONOTONIC) {
		now_ns += LOOK_NS;
		ret->tv_sec = (time_t)(now_ns / 1000000000);
		ret->tv_nsec = (long)(now_ns % 1000000000);
	}
	return err;
}

/* ---- requests ---- */

static uint8_t *slot_of(uint32_t index)
{
	return d.ram + DRIVER_DATA + index * SLOT;
}

/* Put a request into the batch. `len`: bytes of the argument, including names. */
static void add(uint32_t opcode, uint64_t nodeid, const void *arg, uint32_t len)
{
	uint64_t at = DRIVER_DATA + (uint64_t)queued * SLOT;
	uint16_t head = (uint16_t)(queued * HEADS);
	struct fuse_in_header in = {.len = (uint32_t)sizeof(in) + len,
				    .opcode = opcode,
				    .unique = ++unique,
				    .nodeid = nodeid};

	CHECK(queued <= BATCH);
	memcpy(slot_of(queued), &in, sizeof(in));
	if (len)
		memcpy(slot_of(queued) + ARGUMENT, arg, len);
	driver_set(&d, head, at, sizeof(in), DRIVER_NEXT, head + 1);
	driver_set(&d, head + 1, at + ARGUMENT, len ? len : 1, DRIVER_NEXT, head + 2);
	driver_set(&d, head + 2, at + REPLY_HEADER, sizeof(struct fuse_out_header),
		   DRIVER_NEXT | DRIVER_WRITE, head + 3);
	driver_set(&d, head + 3, at + REPLY, REPLY_ROOM, DRIVER_WRITE, 0);
	driver_offer(&d, head);
	queued++;
}

/* Have the batch served. The result of every request must be `error`. */
static void serve_batch(int error)
{
	uint16_t count = queued;
	uint32_t id, len;

	add(FUSE_DESTROY, 0, NULL, 0);
	CHECK_EQUAL(serve(worker), SERVE_COLD);
	for (uint32_t i = 0; i < count; i++) {
		struct fuse_out_header out;

		CHECK(driver_take(&d, &id, &len));
		memcpy(&out, slot_of(id / HEADS) + REPLY_HEADER, sizeof(out));
		if (len)
			CHECK_EQUAL(out.error, error);
	}
	worker_cold_reply(worker, 0, NULL, 0);
	CHECK(driver_take(&d, &id, &len));
	queued = 0;
}

static const void *reply_of(uint32_t index)
{
	return slot_of(index) + REPLY;
}

static uint64_t entry_of(uint32_t index)
{
	struct fuse_entry_out entry;

	memcpy(&entry, reply_of(index), sizeof(entry));
	return entry.nodeid;
}

static uint64_t fh_of(uint32_t index, uint32_t before)
{
	struct fuse_open_out opened;

	memcpy(&opened, (const uint8_t *)reply_of(index) + before, sizeof(opened));
	return opened.fh;
}

/* An argument followed by a name. Return: its length. */
static uint32_t with_name(uint8_t *ret, const void *arg, uint32_t len, const char *format,
			  uint32_t number)
{
	memcpy(ret, arg, len);
	return len + (uint32_t)snprintf((char *)ret + len, 64, format, number) + 1;
}

/* ---- one batch of each op ---- */

static uint64_t file_node, file_fh, list_node, list_fh;
static uint32_t names; /* how many names were used so far */

static void batch_null(void)
{
	uint8_t arg[16] = {0};

	for (int i = 0; i < BATCH; i++)
		add(4000, FUSE_ROOT_ID, arg, sizeof(arg));
	serve_batch(-ENOSYS);
}

static void batch_getattr(void)
{
	struct fuse_getattr_in in = {0};

	for (int i = 0; i < BATCH; i++)
		add(FUSE_GETATTR, file_node, &in, sizeof(in));
	serve_batch(0);
}

static void batch_lookup(void)
{
	for (int i = 0; i < BATCH; i++)
		add(FUSE_LOOKUP, FUSE_ROOT_ID, "file", 5);
	serve_batch(0);
}

static void add_forgets(const uint64_t *nodes)
{
	struct fuse_forget_in in = {.nlookup = 1};

	for (int i = 0; i < BATCH; i++)
		add(FUSE_FORGET, nodes[i], &in, sizeof(in));
	serve_batch(0);
}

static void batch_lookup_new(void)
{
	uint64_t nodes[BATCH];
	uint8_t arg[80];

	for (uint32_t i = 0; i < BATCH; i++)
		add(FUSE_LOOKUP, list_node, arg, with_name(arg, NULL, 0, "e%u", i));
	serve_batch(0);
	for (uint32_t i = 0; i < BATCH; i++)
		nodes[i] = entry_of(i);
	add_forgets(nodes);
}

static void batch_lookup_nothing(void)
{
	for (int i = 0; i < BATCH; i++)
		add(FUSE_LOOKUP, FUSE_ROOT_ID, "nothing", 8);
	serve_batch(-ENOENT);
}

static void batch_open(void)
{
	struct fuse_open_in in = {.flags = O_RDONLY};
	struct fuse_release_in release = {0};
	uint64_t fhs[BATCH];

	for (int i = 0; i < BATCH; i++)
		add(FUSE_OPEN, file_node, &in, sizeof(in));
	serve_batch(0);
	for (uint32_t i = 0; i < BATCH; i++)
		fhs[i] = fh_of(i, 0);
	for (int i = 0; i < BATCH; i++) {
		release.fh = fhs[i];
		add(FUSE_RELEASE, file_node, &release, sizeof(release));
	}
	serve_batch(0);
}

static void remove_all(uint32_t opcode, uint32_t first)
{
	uint8_t arg[80];

	for (uint32_t i = 0; i < BATCH; i++)
		add(opcode, FUSE_ROOT_ID, arg, with_name(arg, NULL, 0, "n%u", first + i));
	serve_batch(0);
}

static void batch_create(void)
{
	struct fuse_create_in in = {.flags = O_RDWR, .mode = S_IFREG | 0644};
	struct fuse_release_in release = {0};
	uint64_t nodes[BATCH], fhs[BATCH];
	uint32_t first = names;
	uint8_t arg[80];

	for (uint32_t i = 0; i < BATCH; i++)
		add(FUSE_CREATE, FUSE_ROOT_ID, arg,
		    with_name(arg, &in, sizeof(in), "n%u", names++));
	serve_batch(0);
	for (uint32_t i = 0; i < BATCH; i++) {
		nodes[i] = entry_of(i);
		fhs[i] = fh_of(i, sizeof(struct fuse_entry_out));
	}
	for (uint32_t i = 0; i < BATCH; i++) {
		release.fh = fhs[i];
		add(FUSE_RELEASE, nodes[i], &release, sizeof(release));
	}
	serve_batch(0);
	remove_all(FUSE_UNLINK, first);
	add_forgets(nodes);
}

static void batch_mkdir(void)
{
	struct fuse_mkdir_in in = {.mode = 0755};
	uint32_t first = names;
	uint64_t nodes[BATCH];
	uint8_t arg[80];

	for (uint32_t i = 0; i < BATCH; i++)
		add(FUSE_MKDIR, FUSE_ROOT_ID, arg, with_name(arg, &in, sizeof(in), "n%u", names++));
	serve_batch(0);
	for (uint32_t i = 0; i < BATCH; i++)
		nodes[i] = entry_of(i);
	remove_all(FUSE_RMDIR, first);
	add_forgets(nodes);
}

static void batch_read(void)
{
	struct fuse_read_in in = {.fh = file_fh, .size = PAGE};

	for (int i = 0; i < BATCH; i++)
		add(FUSE_READ, file_node, &in, sizeof(in));
	serve_batch(0);
}

static void batch_write(void)
{
	uint8_t arg[sizeof(struct fuse_write_in) + PAGE] = {0};
	struct fuse_write_in in = {.fh = file_fh, .size = PAGE};

	memcpy(arg, &in, sizeof(in));
	for (int i = 0; i < BATCH; i++)
		add(FUSE_WRITE, file_node, arg, sizeof(arg));
	serve_batch(0);
}

static void batch_getxattr(void)
{
	struct fuse_getxattr_in in = {.size = 64};
	uint8_t arg[80];

	for (int i = 0; i < BATCH; i++)
		add(FUSE_GETXATTR, file_node, arg, with_name(arg, &in, sizeof(in), "user.none", 0));
	serve_batch(-ENODATA);
}

/* Read from the start each time: a buffer of entries that the guest knows. */
static void batch_readdirplus(void)
{
	struct fuse_read_in in = {.fh = list_fh, .size = PAGE};

	for (int i = 0; i < BATCH; i++)
		add(FUSE_READDIRPLUS, list_node, &in, sizeof(in));
	serve_batch(0);
}

static const struct counted {
	const char *name;
	void (*batch)(void);
} ops[] = {
	{"null", batch_null},
	{"getattr", batch_getattr},
	{"lookup", batch_lookup},
	{"lookup-new", batch_lookup_new},
	{"lookup-nothing", batch_lookup_nothing},
	{"open", batch_open},
	{"create", batch_create},
	{"mkdir", batch_mkdir},
	{"read-4k", batch_read},
	{"write-4k", batch_write},
	{"getxattr", batch_getxattr},
	{"readdirplus-4k", batch_readdirplus},
};

/* ---- the worker ---- */

static void make_worker(const char *path)
{
	driver_init(&d, SIZE);
	folder = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	CHECK(folder >= 0);
	setup_worker(&d, path, TABLE, TABLE, &config);
	config.fs.policy.xattr = config.fs.policy.keeps_unchanged = true;
	config.fs.policy.file_handles = FILE_HANDLES_PREFER;
	CHECK(mount_handles_try(config.fs.inodes, config.fs.root_fd));
	worker = worker_create(&config);
	CHECK(worker && worker_adopt(worker, 0) >= 0);
	/* A second has few requests here: work that is done once a second would be most of the
	 * count. */
	worker->fs.sweep_at_ns = UINT64_MAX;
	worker_session_begin(worker, 41, FUSE_DO_READDIRPLUS, FUSE_READDIRPLUS_AUTO);
}

static void make_files(void)
{
	struct fuse_open_in in = {.flags = O_RDWR};
	char name[32];

	CHECK(!mkdirat(folder, "list", 0755));
	for (int i = 0; i < ENTRIES; i++) {
		snprintf(name, sizeof(name), "list/e%d", i);
		close(openat(folder, name, O_CREAT | O_WRONLY | O_CLOEXEC, 0644));
	}
	close(openat(folder, "file", O_CREAT | O_WRONLY | O_CLOEXEC, 0644));
	sleep(2); /* a young file is identified in another way: see inode_table.c */
	add(FUSE_LOOKUP, FUSE_ROOT_ID, "file", 5);
	add(FUSE_LOOKUP, FUSE_ROOT_ID, "list", 5);
	serve_batch(0);
	file_node = entry_of(0);
	list_node = entry_of(1);
	add(FUSE_OPEN, file_node, &in, sizeof(in));
	in.flags = O_RDONLY;
	add(FUSE_OPENDIR, list_node, &in, sizeof(in));
	serve_batch(0);
	file_fh = fh_of(0, 0);
	list_fh = fh_of(1, 0);
	batch_write();
}

int main(int argc, char **argv)
{
	CHECK_EQUAL(argc, 2);
	make_worker(argv[1]);
	make_files();
	for (size_t i = 0; i < sizeof(ops) / sizeof(ops[0]); i++) {
		ops[i].batch();
		ops[i].batch();
		CALLGRIND_ZERO_STATS;
		for (int round = 0; round < ROUNDS; round++)
			ops[i].batch();
		CALLGRIND_DUMP_STATS_AT(ops[i].name);
	}
	printf("%d\n", BATCH * ROUNDS);
	return 0;
}
