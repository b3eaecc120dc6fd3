/* SPDX-License-Identifier: Apache-2.0 */
#include "transport/csrc/shared_memory.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

int shared_memory_map(int fd, uint64_t size, bool writable, void **ret)
{
	int seals = fcntl(fd, F_GET_SEALS);
	struct stat st;
	void *addr;

	if (seals < 0 || fstat(fd, &st) < 0)
		return -errno;
	if (!(seals & F_SEAL_SHRINK) || size == 0 || (uint64_t)st.st_size < size)
		return -EINVAL;
	addr = mmap(NULL, size, writable ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED, fd, 0);
	if (addr == MAP_FAILED)
		return -errno;
	*ret = addr;
	return 0;
}

int shared_memory_look(int fd, uint32_t *ret_mode, uint64_t *ret_size)
{
	struct statx st;

	if (statx(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_TYPE | STATX_SIZE, &st) < 0)
		return -errno;
	*ret_mode = st.stx_mode;
	*ret_size = st.stx_size;
	return 0;
}

int shared_memory_unmap(void *addr, uint64_t size)
{
	return munmap(addr, size) < 0 ? -errno : 0;
}
