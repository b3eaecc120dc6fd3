/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
/*
 * FUSE_INIT on its way to the back-end and back: the back-end must see what a virtio-fs guest would
 * send, and the kernel must not send requests that are larger than a slot.
 */
#ifndef VFSD_INIT_REQUEST_H
#define VFSD_INIT_REQUEST_H

#include "transport/csrc/types.h"
#include "transport/csrc/fuse_newer.h"

/* Remove the features that /dev/fuse offers and virtio-fs cannot have. `len`: bytes of the
 * argument. */
void init_request_mask(struct fuse_init_in *in, size_t len);

/* Limit one request to `data_pages` pages of 4 KiB in the reply (of `len` bytes, header included).
 * Return: NULL, or what is wrong with the reply. */
const char *init_reply_clamp(struct fuse_out_header *reply, uint32_t len, uint32_t data_pages);

#endif
