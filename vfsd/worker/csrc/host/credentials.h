/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
/*
 * The ids this worker acts with. They are switched when an op needs others and stay until then, so
 * no op may rely on what ran before it: it asks for what it needs, CAP_FSETID included, and fails
 * if it does not get it. What has only to do with open files (READ, FSYNC, …) runs as anybody.
 *
 * Ops that create files act as the requesting user (ownership, quotas, permission checks, setgid
 * directories are then the kernel's). Where the guest cannot tell all groups that count they keep
 * CAP_DAC_OVERRIDE, and only the permission checks are the guest's. Everything else acts as root,
 * because the guest's kernel has checked permissions (default_permissions). All of it by raw system
 * calls, which concern this thread only. The thread pool's threads are always root.
 *
 * Where the host's server refuses root what it allows the file's owner (root_squash of NFS), an op
 * is done again with the requesting user as the stand-in for root: whatever it would do as root it
 * does as that user then (as_requester.c).
 *
 * "Root" is whoever started the daemon, with all permitted capabilities in effect. With CAP_SETUID
 * and CAP_SETGID that may be another user than uid 0 (AmbientCapabilities= of a service, a
 * container that keeps the user's id). The kernel changes the effective set only where an id
 * becomes 0 or leaves it, so there it is changed here as well. The guest's root is uid 0 on the
 * host, with all that is permitted; so is the guest's user with the id of the daemon's.
 */
#ifndef VFSD_CREDENTIALS_H
#define VFSD_CREDENTIALS_H

#include "transport/csrc/types.h"

enum {
	SUPPLEMENTARY_GROUPS_MAX = 32,
};

#define CREDENTIALS_ANY_GROUP UINT32_MAX /* for credentials_set_id */

struct credentials {
	uint32_t uid, gid; /* effective */
	uint32_t group_count;
	uint32_t groups[SUPPLEMENTARY_GROUPS_MAX];
	uint32_t umask;
	uint32_t root_uid, root_gid; /* what this process started with */
	bool privileged;	     /* may change ids: uid 0, or by capability */
	bool may_groups;   /* … and supplementary groups; else those asked for are ignored */
	bool may_fsetid;   /* CAP_FSETID is in the permitted set, and capset(2) works */
	bool fsetid;	   /* … and in the effective one */
	bool may_override; /* CAP_DAC_OVERRIDE likewise … */
	bool override;	   /* … while acting as a user; root always has it */
	const struct requester *stand_in; /* acts where root would; NULL: root itself does */
};

/* Whom to act as. */
struct requester {
	uint32_t uid, gid;
	const uint32_t *groups;
	uint32_t group_count;
	bool override; /* the guest's kernel has checked permissions: they are not checked again */
};

void credentials_init(struct credentials *c);

/*
 * Without privilege there is one user, whoever started us; guest root is that user. In a user
 * namespace of its own such a worker is privileged, but the kernel knows no other ids there.
 * Return: `id` as it is on the host, for one of its own the user's (SETATTR).
 */
uint32_t credentials_uid(const struct credentials *c, uint32_t id);
uint32_t credentials_gid(const struct credentials *c, uint32_t id);

/* Each: return 0 or -errno (-EPERM also for ids that cannot be: (uint32_t)-1). */
int credentials_root(struct credentials *c) must_check;
/* From now on `who` acts where root would, until NULL is given; it outlives that. What root may do
 * to keep set-id bits is not for a stand-in. */
int credentials_stand_in(struct credentials *c, const struct requester *who) must_check;
int credentials_user(struct credentials *c, const struct requester *who) must_check;
/* With CAP_FSETID writing, truncating and chown leave suid and sgid bits alone. */
int credentials_fsetid(struct credentials *c, bool keep) must_check;
/* The same, where the host's kernel decides by a group what goes (set_id.h): `kill` leaves root in
 * that group, without CAP_FSETID. With CREDENTIALS_ANY_GROUP no group decides. */
int credentials_set_id(struct credentials *c, bool kill, uint32_t group) must_check;
void credentials_umask(struct credentials *c, uint32_t mask);

/* For a new thread, which inherits whatever its creator acted as: root, all permitted capabilities.
 * Return: 0 and *ret for credentials_fsetid, or -errno: it acts as nobody knows whom. */
int credentials_thread_root(struct credentials *ret) must_check;

#endif
