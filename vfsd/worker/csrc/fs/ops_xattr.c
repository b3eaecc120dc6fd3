/* SPDX-License-Identifier: Apache-2.0 */
/*
 * SETXATTR, GETXATTR, LISTXATTR, REMOVEXATTR.
 *
 * The working directory is /proc/self/fd (fs_init), so the path "N" is the file that the
 * inode's fd N holds, of whatever type: one call, nothing opened, nothing resolved anew.
 *
 * POSIX ACLs are attributes with consequences. Unless the guest's kernel has agreed to enforce
 * them (FUSE_POSIX_ACL) they are hidden, since it would show modes that do not hold.
 *
 * The names of the guest are not the host's where the operator gave an xattrmap (xattrmap.h).
 *
 * A request that was in flight when its worker died (r->replayed) may have happened. "Exists
 * already" (XATTR_CREATE) then means that it did, and so does "no such attribute" for REMOVEXATTR.
 */
#include "worker/csrc/fs/file_capability.h"
#include "worker/csrc/fs/inode_fd.h"
#include "worker/csrc/fs/lease.h"
#include "worker/csrc/fs/ops.h"
#include "worker/csrc/fs/set_id.h"
#include "worker/csrc/host/identity.h"
#include "worker/csrc/host/proc_fd.h"
#include "worker/csrc/host/watchdog.h"
#include "worker/csrc/request/agreed.h"

#include <errno.h>
#include <linux/limits.h>
#include <string.h>
#include <sys/xattr.h>

static bool is_access_acl(const char *name)
{
	return !strcmp(name, "system.posix_acl_access");
}

static bool is_acl(const char *name)
{
	return is_access_acl(name) || !strcmp(name, "system.posix_acl_default");
}

static bool hides_acls(const struct fs *fs)
{
	return !(fs->session->flags & FUSE_POSIX_ACL);
}

/* What all four need. Return: 0 with the path to use in ret, or -errno. */
static int prepare(struct fs *fs, const struct inode *inode, char ret[static FD_NAME])
{
	int fd;

	if (!fs->policy.xattr)
		return -ENOSYS; /* the guest does not ask again */
	if (!inode)
		return -ESTALE;
	fd = inode_fd(fs, inode);
	if (fd < 0)
		return fd;
	proc_fd_name(fd, ret);
	return credentials_root(&fs->credentials);
}

/* The host's name of the guest's `name`. ACLs are hidden under either: a map that gives the host's
 * ACLs another name must not open what is closed. Return: 0 or -errno. */
static int host_name(const struct fs *fs, const char *name, char ret[static XATTRMAP_NAME])
{
	int err;

	if (!*name || strnlen(name, XATTR_NAME_MAX + 1) > XATTR_NAME_MAX)
		return -ERANGE;
	if (hides_acls(fs) && is_acl(name))
		return -EOPNOTSUPP;
	err = xattrmap_to_host(&fs->policy.xattrmap, name, ret);
	return !err && hides_acls(fs) && is_acl(ret) ? -EOPNOTSUPP : err;
}

/* The guest's name of the host's `name`, NULL if that is hidden. */
static const char *guest_name(const struct fs *fs, const char *name)
{
	const char *ret = xattrmap_to_guest(&fs->policy.xattrmap, name);

	return ret && hides_acls(fs) && (is_acl(name) || is_acl(ret)) ? NULL : ret;
}

/* The terminated string at the payload's start; NULL if there is none. */
static const char *payload_name(const struct request *r)
{
	return strnlen(r->payload, r->payload_len) < r->payload_len ? r->payload : NULL;
}

/* ---- reading ---- */

static int reply_size(struct request *r, ssize_t size)
{
	if (size < 0)
		return -errno;
	*REQUEST_REPLY(r, struct fuse_getxattr_out) =
		(struct fuse_getxattr_out){.size = (uint32_t)size};
	return (int)sizeof(struct fuse_getxattr_out);
}

static size_t room(const struct request *r, uint32_t asked)
{
	uint64_t size = asked < r->data_out_len ? asked : r->data_out_len;

	return size < XATTR_SIZE_MAX ? (size_t)size : XATTR_SIZE_MAX;
}

int op_getxattr(struct fs *fs, struct request *r)
{
	const struct inode *inode = inode_table_get(fs->inodes, r->in.nodeid);
	uint32_t size = REQUEST_ARG(r, struct fuse_getxattr_in)->size;
	const char *name = payload_name(r);
	char path[FD_NAME], host[XATTRMAP_NAME];
	ssize_t got;
	int err;

	if (!name)
		return -EINVAL;
	err = prepare(fs, inode, path);
	if (!err)
		err = host_name(fs, name, host);
	if (err) /* to read what must not be named is to find nothing */
		return err == -EPERM ? -ENODATA : err;
	if (!size)
		return reply_size(r, getxattr(path, host, NULL, 0));
	r->reply = fs->large_reply;
	/* With no room at all the call would be the question for the size. */
	got = room(r, size) ? getxattr(path, host, r->reply, room(r, size)) : (errno = ERANGE, -1);
	return got < 0 ? -errno : (int)got;
}

/* Make a list of `len` bytes the guest's: names may get shorter or go. Return: bytes left. */
static size_t translate_list(const struct fs *fs, char *list, size_t len)
{
	size_t kept = 0;

	for (size_t at = 0; at < len;) {
		size_t name_len = strlen(list + at) + 1;
		const char *name = guest_name(fs, list + at);

		if (name) {
			size_t guest_len = strlen(name) + 1;

			memmove(list + kept, name, guest_len);
			kept += guest_len;
		}
		at += name_len;
	}
	return kept;
}

