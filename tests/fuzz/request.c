/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fuzz target: requests that are well made on the outside (a header, a length, an extension area)
 * and have any bytes inside. Each piece of guest memory is an allocation of its own, so that ASan
 * sees a byte read or written beyond a piece.
 *
 * Input: struct header, then the body, then what the extension area is made of.
 *
 * What must hold: as for ring.c, and no byte beyond a piece is touched.
 */
#include "extensions.h"
#include "fuzz.h"

#include "worker/csrc/request/request.h"
#include "worker/csrc/tables/worker_table.h"

enum {
	BODY_MAX = 512,
	PIECES_MAX = 6,
	BYTES_MAX = sizeof(struct fuse_in_header) + BODY_MAX + EXTENSIONS_MAX,
};

struct header {
	uint8_t opcode;
	uint8_t agreed; /* 1: no labels, 2: FUSE before 7.38 */
	int8_t excess;	/* what the length in the header has over the real length */
	uint8_t body;	/* length of the body, in units of two bytes */
	uint16_t room;
	int16_t result;
	uint8_t cuts[PIECES_MAX]; /* sizes of the first pieces, in both directions */
};

static struct request *r;
static struct fuse_session session;
static char *payload;
static uint8_t bytes[BYTES_MAX];
static void *pieces[2 * PIECES_MAX + 2];
static uint32_t piece_count;

static void set_up(void)
{
	if (r)
		return;
	r = calloc(1, sizeof(*r));
	CHECK(r);
	payload = malloc(REQUEST_PAYLOAD_MAX + 1);
	CHECK(payload);
}

static struct iovec make_piece(const uint8_t *from, uint64_t len)
{
	void *piece = malloc(len);

	CHECK(piece);
	if (from)
		memcpy(piece, from, len);
	pieces[piece_count++] = piece;
	return (struct iovec){piece, len};
}

/* `len` bytes in pieces as the cuts say; the last piece has the rest. */
static uint32_t split(const struct header *header, const uint8_t *from, uint64_t len,
		      struct iovec *ret)
{
	uint32_t count = 0;

	for (uint32_t i = 0; i < PIECES_MAX && len > header->cuts[i]; i++) {
		uint64_t here = header->cuts[i];

		if (!here)
			continue;
		ret[count++] = make_piece(from, here);
		from = from ? from + here : NULL;
		len -= here;
	}
	if (len)
		ret[count++] = make_piece(from, len);
	return count;
}

static void check_labels(void)
{
	const uint8_t *at = r->labels;
	uint32_t left = r->labels_len;
	struct request_label label;

	for (uint32_t i = 0; i < r->label_count; i++) {
		CHECK(request_next_label(&at, &left, &label));
		CHECK(!strncmp(label.name, "security.", 9) && strlen(label.name) <= XATTR_NAME_MAX);
		CHECK((const uint8_t *)label.value + label.size <= r->labels + r->labels_len);
	}
}

static void check_request(const struct fuse_op *op)
{
	CHECK(op->name);
	CHECK(!r->payload[r->payload_len]);
	if (op->flags & (OP_NAME | OP_NAMES))
		CHECK(!request_check_name(r->name));
	if (op->flags & OP_NAMES)
		CHECK(!request_check_name(r->name2) && r->name2 > r->name);
	CHECK(r->group_count <= SUPPLEMENTARY_GROUPS_MAX);
	check_labels();
}

static uint32_t make_request(struct input *in, const struct header *header)
{
	struct fuse_in_header head = {.opcode = header->opcode, .unique = 1, .nodeid = 1};
	uint32_t len = sizeof(head), body = header->body * 2u;
	struct extension_area area;

	take_bytes(in, bytes + len, body);
	len += body;
	head.total_extlen = extensions_take(&area, in);
	memcpy(bytes + len, area.bytes, area.len);
	len += area.len;
	head.len = len + (uint32_t)header->excess / 16;
	memcpy(bytes, &head, sizeof(head));
	return len;
}

static void run_request(struct input *in, const struct header *header)
{
	const struct fuse_op *op = fuse_op(header->opcode);
	struct chain *chain = &r->chain;
	int result = header->result, err;
	uint32_t len;

	chain->readable_len = make_request(in, header);
	chain->readable_count = split(header, bytes, chain->readable_len, chain->readable);
	chain->writable_len = header->room;
	chain->writable_count = split(header, NULL, chain->writable_len, chain->writable);
	err = request_parse(r, &session, payload);
	CHECK(err <= 0 && err >= -4095);
	if (!err)
		check_request(op);
	if (result > REQUEST_SMALL_REPLY && !(op->flags & OP_DATA_OUT))
		result = REQUEST_SMALL_REPLY;
	len = request_reply(r, result < -4095 ? -EIO : result);
	CHECK(len <= header->room);
	CHECK(!len || len >= sizeof(struct fuse_out_header));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input in = {data, data + size};
	struct header header;

	set_up();
	take_bytes(&in, &header, sizeof(header));
	session.flags = header.agreed & 1 ? 0 : FUSE_SECURITY_CTX | FUSE_CREATE_SUPP_GROUP;
	session.minor = header.agreed & 2 ? 36 : 41;
	run_request(&in, &header);
	while (piece_count)
		free(pieces[--piece_count]);
	return 0;
}
