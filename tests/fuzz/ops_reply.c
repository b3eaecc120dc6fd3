/* SPDX-License-Identifier: Apache-2.0 */
#include "ops_fs.h"
#include "ops_share.h"

#include <stddef.h>
#include <sys/stat.h>

enum {
	ERRNO_MAX = 4095,
};

static void check_attr(const struct fuse_attr *attr)
{
	share_check_ino(attr->ino);
	CHECK(attr->mode & S_IFMT);
}

static uint32_t mode_of(uint64_t nodeid)
{
	const struct inode *inode = inode_table_get(fs->inodes, nodeid);

	CHECK(inode);
	return inode->mode;
}

static void take_entry(const uint8_t *reply)
{
	struct fuse_entry_out entry;

	memcpy(&entry, reply, sizeof(entry));
	if (!entry.nodeid)
		return; /* the name does not exist */
	check_attr(&entry.attr);
	CHECK_EQUAL(mode_of(entry.nodeid) & S_IFMT, entry.attr.mode & S_IFMT);
	know_node(entry.nodeid);
}

/* What is open is what replies have named, and is a regular file or a directory. */
static void take_opened(uint64_t nodeid, const uint8_t *reply, uint32_t type)
{
	struct fuse_open_out out;
	struct open_file *file;
	struct stat st;

	memcpy(&out, reply, sizeof(out));
	file = file_table_get(fs->files, out.fh, nodeid);
	CHECK(file && !fstat(file->fd, &st));
	CHECK_EQUAL(st.st_mode & S_IFMT, type);
	share_check_ino(st.st_ino);
	know_file(out.fh, nodeid);
}

static void take_created(const uint8_t *reply)
{
	uint64_t nodeid;

	take_entry(reply);
	memcpy(&nodeid, reply, sizeof(nodeid));
	take_opened(nodeid, reply + sizeof(struct fuse_entry_out), S_IFREG);
}

static void take_dirents(const uint8_t *reply, uint32_t len, bool plus)
{
	uint32_t head = plus ? sizeof(struct fuse_entry_out) : 0, at = 0;

	while (at < len) {
		struct fuse_dirent dirent;
		uint32_t size;

		CHECK(len - at >= head + offsetof(struct fuse_dirent, name));
		memcpy(&dirent, reply + at + head, offsetof(struct fuse_dirent, name));
		size = head + (uint32_t)FUSE_DIRENT_ALIGN(offsetof(struct fuse_dirent, name) +
							  dirent.namelen);
		CHECK(dirent.namelen && size <= len - at);
		CHECK(!memchr(reply + at + head + offsetof(struct fuse_dirent, name), '/',
			      dirent.namelen));
		if (plus)
			take_entry(reply + at);
		at += size;
	}
}

static void take_reply(const struct fuse_in_header *in, const uint8_t *reply, uint32_t len)
{
	struct fuse_attr_out attr;

	switch (in->opcode) {
	case FUSE_LOOKUP:
	case FUSE_MKNOD:
	case FUSE_MKDIR:
	case FUSE_SYMLINK:
	case FUSE_LINK:
		take_entry(reply);
		break;
	case FUSE_CREATE:
	case FUSE_TMPFILE:
		take_created(reply);
		break;
	case FUSE_OPEN:
		take_opened(in->nodeid, reply, S_IFREG);
		break;
	case FUSE_OPENDIR:
		take_opened(in->nodeid, reply, S_IFDIR);
		break;
	case FUSE_READDIR:
	case FUSE_READDIRPLUS:
		take_dirents(reply, len, in->opcode == FUSE_READDIRPLUS);
		break;
	case FUSE_GETATTR:
	case FUSE_SETATTR:
		memcpy(&attr, reply, sizeof(attr));
		check_attr(&attr.attr);
	}
}

void check_reply(const struct fuse_in_header *in, const uint8_t *reply, uint32_t len, uint32_t room)
{
	struct fuse_out_header out;

	CHECK(len <= room);
	if (fuse_op(in->opcode)->flags & OP_NO_REPLY || room < sizeof(out)) {
		CHECK_EQUAL(len, 0);
		return;
	}
	memcpy(&out, reply, sizeof(out));
	CHECK_EQUAL(out.len, len);
	CHECK_EQUAL(out.unique, in->unique);
	CHECK(out.error <= 0 && out.error >= -ERRNO_MAX);
	if (out.error)
		CHECK_EQUAL(len, sizeof(out));
	else
		take_reply(in, reply + sizeof(out), len - (uint32_t)sizeof(out));
}
