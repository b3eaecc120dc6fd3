/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/csrc/tables/worker_table.h"

void worker_table_init(struct worker_table *t, uint32_t slots)
{
	t->layout = WORKER_TABLE_LAYOUT;
	t->slots = slots < WORKER_SLOTS_MAX ? slots : WORKER_SLOTS_MAX;
	t->epoch = 1; /* an epoch of 0 means "offline" */
}

void worker_table_bury(struct worker_table *t, uint32_t slot)
{
	struct worker_row *row = &t->rows[slot % WORKER_SLOTS_MAX];

	row->pid = 0;
	row->private_fd_count = 0;
	row->loose_fds = 0;
	__atomic_store_n(&row->epoch, 0, __ATOMIC_RELEASE);
}

uint64_t worker_table_new_epoch(struct worker_table *t)
{
	return __atomic_add_fetch(&t->epoch, 1, __ATOMIC_ACQ_REL);
}

bool worker_table_held_nothing(const struct worker_table *t, uint32_t slot, uint64_t epoch)
{
	const struct worker_row *row = &t->rows[slot % WORKER_SLOTS_MAX];
	uint64_t seen = __atomic_load_n(&row->epoch, __ATOMIC_ACQUIRE);

	if (!row->pid)
		return true;
	return (!seen || seen >= epoch) && !__atomic_load_n(&row->loose_fds, __ATOMIC_ACQUIRE);
}
