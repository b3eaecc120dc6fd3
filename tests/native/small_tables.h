/* SPDX-License-Identifier: Apache-2.0 */
/* Tables with room for a few inodes and files, for the tests of one table each. */
#ifndef SMALL_TABLES_H
#define SMALL_TABLES_H

#include "tables.h"

enum {
	INODES = 8, /* the root is one */
	FILES = 8,
	ROOM = 64,
};

static struct bench b;

static inline void begin(void)
{
	bench_init(&b, INODES, FILES);
}

static inline void end(void)
{
	bench_end(&b);
}

static inline int fd_of(uint64_t nodeid)
{
	return inode_table_get(b.inodes, nodeid)->fd;
}

static inline void release(uint32_t worker, uint64_t fh, uint64_t nodeid)
{
	struct open_file *file = file_table_get(b.files, fh, nodeid);

	CHECK(file);
	file_table_release(b.files, &b.reclaims[worker], file);
}

/* An inode that borrows its fd from the open file that created it. Return: its nodeid. */
static inline uint64_t create(uint32_t number, uint64_t *ret_fh, uint32_t *ret_slot)
{
	struct open_file *file = file_table_reserve(b.files, 0);
	int fd = fd_open(&b, number);
	struct inode *inode;
	bool used;

	*ret_slot = open_file_slot(b.files, file);
	inode = inode_table_insert(b.inodes, 0, key(number), fd, *ret_slot, NULL, &used);
	CHECK(inode && used);
	*ret_fh = file_table_publish(b.files, file, inode_nodeid(b.inodes, inode), fd, FILE_LENDS);
	return inode_nodeid(b.inodes, inode);
}

#endif
