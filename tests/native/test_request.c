/* SPDX-License-Identifier: Apache-2.0 */
#include "check.h"

#include "worker/csrc/request/request.h"
#include "worker/csrc/tables/worker_table.h"

enum {
	BYTES_MAX = 2 * PATH_MAX,
	MKDIR_LEN = sizeof(struct fuse_in_header) + sizeof(struct fuse_mkdir_in),
};

static struct fuse_session session;
static char *payload;
static struct request *r;
static uint8_t bytes[BYTES_MAX]; /* the request as the guest means it */
static uint32_t length;
static uint8_t
	*pieces[BYTES_MAX]; /* copies on the heap: ASan sees a read beyond the end of a piece */
static uint32_t piece_count;

static void begin(uint32_t opcode)
{
	struct fuse_in_header *in = (void *)bytes;

	memset(bytes, 0, sizeof(bytes));
	*in = (struct fuse_in_header){.opcode = opcode, .unique = 42, .nodeid = 1};
	length = sizeof(*in);
}

static void put(const void *data, uint32_t len)
{
	memcpy(bytes + length, data, len);
	length += len;
}

static struct fuse_in_header *header(void)
{
	return (void *)bytes;
}

static uint8_t *piece(const uint8_t *from, uint64_t len)
{
	uint8_t *copy = malloc(len);

	CHECK(copy);
	if (from)
		memcpy(copy, from, len);
	else
		memset(copy, 0xee, len);
	pieces[piece_count++] = copy;
	return copy;
}

static void free_pieces(void)
{
	while (piece_count)
		free(pieces[--piece_count]);
}

/* `len` bytes in pieces that end at `first`, `second` and `len`. */
static uint32_t split(struct iovec *iov, const uint8_t *from, uint32_t len, uint32_t first,
		      uint32_t second)
{
	const uint32_t ends[] = {first, second, len};
	uint32_t at = 0, count = 0;

	for (uint32_t i = 0; i < 3; i++) {
		if (ends[i] <= at || ends[i] > len)
			continue;
		iov[count++] =
			(struct iovec){piece(from ? from + at : NULL, ends[i] - at), ends[i] - at};
		at = ends[i];
	}
	return count;
}

/* Parse the request from three pieces; in.len is the request's length unless a test has set it. */
static int parse_split(uint32_t first, uint32_t second)
{
	free_pieces();
	if (!header()->len)
		header()->len = length;
	r->chain.readable_len = length;
	r->chain.readable_count = split(r->chain.readable, bytes, length, first, second);
	r->chain.writable_len = 0;
	r->chain.writable_count = 0;
	return request_parse(r, &session, payload);
}

static int parse(void)
{
	return parse_split(length, length);
}

/* ---- in ---- */

static void make_mkdir(const char *name, uint32_t len)
{
	begin(FUSE_MKDIR);
	put(&(struct fuse_mkdir_in){.mode = 0755, .umask = 022}, sizeof(struct fuse_mkdir_in));
	put(name, len);
}

static void test_split_at_every_two_bytes(void)
{
	make_mkdir("directory", 10);
	for (uint32_t first = 1; first <= length; first++)
		for (uint32_t second = first; second <= length; second++) {
			CHECK_EQUAL(parse_split(first, second), 0);
			CHECK(r->in.unique == 42 && r->in.opcode == FUSE_MKDIR);
			CHECK_EQUAL(REQUEST_ARG(r, struct fuse_mkdir_in)->mode, 0755);
			CHECK_EQUAL(REQUEST_ARG(r, struct fuse_mkdir_in)->umask, 022);
			CHECK(!strcmp(r->name, "directory"));
			CHECK_EQUAL(r->payload_len, 10);
		}
}

static void test_cut_short_everywhere(void)
{
	make_mkdir("directory", 10);
	for (uint32_t whole = length; length > 0; length--) {
		int err;

		header()->len = length;
		err = parse();
		if (length == whole)
			CHECK_EQUAL(err, 0);
		else if (length < sizeof(struct fuse_in_header))
			CHECK(err == -EIO && r->in.opcode == 0);
		else
			CHECK_EQUAL(err, -EINVAL);
	}
}

