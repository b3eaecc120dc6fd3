/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A worker may die at any store. Here a batch is completed by hand, store by store as inflight.h
 * describes it, stopped after each store, and taken over; then the real code is stopped after each
 * instruction that changes what another process can see.
 */
#include "driver.h"

#include <pthread.h>
#include <signal.h>
#include <sys/ptrace.h>
#include <sys/user.h>
#include <sys/wait.h>

enum {
	SIZE = 8,
	BATCH = 3,
	STORES = 2 * BATCH + 1 + BATCH + 1,
	OTHER = 6, /* a head that is in flight and not in the batch */
};

static uint32_t count_of(const struct inflight_region *r, uint32_t size)
{
	uint32_t count = 0;

	for (uint32_t i = 0; i < size; i++)
		count += r->desc[i].inflight == 1;
	return count;
}

static struct inflight_region *new_region(uint16_t used_idx)
{
	struct inflight_region *r = calloc(1, inflight_region_bytes(SIZE));

	CHECK(r);
	inflight_settle(r, SIZE, used_idx);
	CHECK_EQUAL(count_of(r, SIZE), 0);
	CHECK(r->version == 1 && r->desc_num == SIZE && r->used_idx == used_idx);
	return r;
}

/* Do the first `stores` stores of the completion of heads 4, 2, 5. Return: used.idx in the ring. */
static uint16_t complete_prefix(struct inflight_region *r, uint16_t used_idx, int stores)
{
	static const uint16_t heads[BATCH] = {4, 2, 5};

	for (int i = 0; i < BATCH; i++) {
		if (stores-- == 0)
			return used_idx;
		r->desc[heads[i]].next = r->last_batch_head;
		if (stores-- == 0)
			return used_idx;
		r->last_batch_head = heads[i];
	}
	if (stores-- == 0)
		return used_idx;
	used_idx += BATCH;
	for (int i = BATCH - 1; i >= 0; i--) {
		if (stores-- == 0)
			return used_idx;
		r->desc[heads[i]].inflight = 0;
	}
	if (stores-- > 0)
		r->used_idx = used_idx;
	return used_idx;
}

static void check_prefix(uint16_t used_before, int stores)
{
	struct inflight_region *r = new_region(used_before);
	const uint16_t arrival[] = {OTHER, 5, 4, 2};
	uint16_t heads[SIZE], used_after;
	bool published;
	uint64_t highest = 0;

	r->last_batch_head = 7; /* the last head of the batch before */
	for (uint64_t i = 0; i < 4; i++) {
		r->desc[arrival[i]].inflight = 1;
		r->desc[arrival[i]].counter = 100 + i;
	}
	used_after = complete_prefix(r, used_before, stores);
	published = used_after != used_before;
	/* Take over twice: the worker that takes over may die while it does so. */
	for (int i = 0; i < 2; i++) {
		inflight_settle(r, SIZE, used_after);
		CHECK_EQUAL(count_of(r, SIZE), published ? 1 : 4);
		CHECK_EQUAL(r->used_idx, used_after);
	}
	CHECK_EQUAL(inflight_heads(r, SIZE, heads, &highest), published ? 1 : 4);
	CHECK_EQUAL(highest, published ? 100 : 103);
	for (int i = 0; i < (published ? 1 : 4); i++)
		CHECK_EQUAL(heads[i], arrival[i]);
	free(r);
}

static void test_death_after_each_store(void)
{
	for (int stores = 0; stores <= STORES; stores++) {
		check_prefix(0, stores);
		check_prefix(0xfffe, stores); /* used.idx wraps in this batch */
	}
}

static void test_a_ring_of_another_size_starts_again(void)
{
	struct inflight_region *r = calloc(1, inflight_region_bytes(2 * SIZE));

	CHECK(r);
	inflight_settle(r, SIZE, 9);
	r->desc[1].inflight = 1;
	inflight_settle(r, SIZE, 9);
	CHECK_EQUAL(count_of(r, SIZE), 1);
	inflight_settle(r, 2 * SIZE, 9);
	CHECK(r->desc_num == 2 * SIZE && !r->desc[1].inflight);
	free(r);
}

/* The record is the front-end's and may hold any bytes. */
static void test_any_record_is_survived(void)
{
	uint64_t random = 11, highest;
	uint16_t heads[SIZE];

	for (int round = 0; round < 20000; round++) {
		struct inflight_region *r = malloc(inflight_region_bytes(SIZE));
		uint32_t *words = (void *)r;

		CHECK(r);
		for (uint64_t i = 0; i < inflight_region_bytes(SIZE) / 4; i++)
			words[i] = next_random(&random) & (next_random(&random) | 0x00030001);
		r->version = 1;
		r->desc_num = SIZE;
		inflight_settle(r, SIZE, (uint16_t)next_random(&random));
		CHECK(inflight_heads(r, SIZE, heads, &highest) <= SIZE);
		free(r);
	}
}

/* ---- the real code, killed by a tracer after every single instruction of a completion ---- */

#ifdef __x86_64__
static struct driver d;

static void child(void)
{
	CHECK(!ptrace(PTRACE_TRACEME, 0, NULL, NULL));
	raise(SIGSTOP);
	vring_push(&d.vring, 4, 44);
	vring_push(&d.vring, 2, 22);
	vring_publish(&d.vring);
	raise(SIGSTOP);
	_exit(0);
}

