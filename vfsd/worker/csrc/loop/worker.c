/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/csrc/loop/worker.h"

#include "worker/csrc/fs/fs_init.h"
#include "worker/csrc/host/watchdog.h"
#include "worker/csrc/loop/direct_io.h"
#include "worker/csrc/loop/offload.h"
#include "worker/csrc/loop/poll.h"
#include "worker/csrc/loop/requests.h"
#include "worker/csrc/loop/ring.h"
#include "worker/csrc/loop/sigbus.h"
#include "worker/csrc/loop/worker_state.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static bool allocate(struct worker *w)
{
	w->adopted = calloc(1, sizeof(*w->adopted));
	w->next_state = calloc(1, sizeof(*w->next_state));
	w->requests = calloc(REQUESTS_MAX, sizeof(*w->requests));
	w->payload = malloc(REQUEST_PAYLOAD_MAX + 1);
	w->cold_arg = malloc(REQUEST_ARG_MAX + REQUEST_PAYLOAD_MAX);
	return w->adopted && w->next_state && w->requests && w->payload && w->cold_arg;
}

struct worker *worker_create(const struct worker_config *config)
{
	struct worker *w = calloc(1, sizeof(*w));

	if (!w)
		return NULL;
	if (fs_init(&w->fs, &config->fs) || !allocate(w)) {
		free(w);
		return NULL;
	}
	w->control_fd = config->control_fd;
	w->device = config->device;
	w->row = &w->fs.table->rows[w->fs.slot];
	w->records = config->records;
	w->offload = offload_create(config->threads, w->row);
	if (config->threads)
		w->fs.watchdog = watchdog_create();
	if (config->threads && config->fs.policy.allow_direct_io)
		w->direct_io = direct_io_create();
	w->pins = file_pins_create(w->fs.files);
	if (!w->offload || !w->pins)
		return NULL;
	requests_give_unused(w);
	poll_init(w, config->poll_us);
	sigbus_guard(&w->memory);
	return w;
}

static const struct worker_ring *ring_at(const struct worker *w, uint32_t index)
{
	return index < DEVICE_VRINGS_MAX ? w->rings[index] : NULL;
}

int32_t worker_ring_base(const struct worker *w, uint32_t index)
{
	const struct worker_ring *ring = ring_at(w, index);

	return ring && ring->vring.size ? ring->vring.last_avail : -EINVAL;
}

const char *worker_ring_error(const struct worker *w, uint32_t index)
{
	const struct worker_ring *ring = ring_at(w, index);

	return ring ? ring->error : NULL;
}

int32_t worker_broken_ring(struct worker *w)
{
	int32_t index = ring_find_broken(w);

	if (index >= 0)
		w->rings[index]->broken_unreported = false;
	w->any_broken = ring_find_broken(w) >= 0;
	return index;
}

uint32_t worker_take_fullness(struct worker *w)
{
	uint32_t fullness = w->fs.fullness;

	w->fs.fullness = INODES_FEW;
	return fullness;
}

bool worker_take_refusal(struct worker *w, struct refusal *ret)
{
	if (!fs_has_refusal(&w->fs))
		return false;
	w->fs.refusal.is_taken = true;
	*ret = w->fs.refusal;
	return true;
}

uint64_t worker_unshared(struct worker *w, uint64_t *ret_gpa)
{
	uint64_t count = w->unshared_count;

	w->unshared_due = false;
	w->unshared_count = 0;
	w->unshared_at_ns = w->fs.now_ns;
	*ret_gpa = w->unshared_gpa;
	return count;
}

uint32_t worker_cold_request(struct worker *w, const uint8_t **ret_arg, uint32_t *ret_len)
{
	if (!w->cold)
		return 0;
	*ret_arg = w->cold_arg;
	*ret_len = w->cold_len;
	return w->cold->in.opcode;
}

void worker_cold_reply(struct worker *w, int32_t error, const uint8_t *reply, uint32_t len)
{
	struct request *r = w->cold;
	struct worker_ring *ring;

	if (!r)
		return;
	w->cold = NULL;
	ring = r->ring;
	if (len > sizeof(r->small))
		error = -EIO;
	else if (len)
		memcpy(r->small, reply, len);
	requests_finish(w, r, error ? error : (int)len);
	ring_publish(w, ring);
}

void worker_session_end(struct worker *w)
{
	fs_session_end(&w->fs);
}

void worker_session_begin(struct worker *w, uint32_t minor, uint64_t flags, uint64_t offered)
{
	fs_session_begin(&w->fs, minor, flags, offered);
}
