/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
/*
 * The record of a request that survives the death of its worker; there is one record per descriptor
 * head. With it the worker that takes over neither repeats an op that must not happen twice nor
 * loses the outcome of an op that has happened.
 *
 * Life of an intent: NONE; BEGUN before an op that is not idempotent (OP_ONCE); DONE, with the
 * reply, before the reply is written to guest memory. Each step ends in one store of `state`, so
 * the record is consistent wherever the worker dies. A note is the state that an op saves before
 * its first change, for example the file size before an append.
 */
#ifndef VFSD_INTENT_H
#define VFSD_INTENT_H

#include "transport/csrc/types.h"

struct request;

enum intent_state {
	INTENT_NONE,
	INTENT_BEGUN, /* the op may have happened */
	INTENT_DONE,  /* the op has happened: error and reply hold the outcome */
};

enum {
	INTENT_REPLY_MAX = 216, /* bytes; the largest reply is CREATE's, 144 */
};

struct intent {
	uint64_t unique; /* with session and opcode: the request that owns the intent */
	uint32_t session;
	uint32_t opcode;
	uint16_t state; /* enum intent_state */
	uint16_t tries; /* how often a worker faulted with this request (worker_row.faulted) */
	int32_t error;
	uint32_t reply_len;
	uint32_t pad;
	uint8_t reply[INTENT_REPLY_MAX]; /* until DONE: the note */
	uint64_t note_unique;		 /* the request that the note belongs to */
};

/* Record that an op that is not idempotent begins. */
void intent_begin(struct request *r);
/* Record that the op is over, and its reply. `result` is enum op_outcome. */
void intent_done(struct request *r, int result);

/*
 * For a request that was in flight when a worker died. `may_be_deadly`: the request may have caused
 * that death. Return: true if *ret_result is its result and it must not run again, which is so
 * after two deaths that the request may have caused; else run the request again; r->replayed says
 * whether its op may have happened already.
 */
bool intent_settles(struct request *r, bool may_be_deadly, int *ret_result);

/* The request only waits from now on: if the worker dies, the request did not cause that death. */
void intent_waits(struct request *r);

/* Leave a note of `len` bytes; find the note that this request left before its worker died. */
void intent_note(struct request *r, const void *note, uint32_t len);
bool intent_noted(const struct request *r, void *ret, uint32_t len);

#endif
