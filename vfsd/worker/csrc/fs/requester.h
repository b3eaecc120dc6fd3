/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
/* Acting as the user of the guest that sent a request: translated ids, groups, umask. */
#ifndef VFSD_REQUESTER_H
#define VFSD_REQUESTER_H

#include "worker/csrc/fs/fs.h"

/* Act as the requesting user, with `umask` if the guest leaves the umask to the daemon. */
int requester_act(struct fs *fs, const struct request *r, uint32_t umask) must_check;
/* Act as the requesting user to find out what that user may do (ACCESS). */
int requester_act_checked(struct fs *fs, const struct request *r) must_check;
/* Like requester_act_checked, with the host's group `gid` as the only supplementary group. */
int requester_act_as_member(struct fs *fs, const struct request *r, uint32_t gid) must_check;
/* Note that the host does not let this worker act for these ids of the guest. The first such note
 * of a worker is logged. */
void requester_note_refusal(struct fs *fs, uint32_t uid, uint32_t gid);
/* Called before a file of `mode` is created: the guest's root keeps the sgid that its kernel
 * allowed; any other user must be in the group, even a user that is root on the host. */
int requester_keep_sgid(struct fs *fs, const struct request *r, uint32_t mode) must_check;

#endif
