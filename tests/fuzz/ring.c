/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fuzz target: a guest that writes any bytes into its ring, its indirect tables and its requests.
 * Every chain is walked, parsed and answered, and the ring is taken over now and then as after a
 * worker's death.
 *
 * Input: HEADER bytes (see struct header), then guest memory from address 0 on: the descriptor
 * table, the avail ring, the used ring, and any other bytes. The first two regions adjoin in the
 * guest's addresses and not in ours, so a chain may run from one region into the other; the third
 * region is apart.
 *
 * What must hold: each piece of a chain lies in guest memory and the pieces add up; a parsed
 * request is bounded, terminated and a copy, so that a guest which writes to its memory afterwards
 * changes nothing; a reply is as long as its header says and fits its room.
 */
#include "driver.h"
#include "fuzz.h"

#include "transport/csrc/bad_chain.h"
#include "worker/csrc/request/request.h"
#include "worker/csrc/tables/worker_table.h"

enum {
	REGIONS = 3,
	REGION_BYTES = 0x2000,
	MEMORY_BYTES = REGIONS * REGION_BYTES,
	APART = 0x10000, /* the guest's address of the last region */
	UVA = 0x10000000,
	SIZE_LOG2_MAX = 6,
	HEADS_MAX = 1 << SIZE_LOG2_MAX,
	CHAINS_MAX = 3 * HEADS_MAX,
	SCRIBBLED = 0xff,
};

/* The first bytes of an input: how the ring is set up and what happens to it. */
struct header {
	uint8_t size_log2;
	uint8_t features;  /* 1: indirect, 2: event index, 4: labels, 8: FUSE before 7.38 */
	uint8_t end_after; /* take the ring over after this number of chains; 0: never */
	uint8_t publish_every;
	int16_t result; /* the room of every request */
};

static struct guest_memory guest;
static struct request *r;
static struct fuse_session session;
static char *payload;
static struct inflight_region *inflight;
static uint8_t *memory; /* guest memory, in a mapping of the test's own */
static uint8_t before[MEMORY_BYTES];
static struct vring vring;
static struct header header;

