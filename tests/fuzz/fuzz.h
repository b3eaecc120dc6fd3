/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What every fuzz target in C uses: the input as a stream of small decisions. An input that is too
 * short ends in zeroes, so each sequence of bytes is a whole input, and a shorter input is a
 * simpler input.
 */
#ifndef VFSD_FUZZ_H
#define VFSD_FUZZ_H

#include "check.h"

struct input {
	const uint8_t *at;
	const uint8_t *end;
};

/* Run one input, from libFuzzer or from replay.c. Returns 0; a failed check ends the process. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static inline bool is_empty(const struct input *in)
{
	return in->at == in->end;
}

static inline void take_bytes(struct input *in, void *ret, uint64_t len)
{
	uint64_t left = (uint64_t)(in->end - in->at);
	uint64_t here = len < left ? len : left;

	memset(ret, 0, len);
	if (here)
		memcpy(ret, in->at, here);
	in->at += here;
}

static inline uint8_t take_byte(struct input *in)
{
	uint8_t value;

	take_bytes(in, &value, sizeof(value));
	return value;
}

static inline uint16_t take_u16(struct input *in)
{
	uint16_t value;

	take_bytes(in, &value, sizeof(value));
	return value;
}

static inline uint64_t take_u64(struct input *in)
{
	uint64_t value;

	take_bytes(in, &value, sizeof(value));
	return value;
}

#endif
