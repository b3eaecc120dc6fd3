/* SPDX-License-Identifier: Apache-2.0 */
#include "check.h"

#include "worker/csrc/loop/offload.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>

enum {
	THREADS = 4,
	REQUESTS = 64,
	ROUNDS = 3000,
	SECONDS = 5,
};

/* Threads live as long as the process, so this object is never freed. */
static struct worker_row row; /* the offload code lowers the count of fds in this row */

static struct offload *o;
static struct request *requests;

static bool readable(int fd, int milliseconds)
{
	struct pollfd p = {.fd = fd, .events = POLLIN};

	return poll(&p, 1, milliseconds) == 1;
}

/* Wait for `count` completions, asleep on the eventfd or polling. */
static void complete(uint32_t count, bool polling)
{
	while (count) {
		struct request *r;

		if (!polling)
			CHECK(readable(offload_fd(o), SECONDS * 1000));
		for (r = offload_completed(o); r; r = r->next) {
			CHECK_EQUAL(r->result, (int)(r - requests) + 1);
			count--;
		}
	}
	CHECK_EQUAL(offload_outstanding(o), 0);
	CHECK(!offload_completed(o));
}

static int run_quick(struct request *r)
{
	return (int)(r - requests) + 1;
}

static void submit(uint32_t at, int (*run)(struct request *))
{
	requests[at].run = run;
	CHECK_EQUAL(offload_submit(o, &requests[at]), OUTCOME_PENDING);
}

static void test_all_come_back(void)
{
	for (int polling = 0; polling < 2; polling++)
		for (uint32_t round = 0; round < ROUNDS / 10; round++) {
			for (uint32_t i = 0; i < REQUESTS; i++)
				submit(i, run_quick);
			CHECK_EQUAL(offload_outstanding(o), REQUESTS);
			complete(REQUESTS, polling);
		}
}

/* When there is no completion to fetch the eventfd must not be readable: otherwise the loop would
 * never sleep again. */
static void test_nothing_left_means_nothing_readable(void)
{
	for (uint32_t round = 0; round < ROUNDS; round++) {
		submit(0, run_quick);
		complete(1, true);
		CHECK(!readable(offload_fd(o), 0));
	}
}

static int gate;

static int run_wait(struct request *r)
{
	CHECK(readable(gate, SECONDS * 1000));
	return run_quick(r);
}

static int run_open_gate(struct request *r)
{
	CHECK(write(gate, &(uint64_t){1}, 8) == 8);
	return run_quick(r);
}

/* A slow request never delays another request while the pool may start more threads. */
static void test_a_slow_one_delays_nobody(void)
{
	gate = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	CHECK(gate >= 0);
	submit(0, run_quick); /* now there is one idle thread */
	complete(1, false);
	usleep(20000);
	submit(0, run_wait);
	submit(1, run_wait);
	submit(2, run_open_gate);
	complete(3, false);
	close(gate);
}

static uint32_t wrongly_run;

static int run_never(struct request *r)
{
	__atomic_add_fetch(&wrongly_run, 1, __ATOMIC_SEQ_CST);
	return run_quick(r);
}

/* A request that was abandoned while it waited for a thread comes back without having run. */
static void test_the_abandoned_do_not_begin(void)
{
	uint32_t count = 0;

	gate = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	CHECK(gate >= 0);
	for (uint32_t i = 0; i < THREADS; i++)
		submit(i, run_wait);
	requests[THREADS].fd = dup(2);
	requests[THREADS].holds_fd = true;
	submit(THREADS, run_never);
	offload_abandon(o, &requests[THREADS]);
	CHECK(write(gate, &(uint64_t){1}, 8) == 8);
	while (count <= THREADS) {
		CHECK(readable(offload_fd(o), SECONDS * 1000));
		for (struct request *r = offload_completed(o); r; r = r->next, count++)
			CHECK_EQUAL(r->result, r->abandoned ? -EIO : (int)(r - requests) + 1);
	}
	CHECK_EQUAL(wrongly_run, 0);
	CHECK(fcntl(requests[THREADS].fd, F_GETFD) < 0);
	requests[THREADS].abandoned = requests[THREADS].holds_fd = false;
	close(gate);
}

static void test_closing(void)
{
	int32_t fds[REQUESTS];
	uint64_t deadline = test_clock_ns() + UINT64_C(1000000000) * SECONDS;

	for (uint32_t i = 0; i < REQUESTS; i++)
		fds[i] = dup(2);
	offload_close(o, fds, REQUESTS);
	for (uint32_t i = 0; i < REQUESTS; i++)
		while (fcntl(fds[i], F_GETFD) >= 0)
			CHECK(test_clock_ns() < deadline);
}

static void test_without_threads(void)
{
	struct offload *none = offload_create(0, &row);
	int32_t fd = dup(2);

	CHECK(none);
	requests[3].run = run_quick;
	CHECK_EQUAL(offload_submit(none, &requests[3]), 4);
	CHECK_EQUAL(offload_outstanding(none), 0);
	offload_close(none, &fd, 1);
	CHECK(fcntl(fd, F_GETFD) < 0);
	close(offload_fd(none));
	free(none);
}

int main(void)
{
	o = offload_create(THREADS, &row);
	requests = calloc(REQUESTS, sizeof(*requests));
	CHECK(o && requests);
	RUN(test_a_slow_one_delays_nobody);
	RUN(test_nothing_left_means_nothing_readable);
	RUN(test_all_come_back);
	RUN(test_the_abandoned_do_not_begin);
	RUN(test_closing);
	RUN(test_without_threads);
	free(requests);
	return 0;
}
