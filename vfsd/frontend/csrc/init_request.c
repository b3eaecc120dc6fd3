/* SPDX-License-Identifier: Apache-2.0 */
#include "frontend/csrc/init_request.h"
#include "frontend/csrc/request_layout.h"

#include <unistd.h>

enum {
	/* Features that only /dev/fuse has, in flags. */
	ONLY_DEVICE = FUSE_SPLICE_WRITE | FUSE_SPLICE_MOVE | FUSE_SPLICE_READ,
	/* Features that only /dev/fuse has, in flags2. */
	ONLY_DEVICE_2 = (FUSE_HAS_EXPIRE_ONLY | FUSE_PASSTHROUGH | FUSE_HAS_RESEND |
			 FUSE_OVER_IO_URING | FUSE_REQUEST_TIMEOUT) >>
			32,

	DEFAULT_PAGES = 32, /* the kernel's value when the reply has none */
};

void init_request_mask(struct fuse_init_in *in, size_t len)
{
	if (len >= offsetof(struct fuse_init_in, flags) + sizeof(in->flags))
		in->flags &= ~(uint32_t)ONLY_DEVICE;
	if (len >= sizeof(*in))
		in->flags2 &= ~(uint32_t)ONLY_DEVICE_2;
}

const char *init_reply_clamp(struct fuse_out_header *reply, uint32_t len, uint32_t data_pages)
{
	struct fuse_init_out *out = (void *)(reply + 1);
	uint32_t bytes = data_pages * PAGE;
	uint32_t pages = bytes / (uint32_t)sysconf(_SC_PAGESIZE);
	uint32_t granted;

	if (reply->error)
		return "the back-end refuses FUSE_INIT";
	if (len < sizeof(*reply) + sizeof(*out))
		return "the reply to FUSE_INIT is too short";
	if (out->major != FUSE_KERNEL_VERSION)
		return "the back-end speaks another major version of FUSE";
	granted = out->flags & FUSE_MAX_PAGES ? out->max_pages : DEFAULT_PAGES;
	out->flags = (out->flags & ~(uint32_t)ONLY_DEVICE) | FUSE_MAX_PAGES;
	out->flags2 &= ~(uint32_t)ONLY_DEVICE_2;
	out->max_pages = (uint16_t)(granted < pages ? granted : pages);
	if (out->max_write > bytes)
		out->max_write = bytes;
	return NULL;
}
