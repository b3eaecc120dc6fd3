/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
/* The state of a restoration, and how an inode of the image comes into the table. The theory is in
 * session_restore.c. */
#ifndef VFSD_SESSION_INODES_H
#define VFSD_SESSION_INODES_H

#include "worker/csrc/fs/fs.h"
#include "worker/csrc/fs/restore_report.h"
#include "worker/csrc/tables/session_image.h"

struct statx;

/* A node of the image that is looked for by its directory. They are sorted by directory and inode
 * number. */
struct wanted {
	uint64_t ino;
	uint32_t parent; /* slot */
	uint32_t index;	 /* in the image */
	bool is_found;
};

struct restore {
	struct fs *fs;
	struct session_image image;
	struct image_session session;
	struct restore_report *report;
	uint64_t found; /* inodes */
	struct wanted *wanted;
	uint64_t wanted_count;
	uint64_t *directories; /* nodeids of directories that are to be listed: a queue */
	uint64_t directory_count;
	uint8_t *buffer; /* DIR_BUFFER bytes */
	int32_t *kept;	 /* by their number in the former sandbox: fds that have come from there */
	uint32_t kept_count;
};

/* Count a loss, and name the first ones. */
void session_note_loss(struct restore *r, const struct restore_loss *loss);
/* The same for an inode that is in the table. NULL: the loss of the inode was noted, and this loss
 * is only counted. `error`: -errno. */
void session_note_loss_of(struct restore *r, const struct inode *inode, enum loss_kind kind,
			  int error);

/* Enter an inode whose handle is all that is needed. Return: false if it must be looked for. */
bool session_inode_by_handle(struct restore *r, const struct image_node *node);
/* The fd that has come from the former sandbox, where it had the number `fd` - 1. Return: -1 if
 * none has come. session_kept_fd_take gives it to the caller. */
int session_kept_fd(const struct restore *r, uint32_t fd);
int session_kept_fd_take(struct restore *r, uint32_t fd);
/* Enter an inode whose fd has come from the former sandbox. Return: false if none has come, or if
 * the table does not take the inode. */
bool session_inode_kept(struct restore *r, const struct image_node *node);
/* `fd` is this node's file: it becomes the inode's or is closed. Return: 0 or -errno. */
int session_inode_by_fd(struct restore *r, const struct image_node *node, int fd,
			const struct statx *st, const struct inode *parent) must_check;

#endif
