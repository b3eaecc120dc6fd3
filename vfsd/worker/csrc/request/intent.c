/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/csrc/request/intent.h"

#include "worker/csrc/request/request.h"

#include <errno.h>
#include <string.h>

enum {
	DEADLY_TRIES = 2,
};

_Static_assert(sizeof(struct intent) == 256, "intents do not share a cache line");

static bool is_of(const struct intent *intent, const struct request *r)
{
	return intent->unique == r->in.unique && intent->opcode == r->in.opcode &&
	       intent->session == r->session;
}

static void store_state(struct intent *intent, enum intent_state state)
{
	__atomic_store_n(&intent->state, (uint16_t)state, __ATOMIC_RELEASE);
}

/* Make the intent this request's. If the worker dies on the way, the intent is empty or belongs to
 * no request. */
static void claim(struct intent *intent, const struct request *r)
{
	if (is_of(intent, r))
		return;
	store_state(intent, INTENT_NONE);
	intent->tries = 0;
	intent->note_unique = 0;
	/* A barrier for the compiler is enough: another worker reads these stores only after our
	 * death. */
	__atomic_signal_fence(__ATOMIC_SEQ_CST);
	intent->unique = r->in.unique;
	intent->session = r->session;
	intent->opcode = r->in.opcode;
}

void intent_begin(struct request *r)
{
	struct intent *intent = r->intent;
	bool no_reply = fuse_op(r->in.opcode)->flags & OP_NO_REPLY;

	claim(intent, r);
	store_state(intent, INTENT_NONE);
	intent->error = 0;
	intent->reply_len = 0;
	/* FORGET: a crash may leak a lookup, but must not subtract a lookup twice. */
	store_state(intent, no_reply ? INTENT_DONE : INTENT_BEGUN);
}

void intent_done(struct request *r, int result)
{
	struct intent *intent = r->intent;
	uint32_t len = result > 0 ? (uint32_t)result : 0;

	if (len > sizeof(intent->reply))
		return;
	memcpy(intent->reply, r->reply, len);
	intent->reply_len = len;
	intent->error = result < 0 ? result : 0;
	store_state(intent, INTENT_DONE);
}

enum {
	MAX_ERRNO = 4095, /* the largest errno that the kernel accepts in a reply */
};

/* Copy the recorded reply to r->reply. Return: the recorded result. */
static int recorded_result(struct request *r)
{
	const struct intent *intent = r->intent;
	uint32_t len = __atomic_load_n(&intent->reply_len, __ATOMIC_RELAXED);
	int32_t error = __atomic_load_n(&intent->error, __ATOMIC_RELAXED);

	if (fuse_op(r->in.opcode)->flags & OP_NO_REPLY)
		return OUTCOME_NO_REPLY;
	if (len > sizeof(intent->reply) || error > 0 || error < -MAX_ERRNO)
		return -EIO; /* not a result of an op: the worker that wrote it is hostile */
	memcpy(r->reply, intent->reply, len);
	return error ? error : (int)len;
}

bool intent_settles(struct request *r, bool may_be_deadly, int *ret_result)
{
	struct intent *intent = r->intent;

	claim(intent, r);
	if (intent->state == INTENT_DONE) {
		*ret_result = recorded_result(r);
		return true;
	}
	if (may_be_deadly && ++intent->tries >= DEADLY_TRIES) {
		*ret_result = -EIO;
		return true;
	}
	r->replayed = intent->state == INTENT_BEGUN;
	return false;
}

void intent_waits(struct request *r)
{
	if (is_of(r->intent, r))
		r->intent->tries = 0;
}

void intent_note(struct request *r, const void *note, uint32_t len)
{
	struct intent *intent = r->intent;

	claim(intent, r);
	__atomic_store_n(&intent->note_unique, 0, __ATOMIC_RELEASE);
	memcpy(intent->reply, note, len);
	__atomic_store_n(&intent->note_unique, r->in.unique, __ATOMIC_RELEASE);
}

bool intent_noted(const struct request *r, void *ret, uint32_t len)
{
	const struct intent *intent = r->intent;

	if (!r->from_dead || !is_of(intent, r) || intent->note_unique != r->in.unique)
		return false;
	memcpy(ret, intent->reply, len);
	return true;
}
