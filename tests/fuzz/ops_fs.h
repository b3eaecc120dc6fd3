/* SPDX-License-Identifier: Apache-2.0 */
/* The file system of this process whose ops are fuzzed, and what its guest knows of files. */
#ifndef VFSD_FUZZ_OPS_FS_H
#define VFSD_FUZZ_OPS_FS_H

#include "fs_setup.h"
#include "fuzz.h"

enum {
	FDS_MAX = 72,
};

/* The first bytes of an input: what was agreed at INIT and what the operator wants. */
struct header {
	uint16_t policy; /* enum policy_bit */
	uint8_t minor;
	uint8_t agreed; /* enum agreed_bit */
};

struct opened {
	uint64_t fh;
	uint64_t nodeid;
};

extern struct fs *fs; /* NULL before make_fs() */

void make_fs(void);
void set_policy(const struct header *header);
/* Begin a session as INIT does; the guest knows the root alone. */
void begin_session(const struct header *header);

void know_node(uint64_t nodeid);
void know_file(uint64_t fh, uint64_t nodeid);
uint64_t choose_node(struct input *in);
struct opened choose_file(struct input *in);

/* Check a reply, and note the nodeids and handles in it. `len`: the used length. */
void check_reply(const struct fuse_in_header *in, const uint8_t *reply, uint32_t len,
		 uint32_t room);

#endif
