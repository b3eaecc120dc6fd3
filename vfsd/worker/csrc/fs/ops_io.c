/* SPDX-License-Identifier: Apache-2.0 */
/*
 * READ, WRITE, FSYNC, FSYNCDIR, SYNCFS, FALLOCATE, COPY_FILE_RANGE.
 *
 * Data goes between the file and guest pages without a copy. What may wait for storage leaves the
 * loop: a read that the page cache cannot answer (RWF_NOWAIT finds that out), direct and
 * synchronous I/O, and every op that flushes or moves much data.
 *
 * Appends. A WRITE of an O_APPEND file goes to the end of the file as the host sees it at that
 * moment (RWF_APPEND), so several writers, among them other virtual machines, do not overwrite each
 * other. A WRITE of data that the guest's page cache writes back already has its offset. An append
 * is the only WRITE that must not happen twice: the size before the append is noted, and a worker
 * that takes over checks how much of the data is in the file. (A fatal signal ends a write between
 * two pages.)
 */
#include "worker/csrc/fs/entry.h"
#include "worker/csrc/fs/file_capability.h"
#include "worker/csrc/fs/keep_cache.h"
#include "worker/csrc/fs/ops.h"
#include "worker/csrc/fs/set_id.h"
#include "worker/csrc/fs/unknown_file.h"
#include "worker/csrc/request/agreed.h"
#include "worker/csrc/request/intent.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#ifndef RWF_APPEND
#define RWF_APPEND 0x10
#endif

/*
 * The guest's offsets have 64 bits, the host's 63. preadv2(2) and pwritev2(2) take an offset of all
 * ones as "the position of the fd", and so would read even from an eventfd or a socket. The calls
 * without a "2", and the calls of the other ops, refuse all negative offsets themselves.
 */
static bool is_offset(uint64_t offset)
{
	return offset <= INT64_MAX;
}

/* ---- READ ---- */

enum {
	READ_MAX = 1 << 30, /* of one READ, because an op returns an int */
};

/* Read on from where the loop stopped; data_out has the segments that are not yet filled. */
static int run_read(struct request *r)
{
	uint64_t offset = REQUEST_ARG(r, struct fuse_read_in)->offset + r->done_bytes;
	ssize_t got = preadv(r->fd, r->data_out, (int)r->data_out_count, (off_t)offset);

	if (got < 0)
		return r->done_bytes ? (int)r->done_bytes : -errno;
	return (int)r->done_bytes + (int)got;
}

/*
 * Read what is in the page cache. A short read means the end of the file or the end of the cached
 * part; only the next read shows which. Return: 1 if the reply is complete (r->done_bytes bytes), 0
 * if the rest must wait for storage, or -errno.
 */
static int read_cached(struct request *r, uint64_t offset)
{
	while (r->data_out_count) {
		ssize_t got = preadv2(r->fd, r->data_out, (int)r->data_out_count, (off_t)offset,
				      RWF_NOWAIT);

		if (got < 0 && (errno == EAGAIN || errno == EOPNOTSUPP))
			return errno == EAGAIN ? 0 : -EOPNOTSUPP;
		if (got < 0)
			return r->done_bytes ? 1 : -errno;
		if (!got)
			break;
		r->done_bytes += (uint64_t)got;
		offset += (uint64_t)got;
		r->data_out_count = iovec_advance(&r->data_out, r->data_out_count, (uint64_t)got);
	}
	return 1;
}

/* Called once per open file. */
static __attribute__((noinline, cold)) void note_read(struct fs *fs, struct open_file *file)
{
	const struct inode *inode = inode_table_get(fs->inodes, file->nodeid);

	if (inode) {
		inode_table_note(inode, INODE_WAS_READ);
		keep_cache_at_read(inode, file);
	}
	__atomic_or_fetch(&file->flags, FILE_WAS_READ, __ATOMIC_RELAXED);
}

