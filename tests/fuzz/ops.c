/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fuzz targets: the ops of one family (see ops.h), as a guest uses them: called as a library
 * (tests/native/fs_setup.h), so that there is neither a ring nor a thread. The share is a directory
 * on a tmpfs that is mounted nowhere, and holds the same few files whenever an input begins.
 *
 * Input: struct header, then requests. Names, nodeids and handles are mostly chosen from what
 * exists (the replies so far), because random values are refused at once; all of them may be any
 * bytes.
 *
 * What must hold after each request: the reply has the length that it says, the request's number
 * and an error that is an errno; no byte is written beyond the reply's room; an opened file is a
 * regular file or a directory; no file beside the share appears in a reply, and no such file is
 * touched. After each input: the tables hold nothing but the root, and no fd is open that was not
 * open before.
 */
#include "extensions.h"
#include "fuzz.h"
#include "ops.h"
#include "ops_fs.h"
#include "ops_share.h"

#include "worker/csrc/fs/label.h"

#include <fcntl.h>

enum {
	REQUESTS_MAX_HERE = 64,
	ROOM_MAX = 0x20000,
	GUARD = 64,
	GUARD_BYTE = 0xa5,
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
	NAME_LONGEST = 252, /* selects the lengths 255, 256 … bytes */
};

static bool open_before[FDS_MAX]; /* fds that were open before the input */
static struct asking a;		  /* the request and its intent */
static uint8_t *reply;		  /* the guest's room for a reply */
static uint64_t unique;
static uint8_t *arg; /* the argument of the request that is being made */
static uint32_t arg_len;

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
		add_raw(in, choice - NAMES_KNOWN); /* such a name may lack its end */
	}
}

/* The argument begins with as many bytes as the input says; the rest is zeroes. */
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

/* Everything that follows the fixed argument: names, values, file data, extensions. */
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

/* Add the extensions, the last part of a request; the header gives their length in units of 8
 * bytes. Return: these units. */
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

/* Room for the reply, followed by guard bytes that must not change. */
static void prepare_room(uint32_t room)
{
	memset(reply + room, GUARD_BYTE, GUARD);
	memset(reply, 0, room < 4096 ? room : 4096);
}

static void check_guard(uint32_t room)
{
	for (uint32_t i = 0; i < GUARD; i++)
		CHECK_EQUAL(reply[room + i], GUARD_BYTE);
}

/* No piece of a chain is empty (vring.c). */
static uint32_t put_piece(struct iovec *pieces, uint32_t count, uint8_t *at, uint32_t len)
{
	if (len)
		pieces[count++] = (struct iovec){at, len};
	return count;
}

/* Where the request and its room are cut into pieces. */
struct cuts {
	uint32_t len, cut;
	uint32_t room, cut_room;
};

static struct cuts choose_cuts(struct input *in, uint32_t len, uint32_t room)
{
	uint32_t cut = take_byte(in), cut_room = cut >> 4;

	cut = cut % 16 ? cut % 16 * 8 : (uint32_t)sizeof(struct fuse_in_header);
	return (struct cuts){.len = len,
			     .cut = cut < len ? cut : len / 2,
			     .room = room,
			     .cut_room = cut_room < room ? cut_room : room / 2};
}

/* Offer the request in two pieces, and its room in two. Parsing uses these pieces up. */
static void offer(const struct cuts *c)
{
	struct chain *chain = &a.r.chain;
	uint32_t count = put_piece(chain->readable, 0, a.bytes, c->cut);

	chain->readable_count =
		put_piece(chain->readable, count, a.bytes + c->cut, c->len - c->cut);
	chain->readable_len = c->len;
	count = put_piece(chain->writable, 0, reply, c->cut_room);
	chain->writable_count =
		put_piece(chain->writable, count, reply + c->cut_room, c->room - c->cut_room);
	chain->writable_len = c->room;
}

static void check_answer(const struct fuse_in_header *in, uint32_t len, uint32_t room)
{
	check_guard(room);
	check_reply(in, reply, len, room);
}

/* INIT and DESTROY are Python's: here they begin and end a session. */
static int answer_cold(const struct header *header)
{
	bool is_init = a.r.in.opcode == FUSE_INIT;

	begin_session(header);
	memset(a.r.small, 0, 64);
	return is_init ? 64 : 0;
}

