/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One mutex guards the queue of requests, the list of completions and the ring of fds to close. The
 * loop takes the mutex twice per offloaded request, and never otherwise: `completed_count` shows
 * without the mutex whether there is anything to fetch. The eventfd is written when the list of
 * completions stops being empty. Threads live as long as the process.
 */
#include "worker/csrc/loop/offload.h"

#include "worker/csrc/host/credentials.h"
#include "worker/csrc/host/thread.h"
#include "worker/csrc/tables/reclaim.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

enum {
	CLOSE_RING = 8192,
	CLOSES = 16, /* fds that a thread takes at once; few, as the first close may take long */
};

struct request_list {
	struct request *first;
	struct request **last;
};

struct offload {
	uint32_t threads_max;
	uint32_t threads;
	uint32_t idle;	/* waiting threads, including those that are just being woken; atomic */
	uint32_t wakes; /* atomic */
	uint32_t wakes_seen;	  /* the value of `wakes` at the loop's last look */
	uint32_t queued;	  /* requests in the queue */
	uint32_t outstanding;	  /* only the loop touches it */
	uint32_t completed_count; /* atomic */
	int event_fd;
	struct worker_row *row;
	pthread_mutex_t mutex;
	pthread_cond_t work;
	struct request_list queue;
	struct request_list completed;
	uint32_t close_first, close_count;
	int32_t close[CLOSE_RING];
};

static void list_init(struct request_list *list)
{
	list->first = NULL;
	list->last = &list->first;
}

static void list_append(struct request_list *list, struct request *r)
{
	r->next = NULL;
	*list->last = r;
	list->last = &r->next;
}

static struct request *list_take(struct request_list *list)
{
	struct request *r = list->first;

	if (r) {
		list->first = r->next;
		if (!list->first)
			list->last = &list->first;
	}
	return r;
}

struct offload *offload_create(uint32_t threads, struct worker_row *row)
{
	struct offload *o = calloc(1, sizeof(*o));

	if (!o)
		return NULL;
	o->threads_max = threads;
	o->row = row;
	o->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (o->event_fd < 0) {
		free(o);
		return NULL;
	}
	pthread_mutex_init(&o->mutex, NULL);
	pthread_cond_init(&o->work, NULL);
	list_init(&o->queue);
	list_init(&o->completed);
	return o;
}

int offload_fd(const struct offload *o)
{
	return o->event_fd;
}

uint32_t offload_outstanding(const struct offload *o)
{
	return o->outstanding;
}

bool offload_ran(struct offload *o)
{
	uint32_t wakes = __atomic_load_n(&o->wakes, __ATOMIC_RELAXED);
	bool ran =
		wakes != o->wakes_seen || __atomic_load_n(&o->idle, __ATOMIC_RELAXED) < o->threads;

	o->wakes_seen = wakes;
	return ran;
}

bool offload_has_completed(const struct offload *o)
{
	return __atomic_load_n(&o->completed_count, __ATOMIC_ACQUIRE);
}

/* The identity of a thread: root, also if the loop acted as another user when it started the
 * thread. */
struct thread_identity {
	struct credentials credentials;
	bool is_root;
};

static int become_root(struct thread_identity *self)
{
	int err = self->is_root ? 0 : credentials_thread_root(&self->credentials);

	self->is_root = !err;
	return err;
}

/* Return: 0, or -errno if the thread does not have the identity that the request needs: then it
 * must not run the request. */
static int prepare_identity(struct thread_identity *self, const struct request *r)
{
	int err = become_root(self);

	return err ? err : credentials_set_id(&self->credentials, r->kill_suidgid, r->kill_group);
}

/* Called with the mutex held; returns with the mutex held. */
static void run_request(struct offload *o, struct thread_identity *self, struct request *r)
{
	int err = r->abandoned ? -EIO : 0;

	pthread_mutex_unlock(&o->mutex);
	if (!err)
		err = prepare_identity(self, r);
	if (err && r->holds_fd)
		close(r->fd);
	r->result = err ? err : r->run(r);
	/* The request may have changed the thread's group. */
	self->is_root = self->is_root && !credentials_root(&self->credentials);
	pthread_mutex_lock(&o->mutex);
	list_append(&o->completed, r);
	if (!__atomic_fetch_add(&o->completed_count, 1, __ATOMIC_RELEASE))
		(void)!write(o->event_fd, &(uint64_t){1}, sizeof(uint64_t));
}

