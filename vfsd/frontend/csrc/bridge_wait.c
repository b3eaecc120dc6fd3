/* SPDX-License-Identifier: Apache-2.0 */
/*
 * THEORY
 *
 * Waiting. When there is nothing to do, a bridge asks for calls, looks at the ring once more, and
 * sleeps until there is a request, a call, or the end. While the device has requests, the bridge
 * first looks at the used index for `spin_us`. With BRIDGE_SPIN_AUTO it looks for SPIN_WORTH_NS,
 * unless replies take longer than that; KVM by default waits as long for an event before it lets a
 * vCPU halt (halt_poll_ns). Between two looks the bridge yields the CPU, since the device may need
 * this CPU to answer. It also looks for requests, or these would wait for the reply to another
 * request. All channels hand out the same requests, so poll(2) would wake every idle bridge for
 * each request (4 queues on 2 CPUs then do less than half of what 1 queue does); EPOLLEXCLUSIVE
 * wakes one bridge. The call eventfd is edge-triggered: it need not be emptied.
 */
#include "frontend/csrc/bridge_wait.h"

#include "transport/csrc/clock.h"
#include "transport/csrc/cpu_relax.h"

#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <sys/epoll.h>
#include <unistd.h>

enum {
	SPIN_WORTH_NS = 200 * 1000,
	REPLY_CAP_NS = 1000 * 1000,
	LOOKS_PER_YIELD = 32,
};

/* The events that a bridge waits for. */
enum {
	WAIT_REQUEST,
	WAIT_CALL,
	WAIT_STOP,
	WAIT_COUNT,
};

static int watch(const struct bridge *b, int fd, uint32_t what, uint32_t events)
{
	struct epoll_event event = {.events = events, .data.u32 = what};

	return epoll_ctl(b->epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0 ? -errno : 0;
}

int bridge_wait_init(struct bridge *b)
{
	int err;

	b->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	if (b->epoll_fd < 0)
		return -errno;
	err = watch(b, b->config.fuse_fd, WAIT_REQUEST, EPOLLIN | EPOLLEXCLUSIVE);
	if (!err)
		err = watch(b, b->config.call_fd, WAIT_CALL, EPOLLIN | EPOLLET);
	return err ? err : watch(b, b->config.stop_fd, WAIT_STOP, EPOLLIN);
}

void bridge_wait_deinit(struct bridge *b)
{
	if (b->epoll_fd >= 0)
		close(b->epoll_fd);
	b->epoll_fd = -1;
}

static int cannot_wait(struct bridge *b)
{
	b->error = errno;
	b->reason = "cannot wait";
	return BRIDGE_FAILED;
}

/* Wait until one of the waitables has an event, or for `timeout` ms (-1: without end). Return: 0 or
 * enum bridge_end. */
static int wait_for_all(struct bridge *b, int timeout, bool *more)
{
	struct epoll_event events[WAIT_COUNT];
	int count = epoll_wait(b->epoll_fd, events, WAIT_COUNT, timeout);

	if (count < 0)
		return errno == EINTR ? 0 : cannot_wait(b);
	for (int i = 0; i < count; i++) {
		if (events[i].data.u32 == WAIT_STOP)
			return BRIDGE_STOPPED;
		if (events[i].data.u32 == WAIT_REQUEST)
			*more = true;
	}
	return 0;
}

static uint64_t spin_budget(const struct bridge *b)
{
	if (!b->ring.outstanding)
		return 0;
	if (b->config.spin_us != BRIDGE_SPIN_AUTO)
		return (uint64_t)b->config.spin_us * 1000;
	return b->reply_ns < SPIN_WORTH_NS ? SPIN_WORTH_NS : 0;
}

/* Look for a reply and, if there is room for a request, for requests (`*more`). Return: 0 or enum
 * bridge_end. */
static int spin(struct bridge *b, uint64_t start, bool room, bool *more)
{
	uint64_t budget = spin_budget(b);
	int end = 0;

	while (budget && clock_ns() - start < budget) {
		for (int i = 0; i < LOOKS_PER_YIELD; i++) {
			if (driver_ring_is_used(&b->ring))
				return 0;
			cpu_relax();
		}
		sched_yield();
		if (room)
			end = wait_for_all(b, 0, more);
		if (end || (room && *more))
			return end;
	}
	return 0;
}

/* Record a wait that began at `start`, if a reply ended it or it was longer than SPIN_WORTH_NS. */
static void note_wait(struct bridge *b, uint64_t start)
{
	uint64_t waited = clock_ns() - start;

	if (!b->ring.outstanding || (waited < SPIN_WORTH_NS && !driver_ring_is_used(&b->ring)))
		return;
	if (waited > REPLY_CAP_NS)
		waited = REPLY_CAP_NS;
	b->reply_ns += (waited >> 3) - (b->reply_ns >> 3);
}

/* Sleep without looking for requests, since there is no room for a request. */
static int sleep_for_replies(struct bridge *b)
{
	struct pollfd fds[WAIT_COUNT] = {
		[WAIT_REQUEST] = {b->config.fuse_fd, 0, 0}, /* POLLERR: the mount is gone */
		[WAIT_CALL] = {b->config.call_fd, POLLIN, 0},
		[WAIT_STOP] = {b->config.stop_fd, POLLIN, 0},
	};
	uint64_t count;

	(void)!read(b->config.call_fd, &count, sizeof(count));
	if (driver_ring_enable_calls(&b->ring))
		return 0;
	if (poll(fds, WAIT_COUNT, -1) < 0)
		return errno == EINTR ? 0 : cannot_wait(b);
	if (fds[WAIT_STOP].revents)
		return BRIDGE_STOPPED;
	return fds[WAIT_REQUEST].revents ? BRIDGE_UNMOUNTED : 0;
}

static int sleep_until_called(struct bridge *b, bool room, bool *more)
{
	int end = 0;

	if (!driver_ring_enable_calls(&b->ring))
		end = room ? wait_for_all(b, -1, more) : sleep_for_replies(b);
	driver_ring_disable_calls(&b->ring);
	return end;
}

int bridge_wait(struct bridge *b, bool room, bool *more)
{
	uint64_t start;
	int end;

	if (*more && room)
		return 0;
	start = clock_ns();
	end = spin(b, start, room, more);
	if (!end && !(*more && room) && !driver_ring_is_used(&b->ring))
		end = sleep_until_called(b, room, more);
	note_wait(b, start);
	return end;
}
