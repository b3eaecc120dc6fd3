/* SPDX-License-Identifier: Apache-2.0 */
/* Attributes, extended attributes, permissions, flags. */
#include "ops.h"

const struct asked asked[] = {
	ASKED_ALWAYS,
	{FUSE_GETATTR, 8, -1, -1, 0},
	{FUSE_SETATTR, 8, -1, -1, 0},
	{FUSE_STATX, 8, -1, -1, 0},
	{FUSE_ACCESS, ASKED_NONE, 0},
	{FUSE_SETXATTR, ASKED_NONE, 1},
	{FUSE_GETXATTR, ASKED_NONE, 1},
	{FUSE_LISTXATTR, ASKED_NONE, 0},
	{FUSE_REMOVEXATTR, ASKED_NONE, 1},
	{FUSE_STATFS, ASKED_NONE, 0},
	{FUSE_SYMLINK, ASKED_NONE, 2},
	{FUSE_IOCTL, 0, -1, -1, 0},
};
const uint32_t asked_count = ASKED_COUNT(asked);