static void test_lengths_that_lie(void)
{
	static const uint32_t lies[] = {1, 39, MKDIR_LEN + 11, 4096, UINT32_MAX};

	for (uint32_t i = 0; i < sizeof(lies) / sizeof(*lies); i++) {
		make_mkdir("directory", 10);
		header()->len = lies[i];
		CHECK_EQUAL(parse(), -EIO);
	}
	make_mkdir("directory", 10);
	header()->len = MKDIR_LEN + 5; /* the bytes behind that are not part of the name */
	CHECK_EQUAL(parse(), -EINVAL);
	make_mkdir("directory\0junk", 15);
	header()->len = MKDIR_LEN + 10;
	CHECK_EQUAL(parse(), 0);
	CHECK_EQUAL(r->payload_len, 10);
}

static void expect_name(const char *name, uint32_t len, int err)
{
	make_mkdir(name, len);
	CHECK_EQUAL(parse(), err);
}

static void test_names(void)
{
	char longest[PATH_MAX + 1];

	memset(longest, 'x', sizeof(longest));
	longest[PATH_MAX - 1] = '\0';
	expect_name(longest, PATH_MAX, 0);
	longest[PATH_MAX - 1] = 'x';
	longest[PATH_MAX] = '\0';
	expect_name(longest, PATH_MAX + 1, -ENAMETOOLONG);
	expect_name("", 0, -EINVAL);
	expect_name("", 1, -ENOENT);
	expect_name("abc", 3, -EINVAL); /* not terminated */
	expect_name(".", 2, -EINVAL);
	expect_name("..", 3, -EINVAL);
	expect_name("...", 4, 0);
	expect_name(".x", 3, 0);
	expect_name("a/b", 4, -EINVAL);
	expect_name("/", 2, -EINVAL);
	expect_name("a/", 3, -EINVAL);
	expect_name("a\0/", 4, 0); /* only the first string is the name */
}

static void expect_rename(const char *names, uint32_t len, int err)
{
	begin(FUSE_RENAME);
	put(&(struct fuse_rename_in){.newdir = 1}, sizeof(struct fuse_rename_in));
	put(names, len);
	CHECK_EQUAL(parse(), err);
}

static void test_two_names(void)
{
	expect_rename("old\0new", 8, 0);
	CHECK(!strcmp(r->name, "old") && !strcmp(r->name2, "new"));
	expect_rename("old\0new", 7, -EINVAL);
	expect_rename("old", 4, -EINVAL);
	expect_rename("old\0", 5, -ENOENT);
	expect_rename("old\0..", 7, -EINVAL);
	expect_rename("..\0new", 7, -EINVAL);
	expect_rename("", 0, -EINVAL);
}

static void test_unknown_opcodes(void)
{
	static const uint32_t unknown[] = {0,	 7,	    FUSE_OPCODE_MAX - 1, FUSE_OPCODE_MAX,
					   4096, UINT32_MAX};

	for (uint32_t i = 0; i < sizeof(unknown) / sizeof(*unknown); i++) {
		begin(unknown[i]);
		CHECK_EQUAL(parse(), -ENOSYS);
	}
}

static void test_every_opcode_with_every_length(void)
{
	for (uint32_t opcode = 0; opcode < FUSE_OPCODE_MAX; opcode++)
		for (uint32_t len = 0; len < 200; len++) {
			const struct fuse_op *op = fuse_op(opcode);
			int err;

			begin(opcode);
			length += len;
			err = parse();
			if (op->name && len < op->arg_size)
				CHECK_EQUAL(err, -EINVAL);
			CHECK(err <= 0 && r->payload && r->payload[r->payload_len] == '\0');
		}
}

/* The extension area of a MKDIR: `announced` is the number of groups that it claims, `present` the
 * number that it has. */