static void make_memory(void)
{
	static const uint64_t gpas[REGIONS] = {0, REGION_BYTES, APART};
	/* Our mappings are in another order than the guest's addresses. */
	static const uint64_t offsets[REGIONS] = {REGION_BYTES * 2, 0, REGION_BYTES};
	struct device_region regions[REGIONS];
	int fd = make_memfd(MEMORY_BYTES);

	for (uint32_t i = 0; i < REGIONS; i++)
		regions[i] = (struct device_region){.gpa = gpas[i],
						    .size = REGION_BYTES,
						    .uva = UVA + gpas[i],
						    .offset = offsets[i],
						    .fd = fd};
	CHECK(!guest_memory_update(&guest, regions, REGIONS));
	memory = mmap(NULL, MEMORY_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	CHECK(memory != MAP_FAILED);
	close(fd);
}

static void set_up(void)
{
	if (r)
		return;
	r = calloc(1, sizeof(*r));
	inflight = calloc(1, inflight_region_bytes(HEADS_MAX));
	CHECK(r && inflight);
	payload = malloc(REQUEST_PAYLOAD_MAX + 1);
	CHECK(payload);
	make_memory();
}

/* The image lies in the first region, and runs on into the second region. */
static void load_image(struct input *in)
{
	take_bytes(in, memory + REGION_BYTES * 2, REGION_BYTES);
	take_bytes(in, memory, REGION_BYTES);
	memset(memory + REGION_BYTES, 0, REGION_BYTES);
}

static struct device_vring device_vring(uint32_t size)
{
	uint64_t avail = size * sizeof(struct driver_desc);
	uint64_t used = (avail + 6 + size * 2 + 3) & ~UINT64_C(3);

	return (struct device_vring){.desc = UVA,
				     .avail = UVA + avail,
				     .used = UVA + used,
				     .size = size,
				     .kick_fd = -1,
				     .call_fd = -1,
				     .err_fd = -1,
				     .inflight_fd = -1};
}

static uint64_t features(void)
{
	return (header.features & 1 ? DRIVER_INDIRECT_DESC : 0) |
	       (header.features & 2 ? DRIVER_EVENT_IDX : 0);
}

/* ---- what must hold ---- */

/* Every byte of the piece belongs to some mapping. Mappings may adjoin. */
static bool is_guest_memory(const struct iovec *piece)
{
	const uint8_t *at = piece->iov_base;
	uint64_t left = piece->iov_len;

	for (uint32_t i = 0; left && i < guest.count; i++) {
		const struct guest_mapping *m = &guest.mappings[i];
		uint64_t into = (uint64_t)(at - m->addr), here;

		if (at < m->addr || into >= m->size)
			continue;
		here = m->size - into < left ? m->size - into : left;
		at += here;
		left -= here;
		i = UINT32_MAX; /* begin again with the first mapping */
	}
	return !left;
}

static uint64_t check_pieces(const struct iovec *pieces, uint32_t count)
{
	uint64_t len = 0;

	CHECK(count <= CHAIN_SEGMENTS_MAX);
	for (uint32_t i = 0; i < count; i++) {
		CHECK(pieces[i].iov_len);
		CHECK(is_guest_memory(&pieces[i]));
		len += pieces[i].iov_len;
	}
	return len;
}

static void check_chain(const struct chain *chain)
{
	CHECK(chain->head < vring.size);
	CHECK_EQUAL(check_pieces(chain->readable, chain->readable_count), chain->readable_len);
	CHECK_EQUAL(check_pieces(chain->writable, chain->writable_count), chain->writable_len);
	CHECK(chain->readable_len <= UINT32_MAX);
}

static uint32_t answer_bad(void)
{
	struct bad_chain bad;

	bad_chain_read(&vring, &guest, &r->chain, &bad);
	check_chain(&r->chain);
	request_parse_header(r);
	return request_reply(r, -EIO);
}

static void check_labels(void)
{
	const uint8_t *at = r->labels;
	uint32_t left = r->labels_len;
	struct request_label label;

	for (uint32_t i = 0; i < r->label_count; i++) {
		CHECK(request_next_label(&at, &left, &label));
		CHECK(strlen(label.name) <= XATTR_NAME_MAX);
		CHECK((const uint8_t *)label.value + label.size <= r->labels + r->labels_len);
	}
}

/* Names, labels and groups must be copies. */
static void check_copies(const struct fuse_op *op)
{
	CHECK(r->payload_len <= REQUEST_PAYLOAD_MAX);
	CHECK(!r->payload[r->payload_len]);
	if (op->flags & (OP_NAME | OP_NAMES))
		CHECK(!request_check_name(r->name));
	if (op->flags & OP_NAMES)
		CHECK(!request_check_name(r->name2));
	CHECK(r->group_count <= SUPPLEMENTARY_GROUPS_MAX);
	check_labels();
}

static void check_request(void)
{
	const struct fuse_op *op = fuse_op(r->in.opcode);

	CHECK(op->name);
	CHECK(r->in.len <= r->chain.readable_len);
	check_copies(op);
	if (op->flags & OP_DATA_IN)
		CHECK_EQUAL(check_pieces(r->data_in, r->data_in_count),
			    r->in.len - sizeof(r->in) - op->arg_size);
	if (r->out_header_count)
		CHECK_EQUAL(check_pieces(r->out_header, r->out_header_count),
			    sizeof(struct fuse_out_header));
	CHECK_EQUAL(check_pieces(r->data_out, r->data_out_count), r->data_out_len);
}

/* ---- the life of one ring ---- */

/* A guest that writes while its request is served may change the data of WRITE and nothing else.
 * */
static void scribble(void)
{
	memcpy(before, memory, MEMORY_BYTES);
	memset(memory, SCRIBBLED, MEMORY_BYTES);
	check_request();
	memcpy(memory, before, MEMORY_BYTES);
}

static uint32_t answer(void)
{
	int result = header.result;
	uint32_t len;

	if (result > REQUEST_SMALL_REPLY && !(fuse_op(r->in.opcode)->flags & OP_DATA_OUT))
		result = REQUEST_SMALL_REPLY;
	if (result < -4095)
		result = -EIO;
	len = request_reply(r, result);
	CHECK(len <= r->chain.writable_len);
	CHECK(!len || len >= sizeof(struct fuse_out_header));
	return len;
}

static uint32_t serve_one(void)
{
	int err;

	check_chain(&r->chain);
	err = request_parse(r, &session, payload);
	CHECK(err <= 0 && err >= -4095);
	if (!err) {
		check_request();
		scribble();
	}
	return answer();
}

static void take_over(void)
{
	struct device_vring device = device_vring(vring.size);
	uint16_t heads[HEADS_MAX];
	uint8_t seen[HEADS_MAX] = {0};
	uint32_t count;

	CHECK(!vring_map(&vring, &device, &guest, features()));
	count = vring_attach(&vring, inflight, heads);
	CHECK(count <= vring.size);
	for (uint32_t i = 0; i < count; i++) {
		int got;

		r->chain.head = heads[i];
		CHECK(heads[i] < vring.size && !seen[heads[i]]++);
		got = vring_repop(&vring, &guest, &r->chain);
		CHECK(got == 1 || got == CHAIN_BAD);
		vring_push(&vring, heads[i], got == 1 ? serve_one() : answer_bad());
	}
	vring_publish(&vring);
}

static void run_ring(void)
{
	for (uint32_t taken = 0; taken < CHAINS_MAX; taken++) {
		int got;

		vring_prefetch(&vring, &guest);
		got = vring_pop(&vring, &guest, &r->chain);
		if (got == 0 || got == VRING_BROKEN)
			break;
		CHECK(got == 1 || got == CHAIN_BAD);
		if (header.end_after && taken % header.end_after == header.end_after - 1u) {
			take_over();
			continue;
		}
		vring_push(&vring, r->chain.head, got == 1 ? serve_one() : answer_bad());
		vring_driver_sleeps(&vring);
		if (!header.publish_every || vring.pending >= header.publish_every)
			vring_publish(&vring);
	}
	vring_publish(&vring);
	(void)!vring_enable_kicks(&vring);
	vring_disable_kicks(&vring);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input in = {data, data + size};
	struct device_vring device;
	uint16_t heads[HEADS_MAX];

	set_up();
	take_bytes(&in, &header, sizeof(header));
	device = device_vring(1u << header.size_log2 % (SIZE_LOG2_MAX + 1));
	session.flags = header.features & 4 ? FUSE_SECURITY_CTX : 0;
	session.minor = header.features & 8 ? 36 : 41;
	load_image(&in);
	memset(&vring, 0, sizeof(vring));
	memset(inflight, 0, inflight_region_bytes(HEADS_MAX));
	CHECK(!vring_map(&vring, &device, &guest, features()));
	vring_attach(&vring, inflight, heads);
	run_ring();
	return 0;
}
