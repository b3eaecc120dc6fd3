/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fuzz targets: the ops of one family (see ops.h), as a guest uses them. A worker with the
 * real ops serves a ring in this process; its share is a directory on a tmpfs that is mounted
 * nowhere, and holds the same few files whenever an input begins.
 *
 * Input: struct header, then requests. Names, nodeids and handles are mostly chosen from what
 * there is (the replies so far), because random ones are refused at the door; all of them may be
 * any bytes.
 *
 * What must hold, after each request: the reply has the length that it says, the request's number
 * and an error that is an errno; not a byte is written behind the room; what was opened is a
 * regular file or a directory; no file beside the share is told of, and none is touched. After each
 * input: no request is left, the tables hold nothing but the root, and no fd is open that was not
 * before it.
 */
#include "extensions.h"
#include "fuzz.h"
#include "ops.h"
#include "worker_setup.h"

#include "worker/csrc/inode_fd.h"
#include "worker/csrc/ring.h"

#include <dirent.h>
#include <linux/fs.h>
#include <linux/mount.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/xattr.h>

enum {
	SIZE = 16, /* of the ring */
	INODES = 64,
	OPEN_FILES = 16,
	FDS_MAX = 72,
	REQUESTS_MAX_HERE = 64,
	TURNS_MAX = 16,
	KNOWN_MAX = 32,
	ARG = DRIVER_DATA,
	REPLY = DRIVER_DATA + 0x100000,
	ROOM_MAX = 0x20000,
	GUARD = 64,
	GUARD_BYTE = 0xa5,
	RAW_MAX = 300,
	ERRNO_MAX = 4095,
	MINOR_FIRST = 31, /* of FUSE 7 */
	MINORS = 15,
};

/* The first bytes of an input: what was agreed at INIT and what the operator wants. */
struct header {
	uint16_t policy; /* enum policy_bit */
	uint8_t minor;
	uint8_t agreed; /* enum agreed_bit */
};

enum policy_bit {
	WITH_XATTR = 1,
	WITH_FLOCK = 2,
	WITH_POSIX_LOCK = 4,
	WITH_HANDLES = 8,
	WITH_DIRECT_IO = 16,
	WITH_SUBMOUNTS = 32,
	WITH_NOATIME = 64,
	WITH_XATTRMAP = 128,
	WITH_NEGATIVE = 256,
	WITH_IDMAP = 512,
	WITH_CACHE = 1024,
	READ_ONLY = 2048,
	WAIT_FOR_LOCKS = 4096,

	/* An input of zeroes has what most ops need. */
	POLICY_OF_ZEROES =
		WITH_XATTR | WITH_FLOCK | WITH_POSIX_LOCK | WITH_HANDLES | WITH_SUBMOUNTS,
};

enum agreed_bit {
	WITHOUT_LABELS = 1,
	WITHOUT_KILLPRIV = 2,
	WITHOUT_ACLS = 4,
};

static const char *const names[] = {
	"file",
	"dir",
	"link",
	"a",
	"b",
	"c",
	".",
	"..",
	"",
	"a/b",
	"/",
	"dir/..",
	"fifo",
	"user.x",
	"user.y",
	"trusted.x",
	"security.capability",
	"security.selinux",
	"system.posix_acl_access",
	"../beside/secret",
	"../beside/new",
};

enum {
	NAMES_KNOWN = sizeof(names) / sizeof(names[0]),
	NAME_LONGEST = 252, /* selects 255, 256 … bytes */
};

struct opened {
	uint64_t fh;
	uint64_t nodeid;
};

/* Where the share is, and what must not be reached from it. */
static struct {
	int tmpfs;
	int share;  /* to fill and to empty it */
	int beside; /* a directory next to the share */
	struct stat seen[3];
} place;

static struct driver d;
static struct worker_config config;
static struct worker *worker;
static bool open_before[FDS_MAX]; /* fds that were open before the input */
static uint64_t unique;
static uint64_t nodes[KNOWN_MAX];
static struct opened files[KNOWN_MAX];
static uint32_t node_count, file_count;
static uint8_t *arg; /* of the request that is being made */
static uint32_t arg_len;

/* ---- the share ---- */