int op_listxattr(struct fs *fs, struct request *r)
{
	const struct inode *inode = inode_table_get(fs->inodes, r->in.nodeid);
	uint32_t size = REQUEST_ARG(r, struct fuse_getxattr_in)->size;
	char path[FD_NAME];
	int err = prepare(fs, inode, path);
	ssize_t got;
	size_t len;

	if (err)
		return err;
	if (!size) /* with the names that are hidden: a size may be too large */
		return reply_size(r, listxattr(path, NULL, 0));
	r->reply = fs->large_reply;
	got = listxattr(path, (char *)r->reply, XATTR_LIST_MAX);
	if (got < 0)
		return -errno;
	len = translate_list(fs, (char *)r->reply, (size_t)got);
	return len > room(r, size) ? -ERANGE : (int)len;
}

/* ---- changing ---- */

/* The guest's kernel wants sgid gone with a new access ACL, as chmod would take it (FUSE 7.33). It
 * says so for a default ACL, too, which changes no mode. */
static int kill_sgid(struct fs *fs, const struct inode *inode, const char *path)
{
	struct statx st;
	int fd = inode_fd(fs, inode);
	int err = fd < 0 ? fd : identity_stat_fd(fd, &st);

	if (err || !(st.stx_mode & S_ISGID))
		return err;
	return fchmodat(fs->proc_self_fd, path, st.stx_mode & 07777 & ~(mode_t)S_ISGID, 0) < 0
		       ? -errno
		       : 0;
}

/* The argument is 16 bytes where SETXATTR_EXT was agreed, else 8; the table of ops knows 8. */
static int read_setxattr(const struct fs *fs, const struct request *r,
			 struct fuse_setxattr_in *ret_in, const char **ret_name,
			 const void **ret_value)
{
	uint32_t more = is_agreed(fs->session, &AGREED_SETXATTR)
				? sizeof(*ret_in) - FUSE_COMPAT_SETXATTR_IN_SIZE
				: 0;
	size_t rest, name_len;

	memset(ret_in, 0, sizeof(*ret_in));
	memcpy(ret_in, r->arg, FUSE_COMPAT_SETXATTR_IN_SIZE);
	if (r->payload_len < more)
		return -EINVAL;
	memcpy((uint8_t *)ret_in + FUSE_COMPAT_SETXATTR_IN_SIZE, r->payload, more);
	*ret_name = r->payload + more;
	rest = r->payload_len - more;
	name_len = strnlen(*ret_name, rest);
	if (name_len == rest)
		return -EINVAL;
	*ret_value = *ret_name + name_len + 1;
	if (ret_in->size > rest - name_len - 1)
		return -EINVAL;
	return ret_in->size > XATTR_SIZE_MAX ? -E2BIG : 0;
}

static int set_watched(struct fs *fs, const struct request *r, const char *path, const char *name,
		       const void *value, const struct fuse_setxattr_in *in)
{
	struct watchdog *dog = lease_watchdog(fs, r);

	watchdog_begin(dog);
	return watchdog_end(dog, setxattr(path, name, value, in->size, (int)in->flags));
}

static int remove_watched(struct fs *fs, const struct request *r, const char *path,
			  const char *name)
{
	struct watchdog *dog = lease_watchdog(fs, r);

	watchdog_begin(dog);
	return watchdog_end(dog, removexattr(path, name));
}

static int wait_for_delegation(struct fs *fs, struct request *r, const struct inode *inode)
{
	int fd = inode_fd(fs, inode);

	return fd < 0 ? fd : lease_wait_inode(r, fd);
}

int op_setxattr(struct fs *fs, struct request *r)
{
	const struct inode *inode = inode_table_get(fs->inodes, r->in.nodeid);
	struct fuse_setxattr_in in;
	const char *name;
	const void *value;
	char path[FD_NAME], host[XATTRMAP_NAME];
	int err = read_setxattr(fs, r, &in, &name, &value);

	if (!err)
		err = prepare(fs, inode, path);
	if (!err)
		err = host_name(fs, name, host);
	/* Without CAP_FSETID a new ACL takes the sgid bit away. */
	if (!err)
		err = credentials_fsetid(&fs->credentials, true);
	if (err)
		return err;
	do
		err = set_watched(fs, r, path, host, value, &in);
	while (err == -EINTR && !(err = wait_for_delegation(fs, r, inode)));
	if (err && !(err == -EEXIST && r->replayed))
		return err;
	file_capability_set(fs, host);
	if (is_access_acl(host)) /* it may take group execution away */
		set_id_note_mode(fs, S_ISGID);
	return in.setxattr_flags & FUSE_SETXATTR_ACL_KILL_SGID && is_access_acl(host)
		       ? kill_sgid(fs, inode, path)
		       : 0;
}

int op_removexattr(struct fs *fs, struct request *r)
{
	const struct inode *inode = inode_table_get(fs->inodes, r->in.nodeid);
	const char *name = payload_name(r);
	char path[FD_NAME], host[XATTRMAP_NAME];
	int err;

	if (!name)
		return -EINVAL;
	err = prepare(fs, inode, path);
	if (!err)
		err = host_name(fs, name, host);
	if (err)
		return err;
	do
		err = remove_watched(fs, r, path, host);
	while (err == -EINTR && !(err = wait_for_delegation(fs, r, inode)));
	return err == -ENODATA && r->replayed ? 0 : err;
}