int op_read(struct fs *fs, struct request *r)
{
	const struct fuse_read_in *in = REQUEST_ARG(r, struct fuse_read_in);
	struct open_file *file = file_table_get_regular(fs->files, in->fh, r->in.nodeid);
	uint32_t size = in->size < READ_MAX ? in->size : READ_MAX;
	int done;

	if (!file)
		return unknown_file(fs, r->in.nodeid);
	if (!is_offset(in->offset))
		return -EINVAL;
	r->data_out_count = iovec_truncate(r->data_out, r->data_out_count, size);
	r->fd = file->fd;
	r->file = file;
	if (!(file->flags & FILE_WAS_READ) && !(in->flags & O_DIRECT))
		note_read(fs, file);
	if (file->flags & FILE_IN_MEMORY)
		return run_read(r);
	if (file->flags & FILE_DIRECT && !(file->flags & FILE_NO_NOWAIT))
		return request_defer_read(r, in->offset, run_read);
	if (file->flags & FILE_NO_NOWAIT)
		return request_defer(r, run_read);
	done = read_cached(r, in->offset);
	if (done == -EOPNOTSUPP)
		__atomic_or_fetch(&file->flags, FILE_NO_NOWAIT, __ATOMIC_RELAXED);
	else if (done)
		return done < 0 ? done : (int)r->done_bytes;
	return request_defer(r, run_read);
}

/* ---- WRITE ---- */

static int write_reply(struct request *r, ssize_t written)
{
	if (written < 0)
		return -errno;
	*REQUEST_REPLY(r, struct fuse_write_out) =
		(struct fuse_write_out){.size = (uint32_t)written};
	return (int)sizeof(struct fuse_write_out);
}

/*
 * Linux sends with each WRITE the current flags of its file, the access mode among them; fcntl(2)
 * can change these flags. If a guest sends no flags (Hermit, Zephyr), the flags of its OPEN count.
 */
static bool is_append(const struct fuse_write_in *in, const struct open_file *file)
{
	if (in->write_flags & FUSE_WRITE_CACHE)
		return false;
	return in->flags & O_APPEND || (file->flags & FILE_APPENDS && !(in->flags & O_ACCMODE));
}

/* Write the rest of the request. If done_bytes is not 0, a part of the append is already in the
 * file. */
static int do_write(struct request *r)
{
	const struct fuse_write_in *in = REQUEST_ARG(r, struct fuse_write_in);
	ssize_t written = pwritev2(r->fd, r->data_in, (int)r->data_in_count, (off_t)in->offset,
				   r->appends ? RWF_APPEND : 0);

	if (written < 0 && r->done_bytes)
		written = 0;
	return write_reply(r, written < 0 ? written : written + (ssize_t)r->done_bytes);
}

enum {
	APPEND_PAGE = 4096, /* or a part of a page */
};

struct append_note {
	uint64_t size; /* of the file before the append */
};

/* Return: the number of bytes of the segment that are in the file at `offset`. */
static uint64_t equal_bytes(int fd, const struct iovec *piece, uint64_t offset)
{
	const uint8_t *data = piece->iov_base;
	uint8_t buffer[APPEND_PAGE];
	uint64_t same = 0;

	while (same < piece->iov_len) {
		uint64_t left = piece->iov_len - same;
		size_t want = left < sizeof(buffer) ? left : sizeof(buffer);
		ssize_t got = pread(fd, buffer, want, (off_t)(offset + same));

		for (ssize_t i = 0; i < got; i++)
			if (buffer[i] != data[same++])
				return same - 1;
		if (got < (ssize_t)want)
			break;
	}
	return same;
}

/*
 * The number of bytes in the file of an append that began at `offset`. An incomplete append ends
 * with a page of the file. Equal bytes that end elsewhere are from another writer, and equal by
 * chance.
 */
static uint64_t appended_bytes(const struct request *r, int fd, uint64_t offset)
{
	uint64_t done = 0, pages;

	for (uint32_t i = 0; i < r->data_in_count; i++) {
		uint64_t same = equal_bytes(fd, &r->data_in[i], offset + done);

		done += same;
		if (same < r->data_in[i].iov_len)
			break;
	}
	if (done == r->data_in_len)
		return done;
	pages = (offset + done) / APPEND_PAGE * APPEND_PAGE;
	return pages > offset ? pages - offset : 0;
}

/* Note the size of the file before an append. If a dead worker has appended a part of the data
 * already, skip that part (done_bytes). Return: 0, or -errno. */
