/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
/*
 * SipHash-2-4 with 64 bits (J.-P. Aumasson, D. J. Bernstein, "SipHash: a fast short-input PRF",
 * 2012). Without the key an attacker cannot predict the hash of a message better than by chance.
 */
#ifndef VFSD_SIPHASH_H
#define VFSD_SIPHASH_H

#include "transport/csrc/types.h"

/* The 16 bytes of a key as two little-endian words. */
struct siphash_key {
	uint64_t k0, k1;
};

/* `len` is in bytes. */
uint64_t siphash(const struct siphash_key *key, const void *message, size_t len);

#endif
