/* SPDX-License-Identifier: Apache-2.0 */
/*
 * THEORY
 *
 * `turn` is odd while the loop is in a call, and changes at each begin and end of a call. The
 * watchdog looks at `turn` every PERIOD_MS; if it finds the same odd number twice, that call takes
 * long. The watchdog then claims the call by setting SENDING, sends the signal and clears SENDING.
 * The loop ends a call with a compare-and-swap of `turn`, which fails while SENDING is set, and
 * then waits until every signal that was sent has arrived. So no signal reaches the loop outside of
 * a call, where the signal could make a read of a FUSE file fail. A signal may arrive before the
 * call has begun to wait; the watchdog then sends another signal in the next period. While a signal
 * has not arrived, because the call waits for a disk, the watchdog sends no other: the kernel
 * merges pending signals of one number into one, and the loop counts the signals that arrive. A
 * signal of the same number from another process (kill(1)) is not counted: with one signal more
 * than were sent, the loop would wait forever. The kernel keeps such a signal apart from those of
 * tgkill(2) to this thread, so the two are not merged.
 *
 * While there are no calls the thread sleeps without a timeout, and the loop wakes the thread at
 * the next call. The loop writes `turn` and then reads `sleeps`; the thread writes `sleeps` and
 * then reads `turn`. So at least one of the two sees what the other has written. A wake-up costs
 * one system call, for the first call after QUIET periods; other calls pay nothing.
 */
#include "worker/csrc/host/watchdog.h"

#include "worker/csrc/host/thread.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

enum {
	PERIOD_MS = 20,
	QUIET = 50,	 /* after this number of periods without a call the thread sleeps */
	SIGNAL = SIGURG, /* ignored by a process that has no handler for it */
};

static const uint64_t SENDING = UINT64_C(1) << 63; /* a bit of `turn` */

struct watchdog {
	uint64_t turn;
	uint32_t sent; /* number of signals */
	uint32_t sleeps;
	bool started; /* thread_start() has been called, successfully or not */
	pid_t process, thread;
	pthread_mutex_t mutex;
	pthread_cond_t call;
};

static uint32_t arrived; /* number of signals */

static void on_signal(int signo, siginfo_t *info, void *context)
{
	(void)signo;
	(void)context;
	if (info->si_code != SI_TKILL)
		return;
	__atomic_add_fetch(&arrived, 1, __ATOMIC_RELEASE);
}

/* There is no SA_RESTART, because the signal must make the system call return. */
static void catch_signal(void)
{
	struct sigaction action;
	sigset_t set;

	memset(&action, 0, sizeof(action));
	action.sa_sigaction = on_signal;
	action.sa_flags = SA_SIGINFO;
	sigaction(SIGNAL, &action, NULL);
	sigemptyset(&set);
	sigaddset(&set, SIGNAL);
	pthread_sigmask(SIG_UNBLOCK, &set, NULL);
}

struct watchdog *watchdog_create(void)
{
	struct watchdog *dog = calloc(1, sizeof(*dog));

	if (!dog)
		return NULL;
	/* pthread_kill(3) cannot be used: after clone_process.c the thread id that glibc has cached
	 * may be the id of another process. */
	dog->process = getpid();
	dog->thread = (pid_t)syscall(SYS_gettid);
	pthread_mutex_init(&dog->mutex, NULL);
	pthread_cond_init(&dog->call, NULL);
	catch_signal();
	dog->sleeps = 1;
	return dog;
}

/* ---- the thread ---- */

static void interrupt(struct watchdog *dog, uint64_t turn)
{
	uint64_t expected = turn;

	if (__atomic_load_n(&arrived, __ATOMIC_ACQUIRE) != dog->sent)
		return;
	if (!__atomic_compare_exchange_n(&dog->turn, &expected, turn | SENDING, false,
					 __ATOMIC_ACQ_REL, __ATOMIC_RELAXED))
		return;
	if (!syscall(SYS_tgkill, dog->process, dog->thread, SIGNAL))
		__atomic_add_fetch(&dog->sent, 1, __ATOMIC_RELAXED);
	__atomic_store_n(&dog->turn, turn, __ATOMIC_RELEASE);
}

static void sleep_until_called(struct watchdog *dog, uint64_t turn)
{
	pthread_mutex_lock(&dog->mutex);
	__atomic_store_n(&dog->sleeps, 1, __ATOMIC_SEQ_CST);
	if (__atomic_load_n(&dog->turn, __ATOMIC_SEQ_CST) != turn)
		__atomic_store_n(&dog->sleeps, 0, __ATOMIC_SEQ_CST);
	while (__atomic_load_n(&dog->sleeps, __ATOMIC_RELAXED))
		pthread_cond_wait(&dog->call, &dog->mutex);
	pthread_mutex_unlock(&dog->mutex);
}

static void *watch(void *arg)
{
	struct watchdog *dog = arg;
	uint64_t seen = 0;
	uint32_t quiet = 0;

	for (;;) {
		uint64_t turn = __atomic_load_n(&dog->turn, __ATOMIC_ACQUIRE);

		quiet = turn == seen ? quiet + 1 : 0;
		if (quiet && turn & 1)
			interrupt(dog, turn);
		seen = turn;
		if (quiet >= QUIET && !(turn & 1)) {
			sleep_until_called(dog, turn);
			quiet = 0;
		}
		poll(NULL, 0, PERIOD_MS);
	}
	return NULL;
}

/* ---- the loop ---- */

/* If the thread cannot be started, no call is interrupted, and each call waits as long as it
 * takes. */
static __attribute__((noinline, cold)) void wake(struct watchdog *dog)
{
	pthread_mutex_lock(&dog->mutex);
	__atomic_store_n(&dog->sleeps, 0, __ATOMIC_SEQ_CST);
	pthread_mutex_unlock(&dog->mutex);
	if (dog->started)
		pthread_cond_signal(&dog->call);
	else
		(void)!thread_start(watch, dog);
	dog->started = true;
}

void watchdog_begin(struct watchdog *dog)
{
	if (!dog)
		return;
	__atomic_store_n(&dog->turn, dog->turn + 1, __ATOMIC_SEQ_CST);
	if (__builtin_expect(__atomic_load_n(&dog->sleeps, __ATOMIC_SEQ_CST), 0))
		wake(dog);
}

int watchdog_end(struct watchdog *dog, int result)
{
	int ret = result < 0 ? -errno : result;
	uint64_t turn;

	if (!dog)
		return ret;
	turn = __atomic_load_n(&dog->turn, __ATOMIC_RELAXED) & ~SENDING;
	while (!__atomic_compare_exchange_n(&dog->turn, &(uint64_t){turn}, turn + 1, false,
					    __ATOMIC_ACQ_REL, __ATOMIC_RELAXED))
		sched_yield();
	while (__atomic_load_n(&arrived, __ATOMIC_ACQUIRE) != dog->sent)
		sched_yield();
	return ret;
}