static void write_file(int dir, const char *name, const char *text)
{
	int fd = openat(dir, name, O_CREAT | O_WRONLY | O_CLOEXEC, 0644);

	CHECK(fd >= 0);
	CHECK(write(fd, text, strlen(text)) == (ssize_t)strlen(text));
	close(fd);
}

static void write_text(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);

	CHECK(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text));
	close(fd);
}

/* Whoever is not root gets a user namespace in which a tmpfs can be made. */
static void become_root(void)
{
	char map[32];

	if (!geteuid())
		return;
	snprintf(map, sizeof(map), "0 %u 1", geteuid());
	CHECK(!unshare(CLONE_NEWUSER | CLONE_NEWNS));
	write_text("/proc/self/setgroups", "deny");
	write_text("/proc/self/uid_map", map);
	snprintf(map, sizeof(map), "0 %u 1", getegid());
	write_text("/proc/self/gid_map", map);
}

/* A tmpfs that only this fd reaches: it ends with the process, and ".." leads nowhere. */
static int make_tmpfs(void)
{
	int context, fd;

	become_root();
	context = (int)syscall(SYS_fsopen, "tmpfs", FSOPEN_CLOEXEC);
	CHECK(context >= 0);
	CHECK(!syscall(SYS_fsconfig, context, FSCONFIG_SET_STRING, "size", "4m", 0));
	CHECK(!syscall(SYS_fsconfig, context, FSCONFIG_SET_STRING, "nr_inodes", "512", 0));
	CHECK(!syscall(SYS_fsconfig, context, FSCONFIG_CMD_CREATE, NULL, NULL, 0));
	fd = (int)syscall(SYS_fsmount, context, FSMOUNT_CLOEXEC,
			  MOUNT_ATTR_NODEV | MOUNT_ATTR_NOSUID | MOUNT_ATTR_STRICTATIME);
	CHECK(fd >= 0);
	close(context);
	return fd;
}

static void see(struct stat *ret)
{
	CHECK(!fstat(place.tmpfs, &ret[0]));
	CHECK(!fstat(place.beside, &ret[1]));
	CHECK(!fstatat(place.beside, "secret", &ret[2], AT_SYMLINK_NOFOLLOW));
}

static bool same_time(struct timespec a, struct timespec b)
{
	return a.tv_sec == b.tv_sec && a.tv_nsec == b.tv_nsec;
}

/* Nobody has read, written or moved what is beside the share. */
static void check_beside(void)
{
	struct stat now[3];

	see(now);
	for (uint32_t i = 0; i < 3; i++) {
		CHECK_EQUAL(now[i].st_ino, place.seen[i].st_ino);
		CHECK_EQUAL(now[i].st_nlink, place.seen[i].st_nlink);
		CHECK_EQUAL(now[i].st_size, place.seen[i].st_size);
		CHECK(same_time(now[i].st_ctim, place.seen[i].st_ctim));
		CHECK(same_time(now[i].st_atim, place.seen[i].st_atim));
	}
}

static void check_ino(uint64_t ino)
{
	for (uint32_t i = 0; i < 3; i++)
		CHECK(ino != place.seen[i].st_ino);
}

