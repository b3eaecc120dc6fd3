/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The shared tables as Python sees them: their sizes, and what the pool does after a worker's
 * death.
 */
#ifndef VFSD_TABLES_H
#define VFSD_TABLES_H

#include "transport/csrc/types.h"

enum {
	INODE_CAPACITY_MAX = 1 << 28, /* inodes, the root included: a slot's number has 32 bits */
};

/* The size in bytes of each shared segment. The segments are memfds, and sparse. */
uint64_t inode_table_bytes(uint32_t capacity);
uint64_t file_table_bytes(uint32_t capacity);

/* Lay the tables out in zeroed memory of those sizes, once, before the first worker. `root_fd` is
 * the shared directory (O_PATH). Return: 0 or -errno (fstat of the root). */
int inode_table_init(void *memory, uint32_t capacity, int root_fd) must_check;
void file_table_init(void *memory, uint32_t capacity);

/* Begin the generations of nodeids at a random number. Called before the first nodeid. */
void inode_table_number_from(void *memory, uint32_t random);

/* Release the locks that a dead worker held. The pool calls these functions before it fills the
 * slot again. */
void inode_table_bury(void *memory, uint32_t slot);
void file_table_bury(void *memory, uint32_t slot);

/* Write every fd that the tables hold into `ret`, which has room for `room` fds. Return: the number
 * of fds in the tables, which may be more than `room`. Workers may change the tables at the same
 * time, so a sweep asks twice (see sweep.py). */
uint64_t inode_table_fds(const void *memory, int32_t *ret, uint64_t room);
uint64_t file_table_fds(const void *memory, int32_t *ret, uint64_t room);

/* How close the guest is to the maximum number of inodes that it may know. */
enum inode_fullness {
	INODES_FEW,
	INODES_MANY,	   /* four fifths of the slots are in use */
	INODES_FULL,	   /* an inode was refused because no slot is free */
	INODES_WITHOUT_FD, /* an inode was refused because no more files may be open */
};

/* The number of inodes, and of open files, in use. */
uint64_t inode_table_count(const void *memory);
uint64_t file_table_count(const void *memory);

#endif
