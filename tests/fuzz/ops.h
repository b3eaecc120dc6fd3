/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The ops of one family: each ops_*.c has a table of what its guest asks, and ops.c draws from this
 * table. A family is a target of its own, since inputs that reach much in locks are worth little
 * for names.
 */
#ifndef VFSD_FUZZ_OPS_H
#define VFSD_FUZZ_OPS_H

#include "transport/csrc/fuse_ops.h"

/* An op, and the offsets of handles and nodeids in its argument (-1: there is none). */
struct asked {
	uint32_t opcode;
	int8_t fh_at;
	int8_t fh2_at; /* COPY_FILE_RANGE: its second file, with the nodeid at node_at */
	int8_t node_at;
	uint8_t names; /* names that follow the argument */
};

extern const struct asked asked[];
extern const uint32_t asked_count;

#define ASKED_NONE -1, -1, -1

/* Every family needs these ops, to have files to ask about. */
#define ASKED_ALWAYS                                                                              \
	{FUSE_LOOKUP, ASKED_NONE, 1}, {FUSE_FORGET, ASKED_NONE, 0}, {FUSE_CREATE, ASKED_NONE, 1}, \
		{FUSE_OPEN, ASKED_NONE, 0}, {FUSE_RELEASE, 0, -1, -1, 0},                         \
	{                                                                                         \
		FUSE_MKDIR, ASKED_NONE, 1                                                         \
	}

#define ASKED_COUNT(table) (sizeof(table) / sizeof((table)[0]))

#endif