/* The outcome of the request, before it becomes a reply. */
static int result_of(const struct header *header)
{
	struct request *r = &a.r;
	const struct fuse_op *op;
	int result = request_parse(r, fs->session, a.payload);

	op = fuse_op(r->in.opcode);
	r->session = fs->session->number;
	r->intent = &a.intent;
	fs->now_ns = r->start_ns = test_clock_ns();
	if (result < 0)
		return ops_error(op, result);
	if (r->from_dead && intent_settles(r, true, &result)) {
		label_forsake(fs, r);
		return result;
	}
	return op->flags & OP_COLD ? answer_cold(header) : answer(fs, &a);
}

/* Return: true if the request is completed, with *ret_len bytes; false if it waits for a lock. */
static bool serve_it(const struct header *header, uint32_t *ret_len)
{
	int result = result_of(header);

	if (result == OUTCOME_WAIT)
		result = fs->policy.lock_wait_ns ? ops_retry(fs, &a.r) : -EDEADLK;
	settle(fs);
	if (result == OUTCOME_WAIT)
		return false;
	*ret_len = result == OUTCOME_NO_REPLY ? 0 : request_reply(&a.r, result);
	return true;
}

/* ---- one input ---- */

/* The worker has died after this request and before the guest saw the reply: its successor serves
 * the request again. */
static void serve_again(const struct header *header, const struct fuse_in_header *in,
			const struct cuts *cuts, bool known)
{
	uint32_t len;

	if (!known)
		a.intent.state = INTENT_BEGUN;
	offer(cuts);
	a.r.from_dead = true;
	if (serve_it(header, &len))
		check_answer(in, len, cuts->room);
	a.r.from_dead = false;
}

static void run_request(struct input *in, const struct header *header)
{
	uint8_t choice = take_byte(in), again = (uint8_t)(choice / asked_count);
	const struct asked *op = &asked[choice % asked_count];
	struct fuse_in_header head = {.opcode = op->opcode, .unique = unique += 2, .pid = 1};
	struct opened file = op->fh_at >= 0 ? choose_file(in) : (struct opened){0};
	uint32_t room = choose_room(in), len;
	struct cuts cuts;

	head.uid = head.gid = choose_uid(in);
	head.nodeid = file.nodeid ? file.nodeid : choose_node(in);
	arg_len = 0;
	add_fixed(in, op, file);
	add_rest(in, op);
	head.total_extlen = add_extensions(in);
	head.len = (uint32_t)sizeof(head) + arg_len;
	CHECK(head.len <= FS_ASK_MAX);
	memcpy(a.bytes, &head, sizeof(head));
	memcpy(a.bytes + sizeof(head), arg, arg_len);
	prepare_room(room);
	cuts = choose_cuts(in, head.len, room);
	offer(&cuts);
	if (!serve_it(header, &len))
		return; /* the device is reset before the request gets the lock */
	check_answer(&head, len, room);
	if (again == 1 || again == 2)
		serve_again(header, &head, &cuts, again == 1);
}

static bool is_open(int fd)
{
	return fcntl(fd, F_GETFD) >= 0;
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
	fs_session_end(fs);
	settle(fs);
	CHECK_EQUAL(inode_table_count(fs->inodes), 0);
	CHECK_EQUAL(file_table_count(fs->files), 0);
	CHECK_EQUAL(fs->reclaim.count, 0);
	for (int fd = 0; fd < FDS_MAX; fd++)
		if (!open_before[fd] && is_open(fd))
			report_leak(fd);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input in = {data, data + size};
	struct header header;

	if (!fs) {
		make_fs();
		arg = malloc(ROOM_MAX);
		reply = malloc(ROOM_MAX + GUARD);
		CHECK(arg && reply);
	}
	share_restore();
	memset(&a.intent, 0, sizeof(a.intent));
	for (int fd = 0; fd < FDS_MAX; fd++)
		open_before[fd] = is_open(fd);
	take_bytes(&in, &header, sizeof(header));
	set_policy(&header);
	begin_session(&header);
	for (uint32_t i = 0; i < REQUESTS_MAX_HERE && !is_empty(&in); i++)
		run_request(&in, &header);
	CHECK(!credentials_root(&fs->credentials));
	credentials_umask(&fs->credentials, 0);
	check_nothing_is_left();
	share_check_beside();
	return 0;
}
