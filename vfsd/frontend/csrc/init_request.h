/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
/*
 * FUSE_INIT on its way through: the back-end is to see what a virtio-fs guest would send, the
 * kernel is to grant itself no more than a slot holds.
 */
#ifndef VFSD_INIT_REQUEST_H
#define VFSD_INIT_REQUEST_H

#include "transport/csrc/types.h"
#include "transport/csrc/fuse_newer.h"

/* Take away what /dev/fuse offers and virtio-fs cannot do. `len`: bytes of the argument. */
void init_request_mask(struct fuse_init_in *in, size_t len);

/* Bound the reply (of `len` bytes, header included) to `data_pages` of 4 KiB for one request.
 * Return: NULL, or what is wrong with it. */
const char *init_reply_clamp(struct fuse_out_header *reply, uint32_t len, uint32_t data_pages);

#endif
