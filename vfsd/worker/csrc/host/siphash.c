/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/csrc/host/siphash.h"

#include <endian.h>
#include <string.h>

enum {
	ROUNDS_PER_WORD = 2,
	ROUNDS_AT_END = 4,
	WORD = 8, /* bytes */
};

static uint64_t rotated(uint64_t value, int bits)
{
	return value << bits | value >> (64 - bits);
}

/* SipRound of section 2.1 of the paper. */
static void mix(uint64_t v[4], int rounds)
{
	while (rounds--) {
		v[0] += v[1];
		v[2] += v[3];
		v[1] = rotated(v[1], 13) ^ v[0];
		v[3] = rotated(v[3], 16) ^ v[2];
		v[0] = rotated(v[0], 32);
		v[2] += v[1];
		v[0] += v[3];
		v[1] = rotated(v[1], 17) ^ v[2];
		v[3] = rotated(v[3], 21) ^ v[0];
		v[2] = rotated(v[2], 32);
	}
}

static void compress(uint64_t v[4], uint64_t word)
{
	v[3] ^= word;
	mix(v, ROUNDS_PER_WORD);
	v[0] ^= word;
}

/* The next `len` bytes, at most one word. */
static uint64_t load(const uint8_t *at, size_t len)
{
	uint64_t word = 0;

	memcpy(&word, at, len);
	return le64toh(word);
}

uint64_t siphash(const struct siphash_key *key, const void *message, size_t len)
{
	/* The initial constants spell "somepseudorandomlygeneratedbytes". */
	uint64_t v[4] = {
		key->k0 ^ UINT64_C(0x736f6d6570736575),
		key->k1 ^ UINT64_C(0x646f72616e646f6d),
		key->k0 ^ UINT64_C(0x6c7967656e657261),
		key->k1 ^ UINT64_C(0x7465646279746573),
	};
	const uint8_t *at = message;
	size_t left = len;

	for (; left >= WORD; at += WORD, left -= WORD)
		compress(v, load(at, WORD));
	compress(v, load(at, left) | (uint64_t)len << 56);
	v[2] ^= 0xff;
	mix(v, ROUNDS_AT_END);
	return v[0] ^ v[1] ^ v[2] ^ v[3];
}
