/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
/*
 * The ids that this worker acts with. The ids are switched when an op needs other ids, and stay
 * until the next switch. So no op may rely on the ids that the op before it used: each op asks for
 * what it needs, CAP_FSETID included, and fails if it does not get that. An op that works only on
 * open files (READ, FSYNC, …) runs with whatever ids are in force.
 *
 * Ops that create files act as the requesting user, so that the kernel handles ownership, quotas,
 * permission checks and setgid directories. Where the guest cannot report all groups that count,
 * such an op keeps CAP_DAC_OVERRIDE, and only the permission checks are left to the guest. Every
 * other op acts as root, because the guest's kernel has checked permissions (default_permissions).
 * All switches are raw system calls, which affect this thread only. The threads of the thread pool
 * are always root.
 *
 * Where the host's server refuses root what the server allows the file's owner (root_squash of
 * NFS), an op is run again with the requesting user as the stand-in for root: the op then does as
 * that user whatever it would do as root (as_requester.c).
 *
 * "Root" is the user that started the daemon, with all permitted capabilities in effect. With
 * CAP_SETUID and CAP_SETGID that user need not be uid 0 (AmbientCapabilities= of a service, a
 * container that keeps the user's id). The kernel changes the effective set only when an id becomes
 * 0 or leaves 0, so for such a user the worker changes the effective set itself. The guest's root
 * is uid 0 on the host, with all permitted capabilities. So is the guest's user that has the id of
 * the daemon's user.
 */
#ifndef VFSD_CREDENTIALS_H
#define VFSD_CREDENTIALS_H

#include "transport/csrc/types.h"

enum {
	SUPPLEMENTARY_GROUPS_MAX = 32,
};

#define CREDENTIALS_ANY_GROUP UINT32_MAX /* a group for credentials_set_id */

struct credentials {
	uint32_t uid, gid; /* the effective ids */
	uint32_t group_count;
	uint32_t groups[SUPPLEMENTARY_GROUPS_MAX];
	uint32_t umask;
	uint32_t root_uid, root_gid; /* the ids that this process started with */
	bool privileged;   /* may change ids: is uid 0, or has CAP_SETUID and CAP_SETGID */
	bool may_groups;   /* may set groups; if not, a requester's groups are ignored */
	bool may_fsetid;   /* CAP_FSETID is in the permitted set, and capset(2) works */
	bool fsetid;	   /* CAP_FSETID is in the effective set */
	bool may_override; /* CAP_DAC_OVERRIDE is in the permitted set, and capset(2) works */
	bool override;	   /* CAP_DAC_OVERRIDE is in effect for a user; root always has it */
	const struct requester *stand_in; /* acts in the place of root; NULL: root acts */
};

/* The user that a worker is to act as. */
struct requester {
	uint32_t uid, gid;
	const uint32_t *groups;
	uint32_t group_count;
	bool override; /* the guest's kernel has checked permissions: do not check again */
};

void credentials_init(struct credentials *c);

/*
 * A worker without privilege can act as one user only, the user that started the daemon; the
 * guest's root is that user. In a user namespace of its own such a worker is privileged, but the
 * kernel knows no other ids there. Return: `id` as it is on the host. Id 0 becomes the daemon's own
 * id if there is no privilege (SETATTR).
 */
uint32_t credentials_uid(const struct credentials *c, uint32_t id);
uint32_t credentials_gid(const struct credentials *c, uint32_t id);

/* Each returns 0 or -errno (-EPERM also for the id (uint32_t)-1, which cannot exist). */
int credentials_root(struct credentials *c) must_check;
/* From now on the worker acts as `who` wherever it would act as root, until this function is called
 * with NULL. `who` must stay valid until then. A stand-in does not get root's right to keep set-id
 * bits. */
int credentials_stand_in(struct credentials *c, const struct requester *who) must_check;
int credentials_user(struct credentials *c, const struct requester *who) must_check;
/* With CAP_FSETID in effect, writing, truncating and chown leave the suid and sgid bits alone. */
int credentials_fsetid(struct credentials *c, bool keep) must_check;
/* Like credentials_fsetid, for changes where the group of the process decides which bits the host's
 * kernel takes away (set_id.h). `kill` leaves the worker root in that group, without CAP_FSETID.
 * With CREDENTIALS_ANY_GROUP the group makes no difference. */
int credentials_set_id(struct credentials *c, bool kill, uint32_t group) must_check;
void credentials_umask(struct credentials *c, uint32_t mask);

/* Make a new thread root with all permitted capabilities; a new thread inherits the identity that
 * its creator acted with. Return: 0, and *ret for credentials_fsetid; or -errno: the thread's
 * identity is then undefined, so do not run requests on it. */
int credentials_thread_root(struct credentials *ret) must_check;

#endif
