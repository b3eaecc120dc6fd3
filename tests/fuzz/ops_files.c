/* SPDX-License-Identifier: Apache-2.0 */
/* Data of files and directories. */
#include "ops.h"

const struct asked asked[] = {
	ASKED_ALWAYS,
	{FUSE_READ, 0, -1, -1, 0},
	{FUSE_WRITE, 0, -1, -1, 0},
	{FUSE_FLUSH, 0, -1, -1, 0},
	{FUSE_FSYNC, 0, -1, -1, 0},
	{FUSE_FALLOCATE, 0, -1, -1, 0},
	{FUSE_LSEEK, 0, -1, -1, 0},
	{FUSE_COPY_FILE_RANGE, 0, 24, 16, 0},
	{FUSE_COPY_FILE_RANGE_64, 0, 24, 16, 0},
	{FUSE_OPENDIR, ASKED_NONE, 0},
	{FUSE_READDIR, 0, -1, -1, 0},
	{FUSE_READDIRPLUS, 0, -1, -1, 0},
	{FUSE_RELEASEDIR, 0, -1, -1, 0},
	{FUSE_FSYNCDIR, 0, -1, -1, 0},
	{FUSE_SETATTR, 8, -1, -1, 0},
	{FUSE_UNLINK, ASKED_NONE, 1},
	{FUSE_SYNCFS, ASKED_NONE, 0},
};
const uint32_t asked_count = ASKED_COUNT(asked);
