/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
/*
 * Which fields of a request may be read, and which fields of a reply may be set, in the session
 * that INIT has agreed on.
 *
 * FUSE extends its structures in place: a field was padding before the minor version that named it,
 * and stays padding where its INIT flag was not agreed. Guests do not clear padding: such a field
 * may hold anything. So a field that came after FUSE 7.27, the oldest protocol that is served
 * (init.py), is read or set only where its row here allows it. Opcodes have no row: an opcode has
 * the same meaning in every minor version.
 */
#ifndef VFSD_AGREED_H
#define VFSD_AGREED_H

#include "worker/csrc/tables/worker_table.h"

struct agreed_row {
	uint32_t since; /* the minor version that introduced the field */
	uint64_t flags; /* one of these INIT flags must be agreed; 0: the minor version is enough */
};

/* fuse_in_header.total_extlen, and the extension area that it measures. */
static const struct agreed_row AGREED_EXTENSIONS = {38, FUSE_SECURITY_CTX | FUSE_CREATE_SUPP_GROUP};
/* FUSE_EXT_GROUPS in the extension area. */
static const struct agreed_row AGREED_GROUPS = {38, FUSE_CREATE_SUPP_GROUP};
/* Security labels: in the extension area; before 7.38 after the names, in requests that create a
 * file. */
static const struct agreed_row AGREED_LABELS = {36, FUSE_SECURITY_CTX};
/* The second half of fuse_setxattr_in. */
static const struct agreed_row AGREED_SETXATTR = {33, FUSE_SETXATTR_EXT};
/* open_flags of fuse_open_in and fuse_create_in, FATTR_KILL_SUIDGID. */
static const struct agreed_row AGREED_KILLPRIV = {33, FUSE_HANDLE_KILLPRIV_V2};
/* FUSE_WRITE_KILL_SUIDGID, which Linux sends even if no INIT flag for it was agreed. */
static const struct agreed_row AGREED_WRITE_KILL = {31, 0};
/* umask of fuse_create_in, fuse_mkdir_in and fuse_mknod_in. */
static const struct agreed_row AGREED_UMASK = {12, FUSE_DONT_MASK};
/* FUSE_ATTR_SUBMOUNT in the replies. */
static const struct agreed_row AGREED_SUBMOUNTS = {32, FUSE_SUBMOUNTS};
/* open_flags of fuse_open_out. */
static const struct agreed_row AGREED_CACHE_DIR = {28, 0};
static const struct agreed_row AGREED_NOFLUSH = {35, 0};
static const struct agreed_row AGREED_PARALLEL_WRITES = {38, 0};

/* Is the guest Linux? Only Linux offers to decide by itself where READDIRPLUS pays. */
static inline bool is_linux(const struct fuse_session *session)
{
	return session->offered & FUSE_READDIRPLUS_AUTO;
}

static inline bool is_agreed(const struct fuse_session *session, const struct agreed_row *row)
{
	return session->minor >= row->since && (!row->flags || session->flags & row->flags);
}

/* Which of the FOPEN_* in `flags` the guest knows. */
static inline uint32_t agreed_open_flags(const struct fuse_session *session, uint32_t flags)
{
	if (!is_agreed(session, &AGREED_CACHE_DIR))
		flags &= ~(uint32_t)FOPEN_CACHE_DIR;
	if (!is_agreed(session, &AGREED_NOFLUSH))
		flags &= ~(uint32_t)FOPEN_NOFLUSH;
	if (!is_agreed(session, &AGREED_PARALLEL_WRITES))
		flags &= ~(uint32_t)FOPEN_PARALLEL_DIRECT_WRITES;
	return flags;
}

#endif