static int begin_append(struct fs *fs, struct request *r)
{
	const struct inode *inode = inode_table_get(fs->inodes, r->in.nodeid);
	struct append_note note;
	struct stat st;
	int fd;

	if (!intent_noted(r, &note, sizeof(note))) {
		if (fstat(r->fd, &st) < 0)
			return -errno;
		note = (struct append_note){.size = (uint64_t)st.st_size};
		intent_note(r, &note, sizeof(note));
		return 0;
	}
	/* The guest may have opened the file for writing only, and this worker may act as a user
	 * now, so the file is opened again as root. */
	fd = credentials_root(&fs->credentials);
	if (!fd)
		fd = inode ? entry_reopen(fs, inode, O_RDONLY) : -ESTALE;
	if (fd < 0)
		return fd;
	r->done_bytes = appended_bytes(r, fd, note.size);
	close(fd);
	r->data_in_count = iovec_advance(&r->data_in, r->data_in_count, r->done_bytes);
	return credentials_set_id(&fs->credentials, r->kill_suidgid, r->kill_group);
}

/* Set-id bits are removed if the guest asks for it, and otherwise kept, whichever user writes. */
static int prepare_write(struct fs *fs, struct request *r, int fd)
{
	const struct fuse_write_in *in = REQUEST_ARG(r, struct fuse_write_in);
	int err = request_need_room(r, sizeof(struct fuse_write_out));

	if (err)
		return err;
	return set_id_before_write(fs, r, fd,
				   in->write_flags & FUSE_WRITE_KILL_SUIDGID &&
					   is_agreed(fs->session, &AGREED_WRITE_KILL));
}

static int run_write_and_close(struct request *r)
{
	int result = do_write(r);

	close(r->fd);
	return result;
}

/* Data that the guest's page cache writes back may come through any open file of the inode. The end
 * of the data may not be aligned for O_DIRECT, so the data is written through an fd without
 * O_DIRECT. */
static int write_cached(struct fs *fs, struct request *r)
{
	const struct inode *inode = inode_table_get(fs->inodes, r->in.nodeid);
	int err = credentials_root(&fs->credentials);

	if (err)
		return err;
	r->fd = inode ? entry_reopen(fs, inode, O_WRONLY) : -ESTALE;
	r->holds_fd = r->fd >= 0;
	return r->fd < 0 ? r->fd : request_defer(r, run_write_and_close);
}

static int write_to_file(struct fs *fs, struct request *r)
{
	const struct fuse_write_in *in = REQUEST_ARG(r, struct fuse_write_in);
	struct open_file *file = file_table_get_regular(fs->files, in->fh, r->in.nodeid);
	int err = 0;

	if (!file)
		return unknown_file(fs, r->in.nodeid);
	r->appends = is_append(in, file);
	if (file->flags & FILE_ONLY_GROWS && !r->appends)
		return -EPERM; /* a write to a mapping: its offset is not the end */
	if (!is_offset(in->offset) || in->size > r->data_in_len)
		return -EINVAL;
	if (in->size)
		err = file_capability_drop(fs, r->in.nodeid, file->fd);
	if (!err)
		err = prepare_write(fs, r, file->fd);
	if (err)
		return err;
	r->data_in_count = iovec_truncate(r->data_in, r->data_in_count, in->size);
	r->data_in_len = in->size;
	r->fd = file->fd;
	r->file = file;
	if (r->appends) {
		err = begin_append(fs, r);
		if (err)
			return err;
		if (r->done_bytes == in->size)
			return write_reply(r, in->size);
	}
	if (file->flags & FILE_DIRECT && in->write_flags & FUSE_WRITE_CACHE)
		return write_cached(fs, r);
	if (file->flags & (FILE_DIRECT | FILE_SYNC))
		return request_defer(r, do_write);
	return do_write(r);
}

/* A write that leaves the loop may fail there. */
int op_write(struct fs *fs, struct request *r)
{
	int result = write_to_file(fs, r);

	if (result < 0 || REQUEST_REPLY(r, struct fuse_write_out)->size <
				  REQUEST_ARG(r, struct fuse_write_in)->size)
		keep_cache_never(fs, r->in.nodeid);
	return result;
}

/* ---- FSYNC, FSYNCDIR, SYNCFS ---- */

static int run_fsync(struct request *r)
{
	bool data_only = REQUEST_ARG(r, struct fuse_fsync_in)->fsync_flags & FUSE_FSYNC_FDATASYNC;

	return (data_only ? fdatasync(r->fd) : fsync(r->fd)) < 0 ? -errno : 0;
}

int op_fsync(struct fs *fs, struct request *r)
{
	r->file = file_table_get(fs->files, REQUEST_ARG(r, struct fuse_fsync_in)->fh, r->in.nodeid);
	if (!r->file)
		return unknown_file(fs, r->in.nodeid);
	r->fd = r->file->fd;
	return request_defer(r, run_fsync);
}

