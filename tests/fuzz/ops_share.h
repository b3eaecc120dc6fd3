/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The directory that the ops work on: it lies on a tmpfs that is mounted nowhere, has the same few
 * files whenever an input begins, and is next to a directory that must not be reached from it.
 */
#ifndef VFSD_FUZZ_OPS_SHARE_H
#define VFSD_FUZZ_OPS_SHARE_H

#include <stdint.h>

/* Make the tmpfs, once. Return: its fd; the share is its directory "share". */
int share_make(void);
/* Empty the share and fill it again. */
void share_restore(void);

/* Check that no op has read, written or moved what is beside the share. */
void share_check_beside(void);
/* Check that no file beside the share has this inode number. */
void share_check_ino(uint64_t ino);

#endif
