/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
/*
 * What survives a worker's death about the request of one descriptor head, so that the worker that
 * takes over neither repeats what must not happen twice nor loses what has happened.
 *
 * Life of an intent: NONE, BEGUN before an op that is not idempotent (OP_ONCE), DONE with the reply
 * before that is written to guest memory. Each step ends in one store of `state`, so a prefix is
 * consistent. A note is what an op wants to know of the time before it changed anything.
 */
#ifndef VFSD_INTENT_H
#define VFSD_INTENT_H

#include "transport/csrc/types.h"

struct request;

enum intent_state {
	INTENT_NONE,
	INTENT_BEGUN, /* the op may have happened */
	INTENT_DONE,  /* it has: error and reply hold the outcome */
};

enum {
	INTENT_REPLY_MAX = 216, /* bytes; the largest is of CREATE, 144 */
};

struct intent {
	uint64_t unique; /* with session and opcode: whose it is */
	uint32_t session;
	uint32_t opcode;
	uint16_t state; /* enum intent_state */
	uint16_t tries; /* times a worker died with it */
	int32_t error;
	uint32_t reply_len;
	uint32_t pad;
	uint8_t reply[INTENT_REPLY_MAX]; /* until DONE: the note */
	uint64_t note_unique;		 /* the request that the note belongs to */
};

/* An op that is not idempotent begins. */
void intent_begin(struct request *r);
/* It is over; `result` is enum op_outcome. */
void intent_done(struct request *r, int result);

/*
 * For a request that was in flight when a worker died. Return: true if *ret_result is its result
 * and it must not run again; else r->replayed says whether it may have happened.
 */
bool intent_settles(struct request *r, int *ret_result);

/* The request only waits: a death from here on is not its fault. */
void intent_waits(struct request *r);

/* Leave a note of `len` bytes, and find the one that this request left before a death. */
void intent_note(struct request *r, const void *note, uint32_t len);
bool intent_noted(const struct request *r, void *ret, uint32_t len);

#endif