/* Close several fds per locking of the mutex, because the loop also needs the mutex. Called with
 * the mutex held; returns with the mutex held. */
static void run_closes(struct offload *o)
{
	int32_t fds[CLOSES];
	uint32_t count = 0;

	while (o->close_count && count < CLOSES) {
		fds[count++] = o->close[o->close_first];
		o->close_first = (o->close_first + 1) % CLOSE_RING;
		o->close_count--;
	}
	pthread_mutex_unlock(&o->mutex);
	for (uint32_t i = 0; i < count; i++)
		reclaim_close(o->row, fds[i]);
	pthread_mutex_lock(&o->mutex);
}

static void *thread_main(void *arg)
{
	struct thread_identity self = {.is_root = false};
	struct offload *o = arg;

	(void)become_root(&self); /* if this fails, each request tries again (prepare_identity) */
	pthread_mutex_lock(&o->mutex);
	for (;;) {
		struct request *r = list_take(&o->queue);

		if (r) {
			o->queued--;
			run_request(o, &self, r);
		} else if (o->close_count) {
			run_closes(o);
		} else {
			__atomic_add_fetch(&o->idle, 1, __ATOMIC_RELAXED);
			pthread_cond_wait(&o->work, &o->mutex);
			__atomic_sub_fetch(&o->idle, 1, __ATOMIC_RELAXED);
			__atomic_add_fetch(&o->wakes, 1, __ATOMIC_RELAXED);
		}
	}
	return NULL;
}

/* Called with the mutex held, before something is queued. Each queued item already counts on an
 * idle thread. Return: false if there is no thread. */
static bool find_thread(struct offload *o, bool *ret_wake)
{
	*ret_wake = o->idle > o->queued + (o->close_count > 0);
	if (!*ret_wake && o->threads < o->threads_max && !thread_start(thread_main, o))
		o->threads++;
	return o->threads;
}

/* The mutex is given up first: otherwise the woken thread would at once wait for the mutex. */
static void unlock_and_wake(struct offload *o, bool wake)
{
	pthread_mutex_unlock(&o->mutex);
	if (wake)
		pthread_cond_signal(&o->work);
}

int offload_submit(struct offload *o, struct request *r)
{
	bool wake;

	pthread_mutex_lock(&o->mutex);
	if (!find_thread(o, &wake)) {
		pthread_mutex_unlock(&o->mutex);
		return r->run(r);
	}
	list_append(&o->queue, r);
	o->queued++;
	unlock_and_wake(o, wake);
	o->outstanding++;
	return OUTCOME_PENDING;
}

void offload_abandon(struct offload *o, struct request *r)
{
	pthread_mutex_lock(&o->mutex);
	r->abandoned = true;
	pthread_mutex_unlock(&o->mutex);
}

void offload_close(struct offload *o, const int32_t *fds, uint32_t count)
{
	bool threads, wake = false;

	pthread_mutex_lock(&o->mutex);
	threads = o->close_count + count <= CLOSE_RING && find_thread(o, &wake);
	for (uint32_t i = 0; threads && i < count; i++)
		o->close[(o->close_first + o->close_count++) % CLOSE_RING] = fds[i];
	unlock_and_wake(o, wake);
	for (uint32_t i = 0; !threads && i < count; i++)
		reclaim_close(o->row, fds[i]);
}

struct request *offload_completed(struct offload *o)
{
	struct request *first, *r;

	if (!offload_has_completed(o))
		return NULL;
	pthread_mutex_lock(&o->mutex);
	/* Read under the mutex: a thread counts its completion before it writes to the eventfd. */
	(void)!read(o->event_fd, &(uint64_t){0}, sizeof(uint64_t));
	first = o->completed.first;
	list_init(&o->completed);
	__atomic_store_n(&o->completed_count, 0, __ATOMIC_RELEASE);
	pthread_mutex_unlock(&o->mutex);
	for (r = first; r; r = r->next)
		o->outstanding--;
	return first;
}
