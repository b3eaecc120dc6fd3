/* SPDX-License-Identifier: Apache-2.0 */
/* What came back of a session in another sandbox, and what is lost (session_restore.c). */
#ifndef VFSD_RESTORE_REPORT_H
#define VFSD_RESTORE_REPORT_H

#include "transport/csrc/types.h"

enum {
	LOSSES_NAMED = 20,
};

enum loss_kind {
	LOSS_NODE, /* the file was not found again */
	LOSS_FILE, /* an open file could not be opened again */
	LOSS_LOCK, /* a program of the host has the lock of the guest now */
	LOSS_KINDS,
};

struct restore_loss {
	uint64_t ino;
	uint32_t device; /* inode_key_device() */
	int32_t error;	 /* -errno */
	int32_t kind;	 /* enum loss_kind */
};

struct restore_report {
	uint64_t nodes; /* found again */
	uint64_t files; /* open again */
	uint64_t lost[LOSS_KINDS];
	uint32_t loss_count;
	struct restore_loss losses[LOSSES_NAMED]; /* the first ones */
};

#endif
