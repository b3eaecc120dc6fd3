/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/csrc/host/thread.h"

#include <pthread.h>
#include <signal.h>

enum {
	STACK_BYTES = 256 * 1024,
};

int thread_start(void *(*run)(void *arg), void *arg)
{
	sigset_t all, old;
	pthread_attr_t attr;
	pthread_t thread;
	int err;

	sigfillset(&all);
	sigdelset(&all, SIGBUS); /* raised when guest memory has vanished: see sigbus.c */
	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, STACK_BYTES);
	pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	err = pthread_create(&thread, &attr, run, arg);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	pthread_attr_destroy(&attr);
	return err;
}
