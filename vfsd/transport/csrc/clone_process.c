/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A raw clone(2), because glibc has no fork() that shares the fd table, or that makes a sibling.
 * The other work of glibc's fork() concerns threads, and there are none, and the thread id that
 * glibc caches: in a child of a raw clone this stays the parent's id. Recursive mutexes (zmq's)
 * store this id to mark their owner; no other thread of the child can have the same id while the
 * parent lives. Robust mutexes do not work, since the kernel is given the cached id as their owner;
 * nothing here uses robust mutexes.
 */
#define Py_LIMITED_API 0x030b0000
#include <Python.h>

#include "transport/csrc/clone_process.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <sys/random.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifdef __s390x__
#error "clone() takes the stack first here"
#endif

static int clone_python(unsigned long flags, int32_t *ret)
{
	/* cffi has dropped the GIL. */
	PyGILState_STATE gil = PyGILState_Ensure();
	long pid;
	int err;

	PyOS_BeforeFork();
	pid = syscall(SYS_clone, SIGCHLD | flags, 0, ret, 0, 0);
	err = errno;
	if (pid == 0)
		PyOS_AfterFork_Child();
	else
		PyOS_AfterFork_Parent();
	PyGILState_Release(gil);
	return pid < 0 ? -err : (int)pid;
}

int clone_process(void)
{
	return clone_python(CLONE_FILES, NULL);
}

int clone_apart(void)
{
	return clone_python(0, NULL);
}

int clone_sibling(int32_t *ret_pid)
{
	return clone_python(CLONE_FILES | CLONE_PARENT | CLONE_PARENT_SETTID, ret_pid);
}

int fork_sibling(int32_t *ret_pidfd)
{
	return clone_python(CLONE_PARENT | CLONE_PIDFD, ret_pidfd);
}

/*
 * The stack protector's canary is chosen at exec, so a clone has its parent's, and all clones have
 * the same: a guest that can crash one clone after the other could guess the canary byte by byte.
 * The canary can be changed here because no function that has put the old canary on the stack
 * returns afterwards: the callable ends the process. Threads begin with the canary of their
 * creator. On x86 glibc keeps the canary in the thread's control block; elsewhere it is in memory
 * that is read-only by now, and it stays.
 */
void clone_process_run(void *callable)
{
	uint64_t word = 0;

	(void)PyGILState_Ensure();
	if (getrandom(&word, sizeof(word), 0) == sizeof(word)) {
		word &= ~UINT64_C(0xff); /* strings end at a zero byte, as in glibc's canary */
#ifdef __x86_64__
		__asm__ volatile("movq %0, %%fs:0x28" : : "r"(word) : "memory");
#endif
	}
	(void)PyObject_CallNoArgs(callable);
	_exit(1);
}
