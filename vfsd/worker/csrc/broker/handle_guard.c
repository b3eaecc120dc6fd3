/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The guard has a key, and creates a broker and a deputy. Both are forks of the guard and so
 * inherit the key and the sockets: nothing is lost when one of these three processes dies. Guard
 * and deputy read no input of other processes at all.
 *
 * Deaths. The guard replaces a broker or a deputy that dies. Each guard has a pipe, its lifeline,
 * of which the guard alone holds the writing end: when the guard is gone, its broker ends, and its
 * deputy becomes the guard. A guard that ends by itself says so to its deputy by a byte.
 *
 * A process that is killed (SIGKILL, SIGTERM) is replaced, however often that happens. A broker
 * that ends by a fault of its own or by a forbidden system call may have been attacked: after
 * FAULTS_MAX such ends no guard starts another broker. An inode that is held only by a handle is
 * then stale until the guest looks it up again; inodes that are held by fds are not affected.
 */
#include "worker/csrc/broker/handle_guard.h"

#include "transport/csrc/clock.h"
#include "worker/csrc/broker/handle_broker.h"
#include "worker/csrc/sandbox/seccomp.h"

#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum {
	FAULTS_MAX = 8,
	PAUSE_MS = 10, /* before the next broker */
	FAILED = 1,
};

/* The broker's filter, compiled. */
struct filter {
	int bytes; /* 0: none */
	uint8_t program[SECCOMP_PROGRAM_MAX + 1];
};

/* What a broker or a deputy inherits. */
struct watch {
	const struct handle_guard *guard;
	struct filter filter;
	struct siphash_key key;
	uint32_t *faults; /* of brokers; in memory that all guards share */
	int lifeline[2];  /* of the present guard */
};

static void be_broker(struct watch *w)
{
	struct handle_broker broker;

	if (w->filter.bytes &&
	    syscall_filter_install(w->filter.program, (uint32_t)w->filter.bytes, -1))
		_exit(FAILED);
	if (handle_broker_init(&broker, &w->key, w->guard->root_fd))
		_exit(FAILED);
	handle_broker_serve(&broker, w->guard->sockets, w->guard->socket_count, w->lifeline[0]);
	_exit(0);
}

/* Wait until the guard is gone. Exits if the guard has ended by itself. */
static void await_end_of_guard(struct watch *w)
{
	uint8_t byte;
	ssize_t len;

	do
		len = read(w->lifeline[0], &byte, sizeof(byte));
	while (len < 0);
	if (len)
		_exit(0);
	close(w->lifeline[0]);
}

static void end(struct watch *w, int status)
{
	(void)!write(w->lifeline[1], "", 1);
	_exit(status);
}

static void pause_before_next(void)
{
	struct timespec pause = {.tv_nsec = PAUSE_MS * NS_PER_MS};

	nanosleep(&pause, NULL);
}

/* Return: 0 or -errno. */
static int confine(const struct handle_guard *guard, struct filter *ret)
{
	int32_t row;

	ret->bytes = 0;
	if (guard->action < 0)
		return 0;
	ret->bytes = seccomp_compile_broker((enum seccomp_action)guard->action, ret->program, &row);
	if (ret->bytes < 0)
		return ret->bytes;
	return seccomp_confine_guard((enum seccomp_action)guard->action, &row);
}

/* Fork, without a copy of the writing end of the lifeline in the child. Return: as fork(). */
static pid_t start(struct watch *w)
{
	pid_t pid = (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);

	if (pid == 0)
		close(w->lifeline[1]);
	return pid;
}

/* A broker has ended. */
static void judge(struct watch *w, int status)
{
	if (WIFEXITED(status))
		end(w, WEXITSTATUS(status));
	*w->faults += WTERMSIG(status) != SIGKILL && WTERMSIG(status) != SIGTERM;
	if (*w->faults >= FAULTS_MAX)
		end(w, FAILED);
}

/* Be the guard. Returns in a deputy whose guard is gone. */
static void stand_guard(struct watch *w)
{
	pid_t broker = -1, deputy = -1;

	if (pipe2(w->lifeline, O_CLOEXEC))
		_exit(FAILED);
	for (;;) {
		int status = 0;
		pid_t ended;

		if (broker < 0)
			broker = start(w);
		if (broker == 0)
			be_broker(w);
		if (deputy < 0)
			deputy = start(w);
		if (deputy == 0) {
			await_end_of_guard(w);
			return;
		}
		ended = broker > 0 && deputy > 0 ? waitpid(-1, &status, 0) : -1;
		if (ended == deputy)
			deputy = -1;
		if (ended > 0 && ended == broker) {
			broker = -1;
			judge(w, status);
		}
		pause_before_next();
	}
}

/* The key of all brokers of a share comes from the launcher, which is not confined, so that handles
 * outlive a sandbox that is replaced (an upgrade). Only guard, deputy and broker ever have it. */
static bool get_key(struct siphash_key *key, int fd)
{
	return read(fd, key, sizeof(*key)) == sizeof(*key) && !close(fd);
}

void handle_guard_run(const struct handle_guard *guard)
{
	struct watch w = {.guard = guard};

	w.faults = mmap(NULL, sizeof(*w.faults), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
			-1, 0);
	if (w.faults == MAP_FAILED || confine(guard, &w.filter) || !get_key(&w.key, guard->key_fd))
		_exit(FAILED);
	for (;;)
		stand_guard(&w);
}

bool handle_guard_can_open(int root_fd)
{
	return fhandle_works(root_fd);
}