int op_fsyncdir(struct fs *fs, struct request *r)
{
	return op_fsync(fs, r);
}

static int run_syncfs(struct request *r)
{
	int err = syncfs(r->fd) < 0 ? -errno : 0;

	close(r->fd);
	return err;
}

int op_syncfs(struct fs *fs, struct request *r)
{
	const struct inode *inode = inode_table_get(fs->inodes, r->in.nodeid);
	int err;

	if (!inode)
		return -ESTALE;
	if (!S_ISDIR(inode->mode) && !S_ISREG(inode->mode))
		return -EINVAL;
	err = credentials_root(&fs->credentials);
	if (err)
		return err;
	r->fd = entry_reopen(fs, inode, O_RDONLY);
	r->holds_fd = r->fd >= 0;
	return r->fd < 0 ? r->fd : request_defer(r, run_syncfs);
}

/* ---- FALLOCATE ---- */

enum {
	/* Modes that may be applied twice: after a worker's death, collapsing or inserting a range
	 * again would change the file once more. */
	FALLOCATE_MODES = FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE,
};

static int run_fallocate(struct request *r)
{
	const struct fuse_fallocate_in *in = REQUEST_ARG(r, struct fuse_fallocate_in);

	return fallocate(r->fd, (int)in->mode, (off_t)in->offset, (off_t)in->length) < 0 ? -errno
											 : 0;
}

int op_fallocate(struct fs *fs, struct request *r)
{
	int err;

	if (REQUEST_ARG(r, struct fuse_fallocate_in)->mode & ~(uint32_t)FALLOCATE_MODES)
		return -EOPNOTSUPP;
	/* as for WRITE; FALLOCATE may run in the loop */
	err = credentials_fsetid(&fs->credentials, true);
	if (err)
		return err;
	r->file = file_table_get_regular(fs->files, REQUEST_ARG(r, struct fuse_fallocate_in)->fh,
					 r->in.nodeid);
	if (!r->file)
		return unknown_file(fs, r->in.nodeid);
	r->fd = r->file->fd;
	err = file_capability_drop(fs, r->in.nodeid, r->fd);
	if (err)
		return err;
	return request_defer(r, run_fallocate);
}

/* ---- COPY_FILE_RANGE ---- */

enum {
	/* At most this number of bytes in one call: the older reply has 32 bits; the guest asks
	 * again for more. */
	COPY_MAX = 1 << 30,
};

static ssize_t copy_range(const struct request *r)
{
	const struct fuse_copy_file_range_in *in = REQUEST_ARG(r, struct fuse_copy_file_range_in);
	size_t len = in->len < COPY_MAX ? (size_t)in->len : COPY_MAX;
	off_t from = (off_t)in->off_in, to = (off_t)in->off_out;

	return copy_file_range(r->fd, &from, r->fd2, &to, len, 0);
}

static int run_copy(struct request *r)
{
	return write_reply(r, copy_range(r));
}

static int run_copy_64(struct request *r)
{
	ssize_t copied = copy_range(r);

	if (copied < 0)
		return -errno;
	*REQUEST_REPLY(r, struct fuse_copy_file_range_out) =
		(struct fuse_copy_file_range_out){.bytes_copied = (uint64_t)copied};
	return (int)sizeof(struct fuse_copy_file_range_out);
}

static int copy(struct fs *fs, struct request *r, int (*run)(struct request *))
{
	const struct fuse_copy_file_range_in *in = REQUEST_ARG(r, struct fuse_copy_file_range_in);
	struct open_file *from = file_table_get_regular(fs->files, in->fh_in, r->in.nodeid);
	struct open_file *to = file_table_get_regular(fs->files, in->fh_out, in->nodeid_out);
	int err;

	if (!from || !to)
		return unknown_file(fs, r->in.nodeid);
	if (in->flags)
		return -EINVAL;
	err = credentials_fsetid(&fs->credentials, true); /* as for FALLOCATE */
	if (!err)
		err = file_capability_drop(fs, in->nodeid_out, to->fd);
	if (err)
		return err;
	r->file = from;
	r->file2 = to;
	r->fd = from->fd;
	r->fd2 = to->fd;
	return request_defer(r, run);
}

int op_copy_file_range(struct fs *fs, struct request *r)
{
	return copy(fs, r, run_copy);
}

int op_copy_file_range_64(struct fs *fs, struct request *r)
{
	return copy(fs, r, run_copy_64);
}
