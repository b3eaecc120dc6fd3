/* SPDX-License-Identifier: Apache-2.0 */
#include "transport/csrc/process.h"

#include <errno.h>
#include <sys/prctl.h>

int process_become_subreaper(void)
{
	return prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) < 0 ? -errno : 0;
}