static void make_extension(uint32_t type, uint32_t size, uint32_t announced, uint32_t present)
{
	make_mkdir("dir", 4);
	put("\0\0\0",
	    4); /* no guest pads the name area to 8, so the parser must accept any length */
	put(&(struct fuse_ext_header){.size = size, .type = type}, sizeof(struct fuse_ext_header));
	put(&announced, 4);
	for (uint32_t i = 0; i < present; i++)
		put(&(uint32_t){1000 + i}, 4);
	while ((length - MKDIR_LEN - 8) % 8)
		put("", 1);
	header()->total_extlen = (uint16_t)((length - MKDIR_LEN - 8) / 8);
}

static void test_groups(void)
{
	make_extension(FUSE_EXT_GROUPS, 24, 3, 3);
	for (uint32_t at = 1; at < length; at++) {
		CHECK_EQUAL(parse_split(at, at + 3), 0);
		CHECK(r->group_count == 3 && r->groups[2] == 1002);
		CHECK(!strcmp(r->name, "dir"));
		CHECK_EQUAL(r->payload_len, 8);
	}
	make_extension(FUSE_EXT_GROUPS, 16, 0, 0);
	CHECK_EQUAL(parse(), 0);
	CHECK_EQUAL(r->group_count, 0);
	make_extension(12345, 16, 99, 1); /* an extension of an unknown type is skipped */
	CHECK_EQUAL(parse(), 0);
	make_extension(FUSE_EXT_GROUPS, 144, SUPPLEMENTARY_GROUPS_MAX, SUPPLEMENTARY_GROUPS_MAX);
	CHECK_EQUAL(parse(), 0);
	CHECK_EQUAL(r->group_count, SUPPLEMENTARY_GROUPS_MAX);
}

static void test_malformed_extensions(void)
{
	static const uint32_t sizes[] = {0, 4, 7, 8, 12, 20, 28, 32, 4096, UINT32_MAX & ~7u};
	static const uint32_t counts[] = {4, 33, 1000, UINT32_MAX / 4 + 2, UINT32_MAX};

	for (uint32_t i = 0; i < sizeof(sizes) / sizeof(*sizes); i++) {
		make_extension(FUSE_EXT_GROUPS, sizes[i], 1, 3);
		CHECK_EQUAL(parse(), -EINVAL);
	}
	for (uint32_t i = 0; i < sizeof(counts) / sizeof(*counts); i++) {
		make_extension(FUSE_EXT_GROUPS, 24, counts[i], 3);
		CHECK_EQUAL(parse(), -EINVAL);
	}
	make_extension(FUSE_EXT_GROUPS, 152, SUPPLEMENTARY_GROUPS_MAX + 1,
		       SUPPLEMENTARY_GROUPS_MAX + 1);
	CHECK_EQUAL(parse(), -EINVAL);
	make_mkdir("dir", 4);
	header()->total_extlen = 1; /* more than the request has */
	CHECK_EQUAL(parse(), -EINVAL);
	header()->total_extlen = UINT16_MAX;
	CHECK_EQUAL(parse(), -EINVAL);
	make_extension(12345, 24, 1, 3);
	header()->total_extlen--; /* the area ends inside the extension */
	CHECK(parse() < 0);
}

/* Before FUSE 7.38, and if neither flag was agreed, the word is padding. */
static void test_extensions_that_were_not_agreed(void)
{
	static const struct {
		uint32_t minor;
		uint64_t flags;
	} without[] = {{37, FUSE_CREATE_SUPP_GROUP}, {45, 0}, {27, 0}};
	const struct fuse_session agreed = session;

	for (uint32_t i = 0; i < sizeof(without) / sizeof(*without); i++) {
		session.minor = without[i].minor;
		session.flags = without[i].flags;
		for (uint32_t extlen = 0; extlen < UINT16_MAX; extlen += 5) {
			make_mkdir("dir\0\0\0\0\0\0\0\0", 12);
			header()->total_extlen = (uint16_t)extlen;
			CHECK_EQUAL(parse(), 0);
			CHECK_EQUAL(r->payload_len, 12);
		}
	}
	session = agreed;
}

/* Only labels were agreed, so groups have no meaning. */
static void test_groups_that_were_not_agreed(void)
{
	const struct fuse_session agreed = session;

	session.flags = FUSE_SECURITY_CTX;
	make_extension(FUSE_EXT_GROUPS, 24, 3, 3);
	CHECK_EQUAL(parse(), 0);
	CHECK_EQUAL(r->group_count, 0);
	session = agreed;
}

