/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/csrc/sandbox/descriptors.h"

#include <fcntl.h>

void descriptors_note(uint8_t *known, int32_t end, const int32_t *fds, uint64_t count)
{
	for (uint64_t i = 0; i < count; i++)
		if (fds[i] >= 0 && fds[i] < end)
			known[fds[i]] = 1;
}

uint32_t descriptors_others(const uint8_t *known, int32_t end, int32_t *ret, uint32_t room)
{
	uint32_t count = 0;

	for (int32_t fd = 0; fd < end; fd++) {
		if (known[fd] || fcntl(fd, F_GETFD) < 0)
			continue;
		if (count < room)
			ret[count] = fd;
		count++;
	}
	return count;
}

bool descriptors_mark(int32_t fd)
{
	return fcntl(fd, F_SETFD, 0) == 0;
}

bool descriptors_is_marked(int32_t fd)
{
	return fcntl(fd, F_GETFD) == 0;
}

void descriptors_unmark(int32_t fd)
{
	(void)!fcntl(fd, F_SETFD, FD_CLOEXEC);
}
