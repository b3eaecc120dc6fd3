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
#include "ops_share.h"
#include "ops_worker.h"

#include "worker/csrc/loop/ring.h"
#include "worker/csrc/loop/serve.h"
#include "worker/csrc/loop/worker.h"
#include "worker/csrc/request/intent.h"

#include <fcntl.h>

enum {
	REQUESTS_MAX_HERE = 64,
	TURNS_MAX = 16,
	ARG = DRIVER_DATA,
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
	NAME_LONGEST = 252, /* selects 255, 256 … bytes */
};

static bool open_before[FDS_MAX]; /* fds that were open before the input */
static uint64_t unique;
static uint8_t *arg; /* of the request that is being made */
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

static void check_answer(const struct fuse_in_header *in, uint32_t len, uint32_t room)
{
	check_guard(room);
	check_reply(in, len, room);
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
		check_answer(in, len, room);
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
	check_answer(&head, len, room);
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
	worker_session_end(worker);
	for (int i = 0; i < 8 && !worker_idle_work(worker); i++)
		continue;
	CHECK_EQUAL(inode_table_count(worker->fs.inodes), 0);
	CHECK_EQUAL(file_table_count(worker->fs.files), 0);
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

	if (!worker) {
		make_worker();
		arg = malloc(ROOM_MAX);
		CHECK(arg);
	}
	share_restore();
	for (int fd = 0; fd < FDS_MAX; fd++)
		open_before[fd] = is_open(fd);
	take_bytes(&in, &header, sizeof(header));
	set_policy(&header);
	begin_session(&header);
	for (uint32_t i = 0; i < REQUESTS_MAX_HERE && !is_empty(&in); i++)
		run_request(&in, &header);
	CHECK(!credentials_root(&worker->fs.credentials));
	credentials_umask(&worker->fs.credentials, 0);
	check_nothing_is_left();
	share_check_beside();
	return 0;
}
