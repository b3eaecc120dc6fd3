/* SPDX-License-Identifier: Apache-2.0 */
/*
 * SETXATTR, GETXATTR, LISTXATTR, REMOVEXATTR.
 *
 * The working directory is /proc/self/fd (fs_init), so the path "N" is the file of any type that
 * the inode's fd N holds: the op is a single call, which opens no file and resolves no path again.
 *
 * POSIX ACLs are attributes that the kernel acts on. Unless the guest's kernel has agreed to
 * enforce ACLs (FUSE_POSIX_ACL) they are hidden, since the guest would show modes that do not hold.
 *
 * The guest's names differ from the host's if the operator gave an xattrmap (xattrmap.h).
 *
 * A request that was in flight when its worker died (r->replayed) may have been done already. For
 * such a request "exists already" (XATTR_CREATE) means that it was done, and so does "no such
 * attribute" of REMOVEXATTR.
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

/* The preparation of all four ops. Return: 0 with the path to use in ret, or -errno. */
static int prepare(struct fs *fs, const struct inode *inode, char ret[static FD_NAME])
{
	int fd;

	if (!fs->policy.xattr)
		return -ENOSYS; /* after ENOSYS the guest does not ask again */
	if (!inode)
		return -ESTALE;
	fd = inode_fd(fs, inode);
	if (fd < 0)
		return fd;
	proc_fd_name(fd, ret);
	return credentials_root(&fs->credentials);
}

/* Get the host's name of the guest's `name`. An ACL is hidden under both names: a map that renames
 * the host's ACLs must not make them accessible. Return: 0 or -errno. */
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

/* The guest's name of the host's `name`; NULL if the attribute is hidden. */
static const char *guest_name(const struct fs *fs, const char *name)
{
	const char *ret = xattrmap_to_guest(&fs->policy.xattrmap, name);

	return ret && hides_acls(fs) && (is_acl(name) || is_acl(ret)) ? NULL : ret;
}

/* What an op on one attribute works on. */
struct attribute {
	const struct inode *inode;
	char path[FD_NAME];	  /* the file, in the working directory */
	char name[XATTRMAP_NAME]; /* the name on the host */
};

/* Prepare an op on the guest's attribute `name` (NULL: the request has no terminated name). Return:
 * 0 or -errno; -EPERM if the map forbids the name. */
static int find_attribute(struct fs *fs, const struct request *r, const char *name,
			  struct attribute *ret)
{
	int err;

	if (!name)
		return -EINVAL;
	ret->inode = inode_table_get(fs->inodes, r->in.nodeid);
	err = prepare(fs, ret->inode, ret->path);
	return err ? err : host_name(fs, name, ret->name);
}

/* The terminated string at the beginning of the payload; NULL if it is not terminated. */
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
	uint32_t size = REQUEST_ARG(r, struct fuse_getxattr_in)->size;
	struct attribute a;
	int err = find_attribute(fs, r, payload_name(r), &a);
	ssize_t got;

	if (err) /* reading a forbidden name finds nothing */
		return err == -EPERM ? -ENODATA : err;
	if (!size)
		return reply_size(r, getxattr(a.path, a.name, NULL, 0));
	r->reply = fs->large_reply;
	/* A call with a size of 0 would ask for the size of the value. */
	got = room(r, size) ? getxattr(a.path, a.name, r->reply, room(r, size))
			    : (errno = ERANGE, -1);
	return got < 0 ? -errno : (int)got;
}

/* Translate a list of `len` bytes for the guest: names may get shorter or be dropped. Return: the
 * bytes that are left. */
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
	if (!size) /* the size counts hidden names also: it may be too large */
		return reply_size(r, listxattr(path, NULL, 0));
	r->reply = fs->large_reply;
	got = listxattr(path, (char *)r->reply, XATTR_LIST_MAX);
	if (got < 0)
		return -errno;
	len = translate_list(fs, (char *)r->reply, (size_t)got);
	return len > room(r, size) ? -ERANGE : (int)len;
}

/* ---- changing ---- */

/* The guest's kernel wants sgid removed with a new access ACL, as chmod would remove it (FUSE
 * 7.33). The guest sends the same flag for a default ACL, which changes no mode. */
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

/* The argument has 16 bytes if SETXATTR_EXT was agreed on, otherwise 8; the table of ops has 8. */
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

static int set_watched(struct fs *fs, const struct request *r, const struct attribute *a,
		       const void *value, const struct fuse_setxattr_in *in)
{
	struct watchdog *dog = lease_watchdog(fs, r);

	watchdog_begin(dog);
	return watchdog_end(dog, setxattr(a->path, a->name, value, in->size, (int)in->flags));
}

static int remove_watched(struct fs *fs, const struct request *r, const struct attribute *a)
{
	struct watchdog *dog = lease_watchdog(fs, r);

	watchdog_begin(dog);
	return watchdog_end(dog, removexattr(a->path, a->name));
}

static int wait_for_delegation(struct fs *fs, struct request *r, const struct inode *inode)
{
	int fd = inode_fd(fs, inode);

	return fd < 0 ? fd : lease_wait_inode(r, fd);
}

int op_setxattr(struct fs *fs, struct request *r)
{
	struct fuse_setxattr_in in;
	struct attribute a;
	const char *name;
	const void *value;
	int err = read_setxattr(fs, r, &in, &name, &value);

	if (!err)
		err = find_attribute(fs, r, name, &a);
	/* Without CAP_FSETID a new ACL removes the sgid bit. */
	if (!err)
		err = credentials_fsetid(&fs->credentials, true);
	if (err)
		return err;
	do
		err = set_watched(fs, r, &a, value, &in);
	while (err == -EINTR && !(err = wait_for_delegation(fs, r, a.inode)));
	if (err && !(err == -EEXIST && r->replayed))
		return err;
	file_capability_set(fs, a.name);
	if (is_access_acl(a.name)) /* the ACL may remove group execution */
		set_id_note_mode(fs, S_ISGID);
	return in.setxattr_flags & FUSE_SETXATTR_ACL_KILL_SGID && is_access_acl(a.name)
		       ? kill_sgid(fs, a.inode, a.path)
		       : 0;
}

int op_removexattr(struct fs *fs, struct request *r)
{
	struct attribute a;
	int err = find_attribute(fs, r, payload_name(r), &a);

	if (err)
		return err;
	do
		err = remove_watched(fs, r, &a);
	while (err == -EINTR && !(err = wait_for_delegation(fs, r, a.inode)));
	return err == -ENODATA && r->replayed ? 0 : err;
}
