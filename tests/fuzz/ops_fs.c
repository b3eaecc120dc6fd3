/* SPDX-License-Identifier: Apache-2.0 */
#include "ops_fs.h"

#include "fuzz.h"
#include "ops_share.h"

#include "worker/csrc/fs/inode_fd.h"
#include "worker/csrc/fs/mount_handles.h"

#include <signal.h>
#include <sys/resource.h>

enum {
	INODES = 64,
	OPEN_FILES = 16,
	KNOWN_MAX = 32,
	MINOR_FIRST = 31, /* the first minor version of FUSE 7 that is tried */
	MINORS = 15,
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

	/* An input of zeroes enables what most ops need. */
	POLICY_OF_ZEROES =
		WITH_XATTR | WITH_FLOCK | WITH_POSIX_LOCK | WITH_HANDLES | WITH_SUBMOUNTS,
};

enum agreed_bit {
	WITHOUT_LABELS = 1,
	WITHOUT_KILLPRIV = 2,
	WITHOUT_ACLS = 4,
	NOT_LINUX = 8,
};

struct fs *fs;

static uint64_t nodes[KNOWN_MAX];
static struct opened files[KNOWN_MAX];
static uint32_t node_count, file_count;

void make_fs(void)
{
	struct rlimit fds = {FDS_MAX, FDS_MAX};
	struct fs_config config;
	char path[64];

	CHECK(!setrlimit(RLIMIT_NOFILE, &fds));
	signal(SIGXFSZ, SIG_IGN); /* Python also ignores this signal */
	snprintf(path, sizeof(path), "/proc/self/fd/%d/share", share_make());
	setup_fs(path, INODES, OPEN_FILES, &config);
	CHECK(mount_handles_try(config.inodes, config.root_fd));
	snprintf(config.workers->staging, sizeof(config.workers->staging), ".vfsd-fuzz-");
	fs = calloc(1, sizeof(*fs));
	CHECK(fs && !fs_init(fs, &config));
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

void set_policy(const struct header *header)
{
	struct fs_policy *p = &fs->policy;
	uint16_t bits = header->policy ^ POLICY_OF_ZEROES;

	p->xattr = bits & WITH_XATTR;
	p->flock = bits & WITH_FLOCK;
	p->posix_lock = bits & WITH_POSIX_LOCK;
	p->file_handles = bits & WITH_HANDLES ? FILE_HANDLES_PREFER : FILE_HANDLES_NEVER;
	p->allow_direct_io = bits & WITH_DIRECT_IO;
	p->announce_submounts = bits & WITH_SUBMOUNTS;
	p->preserve_noatime = bits & WITH_NOATIME;
	p->negative_timeout.sec = bits & WITH_NEGATIVE ? 1 : 0;
	p->file_open_flags = bits & WITH_CACHE ? FOPEN_KEEP_CACHE : 0;
	p->keeps_unchanged = !(bits & WITH_CACHE);
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

void begin_session(const struct header *header)
{
	uint64_t flags = FUSE_DO_READDIRPLUS | FUSE_MAX_PAGES | FUSE_INIT_EXT;

	if (!(header->agreed & WITHOUT_LABELS))
		flags |= FUSE_SECURITY_CTX;
	if (!(header->agreed & WITHOUT_KILLPRIV))
		flags |= FUSE_HANDLE_KILLPRIV_V2;
	if (!(header->agreed & WITHOUT_ACLS))
		flags |= FUSE_POSIX_ACL | FUSE_DONT_MASK;
	fs_session_begin(fs, MINOR_FIRST + (header->minor + 10u) % MINORS, flags,
			 header->agreed & NOT_LINUX ? 0 : FUSE_READDIRPLUS_AUTO);
	node_count = file_count = 0;
	nodes[node_count++] = FUSE_ROOT_ID;
}

void know_node(uint64_t nodeid)
{
	nodes[node_count < KNOWN_MAX ? node_count++ : nodeid % KNOWN_MAX] = nodeid;
}

void know_file(uint64_t fh, uint64_t nodeid)
{
	files[file_count < KNOWN_MAX ? file_count++ : fh % KNOWN_MAX] = (struct opened){fh, nodeid};
}

uint64_t choose_node(struct input *in)
{
	uint8_t choice = take_byte(in);

	return choice == UINT8_MAX ? take_u64(in) : nodes[choice % node_count];
}

struct opened choose_file(struct input *in)
{
	uint8_t choice = take_byte(in);

	if (choice == UINT8_MAX || !file_count)
		return (struct opened){take_u64(in), FUSE_ROOT_ID};
	return files[choice % file_count];
}
