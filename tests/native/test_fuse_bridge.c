/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A hostile device changes requests after the kernel has written them to a slot and before the
 * bridge looks at them. Whatever the device does: no array is overrun, no byte outside guest memory
 * is touched, and the bridge ends for one of its known reasons.
 */
#include "frontend/csrc/fuse_bridge.h"
#include "frontend/csrc/request_layout.h"

#include "check.h"

#include <fcntl.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

enum {
	PAGES = 256,
	SLOTS = 4,
	SIZE = 512,
	HIPRIO_SIZE = 4096,
	HIPRIO_RING = 0x10000, /* the rings, then the messages, then the slots at the very end */
	HIPRIO_BUFFERS = 0x40000,
	SLOTS_AT = 0x100000,
	GUARD = 4096,
	MESSAGE = 256,
	TOO_LONG = LAYOUT_REQUEST_HEAD + (PAGES + 2) * PAGE,
	NANOSECONDS = 1000 * 1000 * 1000,
};

static struct slot_layout layout;
static uint8_t *memory;
static uint64_t memory_bytes;
static int fuse_fds[2], event_fd, stop_fd;
static bool stop;

static struct driver_ring_config ring_config(uint64_t at, uint32_t size)
{
	return (struct driver_ring_config){
		.memory = {memory, memory_bytes, 0x40000000},
		.size = size,
		.kick_fd = event_fd,
		.desc = at,
		.avail = at + size * 16,
		.used = at + size * 16 + 0x2100 + size * 2,
	};
}

/* Guest memory that ends with the last byte of the last slot. */
static void start(void)
{
	int flags = SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC;

	slot_layout_init(&layout, PAGES);
	memory_bytes = SLOTS_AT + SLOTS * layout.bytes;
	memory = make_shared(memory_bytes + GUARD);
	CHECK(!mprotect(memory + memory_bytes, GUARD, PROT_NONE));
	CHECK(!socketpair(AF_UNIX, flags, 0, fuse_fds));
	event_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	stop_fd = eventfd(1, EFD_NONBLOCK | EFD_CLOEXEC);
	CHECK(event_fd >= 0 && stop_fd >= 0);
}

static struct hiprio *start_hiprio(void)
{
	struct hiprio_config config = {
		.ring = ring_config(HIPRIO_RING, HIPRIO_SIZE),
		.buffers = HIPRIO_BUFFERS,
		.call_fd = event_fd,
		.stop_fd = stop_fd,
	};
	struct hiprio *h;

	memset(memory, 0, SLOTS_AT);
	CHECK(!hiprio_create(&config, &h));
	return h;
}

static uint8_t *slot_at(uint32_t slot)
{
	return memory + SLOTS_AT + slot * layout.bytes;
}

static int cut(uint32_t opcode, uint32_t len, uint32_t *segments)
{
	struct fuse_in_header in = {.len = len, .opcode = opcode};
	struct request_chain chain;
	int err = request_chain_build(&layout, slot_at(0), &in, &chain);

	*segments = chain.readable + chain.writable;
	CHECK(*segments <= LAYOUT_SEGMENTS_MAX);
	return err;
}

static void test_a_chain_has_room_for_the_longest_request_and_no_more(void)
{
	uint32_t segments;

	CHECK_EQUAL(cut(FUSE_WRITE, LAYOUT_REQUEST_HEAD + PAGES * PAGE, &segments), 0);
	CHECK_EQUAL(segments, LAYOUT_SEGMENTS_MAX);
	CHECK_EQUAL(cut(FUSE_WRITE, TOO_LONG, &segments), -E2BIG);
	CHECK_EQUAL(cut(FUSE_WRITE, UINT32_MAX, &segments), -E2BIG);
	/* The request fits, but its reply does not. */
	CHECK_EQUAL(cut(FUSE_IOCTL, LAYOUT_REQUEST_HEAD + PAGES * PAGE, &segments), -E2BIG);
}

static void test_a_request_shorter_than_its_header_is_none(void)
{
	uint32_t segments;

	for (uint32_t len = 0; len < sizeof(struct fuse_in_header); len++)
		CHECK_EQUAL(cut(FUSE_GETATTR, len, &segments), -E2BIG);
}

static uint16_t hiprio_offered(void)
{
	uint16_t *avail = (void *)(memory + ring_config(HIPRIO_RING, HIPRIO_SIZE).avail);

	return avail[1];
}

