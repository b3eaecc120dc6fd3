/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/csrc/fs/restore_report.h"

void restore_report_loss(struct restore_report *report, const struct restore_loss *loss)
{
	if (loss->was_open)
		report->lost_files++;
	else
		report->lost_nodes++;
	if (report->loss_count < LOSSES_NAMED)
		report->losses[report->loss_count++] = *loss;
}
