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
#include <stdint.h>
#include <sys/random.h>
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

/*
 * The stack protector's word is chosen at exec, so a clone has its parent's, and all clones have
 * the same: who may crash one after the other could guess it byte by byte. It can be changed here
 * because no function that has put the old one on the stack returns after that: the callable ends
 * the process. Threads begin with the word of their creator. glibc keeps it in the thread's control
 * block on x86; elsewhere it is in memory that is read-only by now, and stays.
 */
void clone_process_run(void *callable)
{
	uint64_t word = 0;

	(void)PyGILState_Ensure();
	if (getrandom(&word, sizeof(word), 0) == sizeof(word)) {
		word &= ~UINT64_C(0xff); /* no string goes past it, as glibc has it */
#ifdef __x86_64__
		__asm__ volatile("movq %0, %%fs:0x28" : : "r"(word) : "memory");
#endif
	}
	(void)PyObject_CallNoArgs(callable);
	_exit(1);
}
