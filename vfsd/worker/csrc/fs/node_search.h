/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
/* The inodes of a lost session are found again. The theory is in node_search.c. */
#ifndef VFSD_NODE_SEARCH_H
#define VFSD_NODE_SEARCH_H

#include "worker/csrc/fs/fs.h"
#include "worker/csrc/fs/restore_report.h"
#include "worker/csrc/tables/session_image.h"

/*
 * Enter the nodes of `image` in the empty inode table of `fs`, under their nodeids. What cannot be
 * found is left out, and counted in `report`. Root acts. Return: 0 or -ENOMEM.
 */
int node_search(struct fs *fs, const struct session_image *image,
		struct restore_report *report) must_check;

#endif
