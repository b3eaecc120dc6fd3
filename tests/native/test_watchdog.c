/* SPDX-License-Identifier: Apache-2.0 */
/* A call that waits is interrupted, and no other call is. */
#include "check.h"

#include "worker/csrc/host/watchdog.h"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/wait.h>

enum {
	ROUNDS = 200 * 1000,
	QUIET_MS = 1500, /* long enough that the watchdog sleeps */
	PAUSE_MS = 100,	 /* some periods of the watchdog */
	ALARM_SECONDS = 30,
};

static struct watchdog *dog;

/* A process that has `path` under a write lease and never gives the lease back. */
static pid_t lease(const char *path)
{
	int ready[2];
	pid_t pid;
	char byte;

	CHECK(!pipe(ready));
	pid = fork();
	CHECK(pid >= 0);
	if (!pid) {
		int fd = open(path, O_RDWR);
		sigset_t set;

		sigfillset(&set);
		sigprocmask(SIG_BLOCK, &set, NULL);
		CHECK(fd >= 0 && !fcntl(fd, F_SETLEASE, F_WRLCK));
		CHECK_EQUAL(write(ready[1], "", 1), 1);
		for (;;)
			pause();
	}
	CHECK_EQUAL(read(ready[0], &byte, 1), 1);
	close(ready[0]);
	close(ready[1]);
	return pid;
}

static void end(pid_t pid)
{
	CHECK(!kill(pid, SIGKILL));
	CHECK_EQUAL(waitpid(pid, NULL, 0), pid);
}

static int open_watched(const char *path)
{
	watchdog_begin(dog);
	return watchdog_end(dog, open(path, O_WRONLY | O_CLOEXEC));
}

static void test_a_call_that_waits_for_a_lease_is_interrupted(void)
{
	int fd = open("leased", O_CREAT | O_RDWR, 0600);
	pid_t holder;

	CHECK(fd >= 0);
	close(fd);
	holder = lease("leased");
	for (int i = 0; i < 3; i++)
		CHECK_EQUAL(open_watched("leased"), -EINTR);
	end(holder);
	fd = open_watched("leased");
	CHECK(fd >= 0);
	close(fd);
}

static void test_a_call_after_a_long_pause_is_watched(void)
{
	pid_t holder;

	CHECK_EQUAL(poll(NULL, 0, QUIET_MS), 0);
	holder = lease("leased");
	CHECK_EQUAL(open_watched("leased"), -EINTR);
	end(holder);
}

static void test_nothing_else_is_interrupted(void)
{
	for (int i = 0; i < ROUNDS; i++) {
		watchdog_begin(dog);
		CHECK_EQUAL(watchdog_end(dog, 0), 0);
	}
	CHECK_EQUAL(poll(NULL, 0, PAUSE_MS), 0);
	/* Interrupted calls, each followed by a call that must not be interrupted. */
	for (int i = 0; i < 5; i++) {
		watchdog_begin(dog);
		CHECK_EQUAL(watchdog_end(dog, poll(NULL, 0, -1)), -EINTR);
		CHECK_EQUAL(poll(NULL, 0, PAUSE_MS), 0);
	}
}

/* As in an uninterruptible sleep: pending signals of one number become a single signal. */
static void test_a_call_that_no_signal_ends_is_waited_for(void)
{
	sigset_t all, old;

	sigfillset(&all);
	watchdog_begin(dog);
	CHECK(!pthread_sigmask(SIG_BLOCK, &all, &old));
	CHECK_EQUAL(poll(NULL, 0, PAUSE_MS), 0);
	CHECK(!pthread_sigmask(SIG_SETMASK, &old, NULL));
	alarm(ALARM_SECONDS);
	CHECK_EQUAL(watchdog_end(dog, 0), 0);
	alarm(0);
	CHECK_EQUAL(poll(NULL, 0, PAUSE_MS), 0);
}

static void test_a_signal_from_elsewhere_does_not_count(void)
{
	alarm(ALARM_SECONDS);
	CHECK(!kill(getpid(), SIGURG));
	watchdog_begin(dog);
	CHECK_EQUAL(watchdog_end(dog, 0), 0);
	/* The watchdog goes on. */
	watchdog_begin(dog);
	CHECK_EQUAL(watchdog_end(dog, poll(NULL, 0, -1)), -EINTR);
	alarm(0);
}

static void test_results_and_errors_are_returned(void)
{
	watchdog_begin(dog);
	CHECK_EQUAL(watchdog_end(dog, open("nothing", O_RDONLY)), -ENOENT);
	watchdog_begin(dog);
	CHECK_EQUAL(watchdog_end(dog, 7), 7);
	watchdog_begin(NULL);
	CHECK_EQUAL(watchdog_end(NULL, open("nothing", O_RDONLY)), -ENOENT);
}

int main(void)
{
	dog = watchdog_create();
	CHECK(dog);
	RUN(test_results_and_errors_are_returned);
	RUN(test_a_call_that_waits_for_a_lease_is_interrupted);
	RUN(test_a_call_after_a_long_pause_is_watched);
	RUN(test_a_call_that_no_signal_ends_is_waited_for);
	RUN(test_nothing_else_is_interrupted);
	RUN(test_a_signal_from_elsewhere_does_not_count);
	return 0;
}
