/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A raw clone instead of fork(): glibc has no call for it. What fork() does besides concerns
 * threads (there are none) and the thread id that glibc caches: it stays the parent's. Recursive
 * mutexes (zmq's) use it as the owner's mark, which no other thread of the child can have while the
 * parent lives. Robust mutexes tell it to the kernel and do not work; nothing here uses them.
 */
#define Py_LIMITED_API 0x030b0000
#include <Python.h>

#include "transport/csrc/clone_process.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifdef __s390x__
#error "clone() takes the stack first here"
#endif

int clone_process(void)
{
	/* cffi has dropped the GIL. */
	PyGILState_STATE gil = PyGILState_Ensure();
	long pid;
	int err;

	PyOS_BeforeFork();
	pid = syscall(SYS_clone, CLONE_FILES | SIGCHLD, 0, 0, 0, 0);
	err = errno;
	if (pid == 0)
		PyOS_AfterFork_Child();
	else
		PyOS_AfterFork_Parent();
	PyGILState_Release(gil);
	return pid < 0 ? -err : (int)pid;
}
