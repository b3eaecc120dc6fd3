/* SPDX-License-Identifier: Apache-2.0 */
/* Locks, and ops that belong to no other family. */
#include "ops.h"

const struct asked asked[] = {
	ASKED_ALWAYS,
	{FUSE_GETLK, 0, -1, -1, 0},
	{FUSE_SETLK, 0, -1, -1, 0},
	{FUSE_SETLKW, 0, -1, -1, 0},
	{FUSE_FLUSH, 0, -1, -1, 0},
	{FUSE_INTERRUPT, ASKED_NONE, 0},
	{FUSE_IOCTL, 0, -1, -1, 0},
	{FUSE_OPENDIR, ASKED_NONE, 0},
	{FUSE_SYNCFS, ASKED_NONE, 0},
	{FUSE_DESTROY, ASKED_NONE, 0},
	{4000, ASKED_NONE, 0}, /* an opcode that does not exist */
};
const uint32_t asked_count = ASKED_COUNT(asked);