static void test_a_batch_ends_where_its_request_does(void)
{
	struct hiprio *h = start_hiprio();
	uint8_t *args =
		memory + memory_bytes - 40; /* a batch of two FORGETs, after which memory ends */
	struct fuse_batch_forget_in *batch = (void *)args;
	struct fuse_in_header in = {.len = 40 + 40, .opcode = FUSE_BATCH_FORGET};

	batch->count = UINT32_MAX;
	CHECK_EQUAL(hiprio_send(h, &in, args), 0);
	CHECK_EQUAL(hiprio_offered(), 2);
	batch->count = 1;
	CHECK_EQUAL(hiprio_send(h, &in, args), 0);
	CHECK_EQUAL(hiprio_offered(), 3);
	for (in.len = 40; in.len < 40 + 24; in.len++)
		CHECK_EQUAL(hiprio_send(h, &in, args), 0);
	CHECK_EQUAL(hiprio_offered(), 3);
	hiprio_destroy(h);
}

static const uint32_t OPCODES[] = {
	FUSE_WRITE,  FUSE_READ,	  FUSE_GETXATTR,     FUSE_IOCTL,     FUSE_INIT,
	FUSE_LOOKUP, FUSE_FORGET, FUSE_BATCH_FORGET, FUSE_INTERRUPT, UINT32_MAX,
};

static uint32_t any_opcode(uint64_t *random)
{
	return OPCODES[random_below(random, sizeof(OPCODES) / sizeof(*OPCODES))];
}

static void *scribble(void *arg)
{
	uint64_t random = 0x1234567;

	while (!__atomic_load_n(&stop, __ATOMIC_RELAXED)) {
		uint8_t *slot = slot_at(random_below(&random, SLOTS)) + layout.request;
		volatile struct fuse_in_header *in = (void *)slot;
		volatile uint32_t *args = (void *)(slot + sizeof(*in));

		switch (random_below(&random, 8)) {
		case 0:
			in->len = random_below(&random, 2) ? TOO_LONG : random_below(&random, 40);
			break;
		case 1 ... 3:
			in->opcode = any_opcode(&random);
			break;
		default: /* a count or a size */
			args[random_below(&random, 8)] =
				random_below(&random, 2) ? next_random(&random) : PAGES * PAGE;
		}
	}
	return NULL;
}

static void send_requests(uint64_t *random)
{
	for (uint32_t i = 0; i < 2 * SLOTS; i++) {
		uint32_t words[MESSAGE / 4] = {0};
		struct fuse_in_header *in = (void *)words;

		in->len = 40 + random_below(random, MESSAGE - 40 + 1);
		in->opcode = any_opcode(random);
		in->unique = i + 2;
		words[10] = random_below(random, 4);
		CHECK_EQUAL(send(fuse_fds[1], words, in->len, 0), in->len);
	}
}

/* Discard the messages in both directions. */
static void drain(void)
{
	char any[MESSAGE];

	for (int i = 0; i < 2; i++)
		while (recv(fuse_fds[i], any, sizeof(any), 0) >= 0)
			;
}

/* Serve the messages that are there; then stop_fd ends the bridge. */
static int run_once(uint64_t *random, uint64_t *requests)
{
	struct hiprio *h = start_hiprio();
	struct bridge_config config = {
		.ring = ring_config(0, SIZE),
		.indirect = true,
		.pages = PAGES,
		.slots = SLOTS,
		.slots_offset = SLOTS_AT,
		.fuse_fd = fuse_fds[0],
		.call_fd = event_fd,
		.stop_fd = stop_fd,
		.ready_fd = event_fd,
		.hiprio = h,
	};
	struct bridge b;
	int end;

	CHECK(!bridge_init(&b, &config));
	send_requests(random);
	end = bridge_run(&b);
	CHECK(end == BRIDGE_STOPPED || (end == BRIDGE_BROKEN && b.reason));
	*requests += b.requests;
	bridge_deinit(&b);
	hiprio_destroy(h);
	drain();
	return end;
}

static void test_slots_change_while_the_bridge_runs(void)
{
	uint64_t random = 0x7654321, requests = 0, ends[BRIDGE_FAILED + 1] = {0};
	uint64_t until = test_clock_ns() + NANOSECONDS;
	pthread_t thread;

	CHECK(!pthread_create(&thread, NULL, scribble, NULL));
	while (test_clock_ns() < until)
		ends[run_once(&random, &requests)]++;
	__atomic_store_n(&stop, true, __ATOMIC_RELAXED);
	CHECK(!pthread_join(thread, NULL));
	printf("%" PRIu64 " stopped, %" PRIu64 " broken, %" PRIu64 " requests\n",
	       ends[BRIDGE_STOPPED], ends[BRIDGE_BROKEN], requests);
	CHECK(ends[BRIDGE_STOPPED] && requests);
}

int main(void)
{
	start();
	RUN(test_a_chain_has_room_for_the_longest_request_and_no_more);
	RUN(test_a_request_shorter_than_its_header_is_none);
	RUN(test_a_batch_ends_where_its_request_does);
	RUN(test_slots_change_while_the_bridge_runs);
	return 0;
}
