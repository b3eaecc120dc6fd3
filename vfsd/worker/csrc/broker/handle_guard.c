/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The guard chooses the key. Each broker is a fork of the guard and so inherits the key and the
 * sockets: nothing is lost when a broker dies. The guard itself reads no input at all.
 *
 * A broker that is killed (SIGKILL, SIGTERM) is replaced, however often that happens. A broker that
 * ends by a fault of its own or by a forbidden system call may have been attacked: after FAULTS_MAX
 * such ends the guard does not start another broker. An inode that is held only by a handle is then
 * stale until the guest looks it up again; inodes that are held by fds are not affected.
 */
#include "worker/csrc/broker/handle_guard.h"

#include "worker/csrc/broker/handle_broker.h"
#include "worker/csrc/sandbox/seccomp.h"

#include <sched.h>
#include <signal.h>
#include <sys/random.h>
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

static void be_broker(const struct handle_guard *guard, struct filter *filter,
		      const struct siphash_key *key)
{
	struct handle_broker broker;

	if (filter->bytes && syscall_filter_install(filter->program, (uint32_t)filter->bytes, -1))
		_exit(FAILED);
	if (handle_broker_init(&broker, key, guard->root_fd))
		_exit(FAILED);
	handle_broker_serve(&broker, guard->sockets, guard->socket_count);
	_exit(0);
}

static void pause_before_next(void)
{
	struct timespec pause = {.tv_nsec = PAUSE_MS * 1000000L};

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

void handle_guard_run(const struct handle_guard *guard)
{
	struct siphash_key key;
	struct filter filter;
	uint32_t faults = 0;

	if (confine(guard, &filter) || getrandom(&key, sizeof(key), 0) != sizeof(key))
		_exit(FAILED);
	while (faults < FAULTS_MAX) {
		long pid = syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
		int status = 0;

		if (pid == 0)
			be_broker(guard, &filter, &key);
		if (pid > 0 && waitpid((pid_t)pid, &status, 0) == pid) {
			if (WIFEXITED(status))
				_exit(WEXITSTATUS(status));
			faults += WTERMSIG(status) != SIGKILL && WTERMSIG(status) != SIGTERM;
		}
		pause_before_next();
	}
	_exit(FAILED);
}

bool handle_guard_can_open(int root_fd)
{
	return fhandle_works(root_fd);
}