static void step(pid_t pid, int *status)
{
	CHECK(!ptrace(PTRACE_SINGLESTEP, pid, NULL, NULL));
	CHECK(waitpid(pid, status, 0) == pid);
}

/* Each head that was popped is either completed, with its own length, or in flight. */
static void take_over(uint16_t used_before)
{
	uint16_t heads[SIZE];
	bool done[SIZE] = {false}, flying[SIZE] = {false};
	uint32_t id, len, count = driver_attach(&d, 0, heads);

	d.last_used = used_before;
	while (driver_take(&d, &id, &len)) {
		CHECK(id == 4 || id == 2);
		CHECK(len == id * 11 && !done[id]);
		done[id] = true;
	}
	for (uint32_t i = 0; i < count; i++) {
		CHECK(!flying[heads[i]]);
		flying[heads[i]] = true;
	}
	for (uint32_t head = 0; head < SIZE; head++) {
		bool taken = head == 4 || head == 2 || head == 1;

		CHECK_EQUAL(done[head] + flying[head], taken);
	}
	CHECK_EQUAL(vring_available(&d.vring), 1); /* head 3 has not been popped yet */
}

static void offer_four(void)
{
	static const uint16_t heads[] = {1, 4, 2, 3};

	for (int i = 0; i < 4; i++) {
		driver_set(&d, heads[i], DRIVER_DATA, 8, 0, 0);
		driver_offer(&d, heads[i]);
		if (i < 3)
			CHECK_EQUAL(driver_pop(&d), 1);
	}
}

/* A child is stepped through the completion. Whenever the shared state has changed, the state is
 * saved, taken over as if the child had died there, and put back. */
static void test_death_after_each_instruction(void)
{
	uint64_t bytes = inflight_region_bytes(SIZE);
	struct inflight_region *record = make_shared(bytes);
	uint8_t saved[4096], last[4096] = {0};
	uint8_t *ring;
	uint32_t states = 0;
	pid_t pid;
	int status;

	driver_start(&d, SIZE, 0);
	memcpy(record, d.inflight, bytes);
	free(d.inflight);
	d.inflight = d.vring.inflight = record;
	ring = d.ram + DRIVER_USED;
	offer_four();
	pid = fork();
	CHECK(pid >= 0);
	if (!pid)
		child();
	CHECK(waitpid(pid, &status, 0) == pid && WIFSTOPPED(status));
	for (;;) {
		step(pid, &status);
		CHECK(WIFSTOPPED(status));
		if (WSTOPSIG(status) == SIGSTOP)
			break;
		memcpy(saved, record, bytes);
		memcpy(saved + bytes, ring, 4 + SIZE * 8);
		if (!memcmp(saved, last, bytes + 4 + SIZE * 8))
			continue;
		memcpy(last, saved, sizeof(last));
		states++;
		take_over(0);
		memcpy(record, saved, bytes);
		memcpy(ring, saved + bytes, 4 + SIZE * 8);
	}
	CHECK(states >= 9); /* two entries, next and last for each, used.idx, two flags, used_idx */
	kill(pid, SIGKILL);
	CHECK(waitpid(pid, &status, 0) == pid);
	d.inflight = NULL;
	munmap(record, bytes);
	driver_end(&d);
}
#endif

/* ---- a record that the front-end changes while it is read ---- */

enum {
	MANY = 32768,
};

static struct inflight_region *shared_record;
static bool stop;

static void *scribble(void *arg)
{
	while (!__atomic_load_n(&stop, __ATOMIC_RELAXED))
		for (uint32_t i = 0; i < MANY; i++) {
			uint8_t *flag = &shared_record->desc[i].inflight;

			__atomic_store_n(flag, !*flag, __ATOMIC_RELAXED);
		}
	return NULL;
}

/* Every head that attach reports as in flight must be a head that attach has written to the array.
 * */
static void test_record_that_changes_while_it_is_read(void)
{
	static uint16_t heads[MANY];
	static struct driver big;
	pthread_t thread;

	driver_start(&big, MANY / 4, 0);
	free(big.inflight);
	shared_record = big.inflight = calloc(1, inflight_region_bytes(MANY));
	CHECK(shared_record);
	shared_record->version = 1;
	shared_record->desc_num = MANY / 4;
	CHECK(!pthread_create(&thread, NULL, scribble, NULL));
	for (int round = 0; round < 200; round++) {
		uint32_t count;

		memset(heads, 0xff, sizeof(heads));
		count = driver_attach(&big, 0, heads);
		CHECK(count <= MANY / 4);
		for (uint32_t i = 0; i < count; i++)
			CHECK(heads[i] < MANY / 4);
	}
	__atomic_store_n(&stop, true, __ATOMIC_RELAXED);
	pthread_join(thread, NULL);
	driver_end(&big);
}

int main(void)
{
	RUN(test_death_after_each_store);
	RUN(test_a_ring_of_another_size_starts_again);
	RUN(test_any_record_is_survived);
#ifdef __x86_64__
	RUN(test_death_after_each_instruction);
#endif
	RUN(test_record_that_changes_while_it_is_read);
	return 0;
}
