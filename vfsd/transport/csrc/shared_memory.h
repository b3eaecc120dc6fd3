/* SPDX-License-Identifier: Apache-2.0 */
/* Mapping of shared memory segments: memfds sealed against shrinking (shared_memory.py). */
#ifndef VFSD_SHARED_MEMORY_H
#define VFSD_SHARED_MEMORY_H

#include "transport/csrc/types.h"

/*
 * Map the first `size` bytes of the segment `fd` at *ret.
 * Return: 0, -EINVAL (the segment is shorter, or not sealed against shrinking), or mmap's -errno.
 */
int shared_memory_map(int fd, uint64_t size, bool writable, void **ret) must_check;

/*
 * Type and permissions (st_mode) and size in bytes of `fd` as the kernel knows them now. The server
 * of a network file system or of FUSE is not asked, so it cannot make the caller wait.
 * Return: 0 or statx's -errno.
 */
int shared_memory_look(int fd, uint32_t *ret_mode, uint64_t *ret_size) must_check;

/* Return: 0 or munmap's -errno. */
int shared_memory_unmap(void *addr, uint64_t size) must_check;

#endif
