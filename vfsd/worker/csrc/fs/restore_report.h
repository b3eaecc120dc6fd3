/* SPDX-License-Identifier: Apache-2.0 */
/* How much of a session was found again, and what was lost. */
#ifndef VFSD_RESTORE_REPORT_H
#define VFSD_RESTORE_REPORT_H

#include "transport/csrc/types.h"

enum {
	LOSSES_NAMED = 20,
};

/* A file that was not found again, or could not be opened again. */
struct restore_loss {
	uint64_t ino;
	uint32_t device; /* inode_key_device() */
	int32_t error;	 /* -errno */
	bool was_open;
};

struct restore_report {
	uint64_t nodes; /* found again */
	uint64_t files; /* open again */
	uint64_t lost_nodes;
	uint64_t lost_files;
	uint64_t lost_locks; /* open files with flocks, and owners of record locks */
	uint32_t loss_count;
	struct restore_loss losses[LOSSES_NAMED]; /* the first ones */
};

/* Count a loss, and name it if there is room. */
void restore_report_loss(struct restore_report *report, const struct restore_loss *loss);

#endif