static void make_place(void)
{
	place.tmpfs = make_tmpfs();
	CHECK(!mkdirat(place.tmpfs, "beside", 0755) && !mkdirat(place.tmpfs, "share", 0755));
	place.beside = openat(place.tmpfs, "beside", O_PATH | O_DIRECTORY | O_CLOEXEC);
	place.share = openat(place.tmpfs, "share", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	CHECK(place.beside >= 0 && place.share >= 0);
	write_file(place.beside, "secret", "secret");
	see(place.seen);
}

static void make_files(void)
{
	write_file(place.share, "file", "some bytes that can be read");
	CHECK(!mkdirat(place.share, "dir", 0777));
	CHECK(!symlinkat("../beside/secret", place.share, "link"));
	CHECK(!mknodat(place.share, "fifo", S_IFIFO | 0666, 0));
}

/* chattr +i and +a hold root up, too. */
static void clear_flags(int dir, const char *name)
{
	int fd = openat(dir, name, O_RDONLY | O_NONBLOCK | O_NOFOLLOW | O_CLOEXEC), none = 0;

	if (fd < 0)
		return;
	(void)!ioctl(fd, FS_IOC_SETFLAGS, &none);
	close(fd);
}

static void empty_directory(int dir);

static void remove_entry(int dir, const struct dirent *entry)
{
	int fd = openat(dir, entry->d_name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	int flags = fd < 0 ? 0 : AT_REMOVEDIR;

	if (fd >= 0) {
		empty_directory(fd);
		close(fd);
	}
	if (!unlinkat(dir, entry->d_name, flags))
		return;
	clear_flags(dir, entry->d_name);
	CHECK(!unlinkat(dir, entry->d_name, flags));
}

static void empty_directory(int dir)
{
	DIR *stream = fdopendir(openat(dir, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
	struct dirent *entry;
	int none = 0;

	CHECK(stream);
	(void)!ioctl(dir, FS_IOC_SETFLAGS, &none);
	while ((entry = readdir(stream)))
		if (strcmp(entry->d_name, ".") && strcmp(entry->d_name, ".."))
			remove_entry(dir, entry);
	closedir(stream);
}

static void remove_xattrs(int fd)
{
	char list[4096];
	ssize_t len = flistxattr(fd, list, sizeof(list));

	for (ssize_t at = 0; at < len; at += (ssize_t)strlen(list + at) + 1)
		(void)!fremovexattr(fd, list + at);
}

static void restore_share(void)
{
	empty_directory(place.share);
	remove_xattrs(place.share);
	CHECK(!fchown(place.share, 0, 0) && !fchmod(place.share, 0777));
	make_files();
}

/* ---- the worker ---- */

static bool is_open(int fd)
{
	return fcntl(fd, F_GETFD) >= 0;
}

static void make_worker(void)
{
	struct rlimit fds = {FDS_MAX, FDS_MAX};
	char path[64];

	CHECK(!setrlimit(RLIMIT_NOFILE, &fds));
	signal(SIGXFSZ, SIG_IGN); /* as Python does */
	make_place();
	driver_init(&d, SIZE);
	snprintf(path, sizeof(path), "/proc/self/fd/%d/share", place.tmpfs);
	setup_worker(&d, path, INODES, OPEN_FILES, &config);
	CHECK(inode_table_try_handles(config.inodes, config.root_fd));
	snprintf(config.workers->staging, sizeof(config.workers->staging), ".vfsd-fuzz-");
	worker = worker_create(&config);
	CHECK(worker && worker_adopt(worker, 0) >= 0);
	config.device->generation += 2; /* so serve() returns after each turn */
	arg = malloc(ROOM_MAX);
	CHECK(arg);
}

/* The device is reset: whatever the ring still holds is over. */
static void restart_ring(void)
{
	config.device->vrings[0].start++;
	memset(d.avail, 0, 64 + sizeof(*d.avail) * SIZE);
	memset(d.used, 0, 64 + sizeof(uint64_t) * SIZE);
	d.next_avail = d.last_used = 0;
	CHECK(worker_adopt(worker, 0) >= 0);
	config.device->generation += 2;
}

static void set_xattrmap(struct xattrmap *map)
{
	static const struct xattrmap_rule rules[] = {
		{.action = XATTRMAP_PREFIX,
		 .client = true,
		 .server = true,
		 .key = "trusted.",
		 .key_len = 8,
		 .prepend = "user.v.",
		 .prepend_len = 7},
		{.action = XATTRMAP_BAD,
		 .client = true,
		 .server = true,
		 .key = "user.v.",
		 .key_len = 7,
		 .prepend = "user.w.",
		 .prepend_len = 7},
		{.action = XATTRMAP_OK, .client = true, .server = true},
	};

	map->rule_count = sizeof(rules) / sizeof(rules[0]);
	memcpy(map->rules, rules, sizeof(rules));
}

static void set_idmap(struct idmap_pair *ids)
{
	static const struct idmap_range up = {.first = 0, .last = 999, .to = 1000, .step = 1};
	static const struct idmap_range none = {.first = 1000, .last = 1999, .to = UINT32_MAX};
	static const struct idmap_range down = {.first = 1000, .last = 1999, .to = 0, .step = 1};

	ids->to_host.count = 2;
	ids->to_host.ranges[0] = up;
	ids->to_host.ranges[1] = none;
	ids->to_guest.count = 1;
	ids->to_guest.ranges[0] = down;
}

static void set_policy(uint16_t bits)
{
	struct fs_policy *p = &worker->policy;

	p->xattr = bits & WITH_XATTR;
	p->flock = bits & WITH_FLOCK;
	p->posix_lock = bits & WITH_POSIX_LOCK;
	p->file_handles = bits & WITH_HANDLES ? FILE_HANDLES_PREFER : FILE_HANDLES_NEVER;
	p->allow_direct_io = bits & WITH_DIRECT_IO;
	p->announce_submounts = bits & WITH_SUBMOUNTS;
	p->preserve_noatime = bits & WITH_NOATIME;
	p->negative_timeout_ns = bits & WITH_NEGATIVE ? 1000000000 : 0;
	p->file_open_flags = bits & WITH_CACHE ? FOPEN_KEEP_CACHE : 0;
	p->dir_open_flags = bits & WITH_CACHE ? FOPEN_KEEP_CACHE | FOPEN_CACHE_DIR : 0;
	p->readonly = bits & READ_ONLY;
	p->lock_wait_ns = bits & WAIT_FOR_LOCKS ? UINT64_MAX : 0;
	p->xattrmap.rule_count = 0;
	if (bits & WITH_XATTRMAP)
		set_xattrmap(&p->xattrmap);
	memset(&p->uids.to_host.count, 0, sizeof(p->uids.to_host.count));
	p->uids.to_guest.count = p->gids.to_host.count = p->gids.to_guest.count = 0;
	if (bits & WITH_IDMAP) {
		set_idmap(&p->uids);
		set_idmap(&p->gids);
	}
}

static void begin_session(const struct header *header)
{
	uint64_t flags = FUSE_DO_READDIRPLUS | FUSE_MAX_PAGES | FUSE_INIT_EXT;

	if (!(header->agreed & WITHOUT_LABELS))
		flags |= FUSE_SECURITY_CTX;
	if (!(header->agreed & WITHOUT_KILLPRIV))
		flags |= FUSE_HANDLE_KILLPRIV_V2;
	if (!(header->agreed & WITHOUT_ACLS))
		flags |= FUSE_POSIX_ACL | FUSE_DONT_MASK;
	worker_session_begin(worker, MINOR_FIRST + (header->minor + 10u) % MINORS, flags, 1 << 20);
	node_count = file_count = 0;
	nodes[node_count++] = FUSE_ROOT_ID;
}

/* ---- what the guest knows ---- */

static void know_node(uint64_t nodeid)
{
	nodes[node_count < KNOWN_MAX ? node_count++ : nodeid % KNOWN_MAX] = nodeid;
}

static void know_file(uint64_t fh, uint64_t nodeid)
{
	files[file_count < KNOWN_MAX ? file_count++ : fh % KNOWN_MAX] = (struct opened){fh, nodeid};
}

static uint64_t choose_node(struct input *in)
{
	uint8_t choice = take_byte(in);

	return choice == UINT8_MAX ? take_u64(in) : nodes[choice % node_count];
}

static struct opened choose_file(struct input *in)
{
	uint8_t choice = take_byte(in);

	if (choice == UINT8_MAX || !file_count)
		return (struct opened){take_u64(in), FUSE_ROOT_ID};
	return files[choice % file_count];
}

/* ---- a request ---- */

static void add(const void *data, uint32_t len)
{
	memcpy(arg + arg_len, data, len);
	arg_len += len;
}

static void add_raw(struct input *in, uint32_t len)
{
	take_bytes(in, arg + arg_len, len);
	arg_len += len;
}

static void add_name(struct input *in)
{
	char longest[NAME_MAX + 8];
	uint8_t choice = take_byte(in);
	uint32_t len;

	if (choice < NAMES_KNOWN) {
		add(names[choice], (uint32_t)strlen(names[choice]) + 1);
	} else if (choice >= NAME_LONGEST) {
		len = NAME_MAX + choice - NAME_LONGEST;
		memset(longest, 'x', sizeof(longest));
		longest[len] = '\0';
		add(longest, len + 1);
	} else {
		add_raw(in, choice - NAMES_KNOWN); /* which may lack its end */
	}
}

/* The argument begins with as many bytes as the input says, and has zeroes behind. */
static void add_fixed(struct input *in, const struct asked *a, struct opened file)
{
	uint32_t size = fuse_op(a->opcode)->arg_size, given = take_byte(in);
	uint64_t node;

	memset(arg, 0, size);
	take_bytes(in, arg, given < size ? given : size);
	arg_len = size;
	if (a->fh_at >= 0)
		memcpy(arg + a->fh_at, &file.fh, sizeof(file.fh));
	if (a->fh2_at >= 0) {
		struct opened other = choose_file(in);

		memcpy(arg + a->fh2_at, &other.fh, sizeof(other.fh));
		memcpy(arg + a->node_at, &other.nodeid, sizeof(other.nodeid));
	} else if (a->node_at >= 0) {
		node = choose_node(in);
		memcpy(arg + a->node_at, &node, sizeof(node));
	}
}

/* Everything behind the fixed argument: names, values, file data, extensions. */
static void add_rest(struct input *in, const struct asked *a)
{
	uint32_t len;

	for (uint32_t i = 0; i < a->names; i++)
		add_name(in);
	len = take_byte(in);
	if (a->opcode == FUSE_WRITE && len & 128) {
		len = (len & 127) * 512;
		memset(arg + arg_len, 'w', len);
		arg_len += len;
		return;
	}
	add_raw(in, len);
}

/* What is behind all the rest, which the header names in units of 8 bytes. Return: these units. */
static uint16_t add_extensions(struct input *in)
{
	struct extension_area area;
	uint16_t units = extensions_take(&area, in);

	add(area.bytes, area.len);
	return units;
}

static uint32_t choose_uid(struct input *in)
{
	static const uint32_t uids[] = {0, 1000, 1001, 65534, UINT32_MAX, 0, 0, 0};

	return uids[take_byte(in) % 8];
}

static uint32_t choose_room(struct input *in)
{
	static const uint32_t rooms[] = {4096, 0, 15, 16, 24, 144, 160, ROOM_MAX};
	uint8_t choice = take_byte(in);

	return choice < 200 ? rooms[choice % 8] : 16u + choice;
}

/* Room for the reply, with something behind that must stay. */
static void prepare_room(uint32_t room)
{
	memset(d.ram + REPLY + room, GUARD_BYTE, GUARD);
	memset(d.ram + REPLY, 0, room < 4096 ? room : 4096);
}

static void check_guard(uint32_t room)
{
	for (uint32_t i = 0; i < GUARD; i++)
		CHECK_EQUAL(d.ram[REPLY + room + i], GUARD_BYTE);
}

/* The request in two pieces and its room in two, cut where the input says. */
static void offer(struct input *in, uint32_t len, uint32_t room)
{
	uint32_t cut = take_byte(in), cut_room = cut >> 4;

	cut = cut % 16 ? cut % 16 * 8 : (uint32_t)sizeof(struct fuse_in_header);
	if (cut >= len)
		cut = len / 2;
	if (cut_room >= room)
		cut_room = room / 2;
	driver_set(&d, 0, ARG, cut, DRIVER_NEXT, 1);
	driver_set(&d, 1, ARG + cut, len - cut, room ? DRIVER_NEXT : 0, 2);
	driver_set(&d, 2, REPLY, cut_room, DRIVER_NEXT | DRIVER_WRITE, 3);
	driver_set(&d, 3, REPLY + cut_room, room - cut_room, DRIVER_WRITE, 0);
	driver_offer(&d, 0);
}

/* INIT and DESTROY are Python's: here they begin and end a session. */
static void answer_cold(const struct header *header)
{
	const uint8_t *cold;
	uint32_t len, opcode = worker_cold_request(worker, &cold, &len);
	uint8_t reply[64] = {0};

	if (opcode == FUSE_INIT)
		begin_session(header);
	else
		worker_session_end(worker);
	worker_cold_reply(worker, 0, reply, opcode == FUSE_INIT ? sizeof(reply) : 0);
	if (opcode == FUSE_DESTROY)
		begin_session(header);
}

/* Return: true if the request is completed, with *ret_len bytes; false if it waits. */
static bool serve_it(const struct header *header, uint32_t *ret_len)
{
	uint32_t id;

	for (uint32_t turn = 0; turn < TURNS_MAX; turn++) {
		int reason = serve(worker);

		CHECK(reason == SERVE_CONTROL || reason == SERVE_COLD);
		if (reason == SERVE_COLD)
			answer_cold(header);
		if (driver_take(&d, &id, ret_len)) {
			CHECK_EQUAL(id, 0);
			return true;
		}
	}
	return false;
}

/* ---- replies ---- */

static void check_attr(const struct fuse_attr *attr)
{
	check_ino(attr->ino);
	CHECK(attr->mode & S_IFMT);
}

static uint32_t mode_of(uint64_t nodeid)
{
	const struct inode *inode = inode_table_get(worker->inodes, nodeid);

	CHECK(inode);
	return inode->mode;
}

static void take_entry(const uint8_t *reply)
{
	struct fuse_entry_out entry;

	memcpy(&entry, reply, sizeof(entry));
	if (!entry.nodeid)
		return; /* there is no such name */
	check_attr(&entry.attr);
	CHECK_EQUAL(mode_of(entry.nodeid) & S_IFMT, entry.attr.mode & S_IFMT);
	know_node(entry.nodeid);
}

/* What is open is what the guest was told, and nothing but files and directories. */
static void take_opened(uint64_t nodeid, const uint8_t *reply, uint32_t type)
{
	struct fuse_open_out out;
	struct open_file *file;
	struct stat st;

	memcpy(&out, reply, sizeof(out));
	file = file_table_get(worker->files, out.fh, nodeid);
	CHECK(file && !fstat(file->fd, &st));
	CHECK_EQUAL(st.st_mode & S_IFMT, type);
	check_ino(st.st_ino);
	know_file(out.fh, nodeid);
}

static void take_created(const uint8_t *reply)
{
	uint64_t nodeid;

	take_entry(reply);
	memcpy(&nodeid, reply, sizeof(nodeid));
	take_opened(nodeid, reply + sizeof(struct fuse_entry_out), S_IFREG);
}

static void take_dirents(const uint8_t *reply, uint32_t len, bool plus)
{
	uint32_t head = plus ? sizeof(struct fuse_entry_out) : 0, at = 0;

	while (at < len) {
		struct fuse_dirent dirent;
		uint32_t size;

		CHECK(len - at >= head + offsetof(struct fuse_dirent, name));
		memcpy(&dirent, reply + at + head, offsetof(struct fuse_dirent, name));
		size = head + (uint32_t)FUSE_DIRENT_ALIGN(offsetof(struct fuse_dirent, name) +
							  dirent.namelen);
		CHECK(dirent.namelen && size <= len - at);
		CHECK(!memchr(reply + at + head + offsetof(struct fuse_dirent, name), '/',
			      dirent.namelen));
		if (plus)
			take_entry(reply + at);
		at += size;
	}
}

static void take_reply(const struct fuse_in_header *in, const uint8_t *reply, uint32_t len)
{
	struct fuse_attr_out attr;

	switch (in->opcode) {
	case FUSE_LOOKUP:
	case FUSE_MKNOD:
	case FUSE_MKDIR:
	case FUSE_SYMLINK:
	case FUSE_LINK:
		take_entry(reply);
		break;
	case FUSE_CREATE:
	case FUSE_TMPFILE:
		take_created(reply);
		break;
	case FUSE_OPEN:
		take_opened(in->nodeid, reply, S_IFREG);
		break;
	case FUSE_OPENDIR:
		take_opened(in->nodeid, reply, S_IFDIR);
		break;
	case FUSE_READDIR:
	case FUSE_READDIRPLUS:
		take_dirents(reply, len, in->opcode == FUSE_READDIRPLUS);
		break;
	case FUSE_GETATTR:
	case FUSE_SETATTR:
		memcpy(&attr, reply, sizeof(attr));
		check_attr(&attr.attr);
	}
}

static void check_reply(const struct fuse_in_header *in, uint32_t len, uint32_t room)
{
	struct fuse_out_header out;

	CHECK(len <= room);
	check_guard(room);
	if (fuse_op(in->opcode)->flags & OP_NO_REPLY || room < sizeof(out)) {
		CHECK_EQUAL(len, 0);
		return;
	}
	memcpy(&out, d.ram + REPLY, sizeof(out));
	CHECK_EQUAL(out.len, len);
	CHECK_EQUAL(out.unique, in->unique);
	CHECK(out.error <= 0 && out.error >= -ERRNO_MAX);
	if (out.error)
		CHECK_EQUAL(len, sizeof(out));
	else
		take_reply(in, d.ram + REPLY + sizeof(out), len - (uint32_t)sizeof(out));
}

/* ---- one input ---- */

/* The worker has died after this request and before anybody knew: its successor sees it again. */
static void serve_again(const struct header *header, struct fuse_in_header *in, uint32_t room,
			bool known)
{
	struct worker_ring *ring = worker->rings[0];
	uint32_t len;

	if (!known)
		ring->intents[0].state = INTENT_BEGUN;
	ring->vring.inflight->desc[0].inflight = 1;
	ring->replay[0] = 0;
	ring->replay_count = 1;
	ring->replay_next = 0;
	if (serve_it(header, &len))
		check_reply(in, len, room);
	else
		restart_ring();
}

static void run_request(struct input *in, const struct header *header)
{
	uint8_t choice = take_byte(in), again = choice / asked_count;
	const struct asked *a = &asked[choice % asked_count];
	struct fuse_in_header head = {.opcode = a->opcode, .unique = unique += 2, .pid = 1};
	struct opened file = a->fh_at >= 0 ? choose_file(in) : (struct opened){0};
	uint32_t room = choose_room(in), len;

	head.uid = head.gid = choose_uid(in);
	head.nodeid = file.nodeid ? file.nodeid : choose_node(in);
	arg_len = 0;
	add_fixed(in, a, file);
	add_rest(in, a);
	head.total_extlen = add_extensions(in);
	head.len = (uint32_t)sizeof(head) + arg_len;
	memcpy(d.ram + ARG, &head, sizeof(head));
	memcpy(d.ram + ARG + sizeof(head), arg, arg_len);
	prepare_room(room);
	offer(in, head.len, room);
	if (!serve_it(header, &len)) {
		restart_ring();
		return;
	}
	check_reply(&head, len, room);
	if (again == 1 || again == 2)
		serve_again(header, &head, room, again == 1);
}

static uint32_t free_requests(void)
{
	uint32_t count = 0;

	for (const struct request *r = worker->free_requests; r; r = r->next)
		count++;
	return count;
}

static void report_leak(int fd)
{
	char name[32], what[256] = "";

	snprintf(name, sizeof(name), "/proc/self/fd/%d", fd);
	(void)!readlink(name, what, sizeof(what) - 1);
	fprintf(stderr, "fd %d, which is %s, is left open\n", fd, what);
	exit(1);
}

static void check_nothing_is_left(void)
{
	worker_session_end(worker);
	for (int i = 0; i < 8 && !worker_idle_work(worker); i++)
		continue;
	CHECK_EQUAL(inode_table_count(worker->inodes), 0);
	CHECK_EQUAL(file_table_count(worker->files), 0);
	CHECK_EQUAL(worker->lock_waiters.count, 0);
	CHECK_EQUAL(free_requests(), worker->requests_used);
	for (int fd = 0; fd < FDS_MAX; fd++)
		if (!open_before[fd] && is_open(fd))
			report_leak(fd);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input in = {data, data + size};
	struct header header;

	if (!worker)
		make_worker();
	restore_share();
	for (int fd = 0; fd < FDS_MAX; fd++)
		open_before[fd] = is_open(fd);
	take_bytes(&in, &header, sizeof(header));
	set_policy(header.policy ^ POLICY_OF_ZEROES);
	begin_session(&header);
	for (uint32_t i = 0; i < REQUESTS_MAX_HERE && !is_empty(&in); i++)
		run_request(&in, &header);
	CHECK(!credentials_root(&worker->credentials));
	credentials_umask(&worker->credentials, 0);
	check_nothing_is_left();
	check_beside();
	return 0;
}
