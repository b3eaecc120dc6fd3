/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/csrc/host/proc_fd.h"

#include <string.h>

const char *proc_fd_name(int fd, char name[static FD_NAME])
{
	char *at = &name[FD_NAME - 1];

	*at = '\0';
	do
		*--at = (char)('0' + fd % 10);
	while (fd /= 10);
	return memmove(name, at, (size_t)(&name[FD_NAME] - at));
}