static void test_payload_too_long(void)
{
	uint64_t len = REQUEST_PAYLOAD_MAX + 1;
	uint8_t *data = calloc(1, len);

	begin(FUSE_SETXATTR);
	length += FUSE_COMPAT_SETXATTR_IN_SIZE;
	CHECK(data);
	for (; len >= REQUEST_PAYLOAD_MAX; len--) {
		header()->len = length + (uint32_t)len;
		free_pieces();
		r->chain.readable_count = split(r->chain.readable, bytes, length, 40, length);
		r->chain.readable[r->chain.readable_count++] = (struct iovec){data, len};
		r->chain.readable_len = length + len;
		CHECK_EQUAL(request_parse(r, &session, payload),
			    len > REQUEST_PAYLOAD_MAX ? -E2BIG : 0);
	}
	free(data);
}

static void test_file_data_stays_where_it_is(void)
{
	uint32_t head = sizeof(struct fuse_in_header) + sizeof(struct fuse_write_in);

	begin(FUSE_WRITE);
	put(&(struct fuse_write_in){.size = 100}, sizeof(struct fuse_write_in));
	for (uint8_t i = 0; i < 100; i++)
		put(&i, 1);
	for (uint32_t at = 1; at < length; at++) {
		uint64_t seen = 0;

		CHECK_EQUAL(parse_split(at, at + 30), 0);
		CHECK_EQUAL(r->data_in_len, 100);
		for (uint32_t i = 0; i < r->data_in_count; i++)
			for (uint64_t j = 0; j < r->data_in[i].iov_len; j++)
				CHECK_EQUAL(((uint8_t *)r->data_in[i].iov_base)[j], seen++);
		CHECK_EQUAL(seen, 100);
	}
	header()->len = head + 60; /* the chain is longer than the request's header says */
	CHECK_EQUAL(parse_split(head + 10, head + 20), 0);
	CHECK_EQUAL(r->data_in_len, 60);
	CHECK_EQUAL(r->data_in_count, 3);
	CHECK_EQUAL(r->data_in[2].iov_len, 40);
}

/* ---- out ---- */

/* Reply into `room` writable bytes in three pieces, and read the reply back. */
static uint32_t reply(uint32_t room, uint32_t first, uint32_t second, int result, uint8_t *ret)
{
	struct iovec writable[3] = {0}; /* parsing modifies the pieces in the chain */
	uint32_t len, at = 0;

	begin(FUSE_GETATTR);
	length += sizeof(struct fuse_getattr_in);
	free_pieces();
	header()->len = length;
	r->chain.readable_len = length;
	r->chain.readable_count = split(r->chain.readable, bytes, length, length, length);
	r->chain.writable_len = room;
	r->chain.writable_count = split(writable, NULL, room, first, second);
	memcpy(r->chain.writable, writable, sizeof(writable));
	CHECK_EQUAL(request_parse(r, &session, payload), 0);
	for (uint32_t i = 0; i < 104; i++)
		r->reply[i] = (uint8_t)(i + 1);
	len = request_reply(r, result);
	for (uint32_t i = 0; i < r->chain.writable_count; i++) {
		memcpy(ret + at, writable[i].iov_base, writable[i].iov_len);
		at += (uint32_t)writable[i].iov_len;
	}
	return len;
}

static void check_reply(const uint8_t *got, uint32_t len, int error)
{
	const struct fuse_out_header *out = (const void *)got;

	CHECK_EQUAL(out->len, len);
	CHECK_EQUAL(out->error, error);
	CHECK_EQUAL(out->unique, 42);
	for (uint32_t i = 16; i < len; i++)
		CHECK_EQUAL(got[i], i - 15);
}

