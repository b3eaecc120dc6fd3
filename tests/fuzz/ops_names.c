/* SPDX-License-Identifier: Apache-2.0 */
/* Names and the files that they lead to, nodeids and FORGET, sessions. */
#include "ops.h"

const struct asked asked[] = {
	ASKED_ALWAYS,
	{FUSE_SYMLINK, ASKED_NONE, 2},
	{FUSE_READLINK, ASKED_NONE, 0},
	{FUSE_MKNOD, ASKED_NONE, 1},
	{FUSE_UNLINK, ASKED_NONE, 1},
	{FUSE_RMDIR, ASKED_NONE, 1},
	{FUSE_RENAME, -1, -1, 0, 2},
	{FUSE_RENAME2, -1, -1, 0, 2},
	{FUSE_LINK, -1, -1, 0, 1},
	{FUSE_TMPFILE, ASKED_NONE, 1},
	{FUSE_BATCH_FORGET, ASKED_NONE, 0},
	{FUSE_INIT, ASKED_NONE, 0},
	{FUSE_DESTROY, ASKED_NONE, 0},
};
const uint32_t asked_count = ASKED_COUNT(asked);
