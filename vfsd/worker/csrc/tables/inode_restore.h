/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
/* Inodes come back into a new table, by the nodeids that they had in the lost table
 * (session_image.c).
 * All of this is for a process that has the new table for itself. */
#ifndef VFSD_INODE_RESTORE_H
#define VFSD_INODE_RESTORE_H

#include "worker/csrc/tables/inode.h"

/* Is this the table of a mapping that was laid out for `capacity` inodes, so that a walk through it
 * stays within the mapping? It may hold anything else. */
bool inode_restore_knows_layout(const struct inode_table *t, uint32_t capacity);

/* The largest generation of any slot, in use or not. */
uint32_t inode_restore_generation(const struct inode_table *t);

/*
 * Enter an inode under `nodeid`, with its key, fd, handle, birth time, past and lookup count from
 * `values`. `parent`: the directory where it was found, or NULL. Return: the inode, or NULL if the
 * table has no such nodeid or the slot is in use.
 */
struct inode *inode_restore(struct inode_table *t, uint32_t worker, uint64_t nodeid,
			    const struct inode *values, const struct inode *parent);

/* Called after the last inode_restore(): inodes that are entered from now on have generations above
 * `generation`. */
void inode_restore_end(struct inode_table *t, uint32_t generation);

#endif