static void test_reply_split_everywhere(void)
{
	_Alignas(8) uint8_t got[256];

	for (uint32_t first = 1; first <= 120; first++)
		for (uint32_t second = first; second <= 120; second += 3) {
			CHECK_EQUAL(reply(120, first, second, 104, got), 120);
			check_reply(got, 120, 0);
			CHECK_EQUAL(reply(120, first, second, -ENOENT, got), 16);
			check_reply(got, 16, -ENOENT);
			CHECK_EQUAL(got[16], 0xee); /* no other byte was touched */
		}
}

static void test_reply_without_room(void)
{
	_Alignas(8) uint8_t got[256];

	for (uint32_t room = 0; room < 120; room++) {
		uint32_t len = reply(room, 3, 7, 104, got);

		if (room < 16) {
			CHECK_EQUAL(len, 0);
			for (uint32_t i = 0; i < room; i++)
				CHECK_EQUAL(got[i], 0xee);
		} else {
			CHECK_EQUAL(len, 16);
			check_reply(got, 16, -EIO);
		}
		CHECK_EQUAL(request_need_room(r, 104), -EIO);
	}
}

static void test_out_header_in_sixteen_pieces(void)
{
	uint8_t *out[200];

	begin(FUSE_READ);
	length += sizeof(struct fuse_read_in);
	CHECK_EQUAL(parse(), 0);
	r->chain.readable_count = split(r->chain.readable, bytes, length, length, length);
	r->chain.writable_len = 200;
	r->chain.writable_count = 200;
	for (uint32_t i = 0; i < 200; i++)
		r->chain.writable[i] = (struct iovec){out[i] = piece(NULL, 1), 1};
	CHECK_EQUAL(request_parse(r, &session, payload), 0);
	CHECK_EQUAL(r->out_header_count, 16);
	CHECK_EQUAL(r->data_out_count, 184);
	CHECK_EQUAL(r->data_out_len, 184);
	CHECK_EQUAL(request_reply(r, 100), 116);
	CHECK_EQUAL(*out[0], 116);
	CHECK_EQUAL(*out[16], 0xee); /* the op writes these bytes itself */
}

static void test_iovec_truncate_and_advance(void)
{
	struct iovec iov[3] = {{bytes, 10}, {bytes + 10, 20}, {bytes + 30, 30}}, *at = iov;

	CHECK_EQUAL(iovec_truncate(iov, 3, 60), 3);
	CHECK_EQUAL(iovec_truncate(iov, 3, 31), 3);
	CHECK_EQUAL(iov[2].iov_len, 1);
	CHECK_EQUAL(iovec_truncate(iov, 3, 30), 2);
	CHECK_EQUAL(iovec_truncate(iov, 2, 0), 0);
	CHECK_EQUAL(iovec_advance(&at, 2, 0), 2);
	CHECK_EQUAL(iovec_advance(&at, 2, 15), 1);
	CHECK(at == &iov[1] && at->iov_len == 15 && at->iov_base == bytes + 15);
	CHECK_EQUAL(iovec_advance(&at, 1, 15), 0);
	CHECK_EQUAL(iovec_advance(&at, 0, 15), 0);
}

int main(void)
{
	r = calloc(1, sizeof(*r));
	CHECK(r);
	payload = malloc(REQUEST_PAYLOAD_MAX + 1);
	CHECK(payload);
	session.minor = 45;
	session.flags = FUSE_SECURITY_CTX | FUSE_CREATE_SUPP_GROUP;
	RUN(test_split_at_every_two_bytes);
	RUN(test_cut_short_everywhere);
	RUN(test_lengths_that_lie);
	RUN(test_names);
	RUN(test_two_names);
	RUN(test_unknown_opcodes);
	RUN(test_every_opcode_with_every_length);
	RUN(test_groups);
	RUN(test_malformed_extensions);
	RUN(test_extensions_that_were_not_agreed);
	RUN(test_groups_that_were_not_agreed);
	RUN(test_payload_too_long);
	RUN(test_file_data_stays_where_it_is);
	RUN(test_reply_split_everywhere);
	RUN(test_reply_without_room);
	RUN(test_out_header_in_sixteen_pieces);
	RUN(test_iovec_truncate_and_advance);
	free_pieces();
	free(payload);
	free(r);
	return 0;
}
