/* SPDX-License-Identifier: Apache-2.0 */
/*
 * READDIR and READDIRPLUS.
 *
 * The kernel is asked for DIR_BUFFER bytes of entries at a time, and the guest gets what fits into
 * its reply; the remaining entries wait in a dir_cache of this worker. Offsets are the host's
 * d_off, so telldir and seekdir keep their meaning across workers and restarts.
 *
 * All workers share the position of the fd. open_file.position holds that position, so an lseek is
 * needed only for another offset. open_file.lock covers the pair lseek, getdents64. While the fd
 * moves, `position` is POSITION_UNKNOWN, so that a worker that dies then leaves no wrong position
 * behind. open_file.reads counts the moves of the fd: waiting entries that are not from the latest
 * read of the directory are not sent (the guest may have rewound the directory through another
 * queue).
 *
 * Offset 0 always reads the directory again, so that rewinddir(3) shows what has changed. Another
 * offset that lies within the entries of the last read is answered from those entries: a guest that
 * did not use all entries of a reply asks for some of them again.
 *
 * Some file systems (NFS, FUSE) have offsets of 64 bits, which lseek cannot reach. The guest gets
 * other offsets in their place, which have 63 bits and look random, and such a directory is read
 * from its beginning until the offset is found. A flag in open_file.flags marks such a directory
 * for every worker.
 */
#include "worker/csrc/fs/entry.h"
#include "worker/csrc/fs/inode_fd.h"
#include "worker/csrc/fs/label.h"
#include "worker/csrc/fs/ops.h"
#include "worker/csrc/fs/unknown_file.h"
#include "worker/csrc/host/identity.h"
#include "worker/csrc/host/mix.h"
#include "worker/csrc/request/agreed.h"
#include "worker/csrc/tables/owner_lock.h"

#include <dirent.h>
#include <errno.h>
#include <string.h>
#include <unistd.h>

#define POSITION_UNKNOWN UINT64_MAX

static const struct dirent64 *entry_at(const uint8_t *buffer, uint32_t at)
{
	return (const struct dirent64 *)(const void *)(buffer + at);
}

/* The offset after an entry with a 64-bit d_off, as the guest sees it. */
static __attribute__((noinline, cold)) uint64_t wide_offset(uint64_t offset)
{
	return mix64(offset) & INT64_MAX;
}

static uint64_t guest_offset(const struct dirent64 *entry)
{
	return entry->d_off >= 0 ? (uint64_t)entry->d_off : wide_offset((uint64_t)entry->d_off);
}

/* ---- entries that wait ---- */

static struct dirent64 *next_entry(const struct dir_cache *cache)
{
	return cache->begin < cache->end ? (struct dirent64 *)(void *)(cache->buffer + cache->begin)
					 : NULL;
}

static void consume_entry(struct dir_cache *cache, const struct dirent64 *entry)
{
	cache->begin += entry->d_reclen;
	cache->position = guest_offset(entry);
}

/* The number of bytes of `buffer` up to and including the entry with this offset; 0 if no entry has
 * it. */
static uint32_t find_offset(const uint8_t *buffer, uint32_t end, uint64_t offset)
{
	for (uint32_t at = 0; at < end;) {
		const struct dirent64 *entry = entry_at(buffer, at);

		at += entry->d_reclen;
		if (guest_offset(entry) == offset)
			return at;
	}
	return 0;
}

/* Answer an offset that lies within the entries of the last read. */
static bool seek_in_cache(struct dir_cache *cache, uint64_t offset)
{
	uint32_t begin = find_offset(cache->buffer, cache->end, offset);

	if (offset != cache->start && !begin)
		return false;
	cache->begin = offset == cache->start ? 0 : begin;
	cache->position = offset;
	return true;
}

static bool answers(struct dir_cache *cache, const struct open_file *file, uint64_t offset)
{
	if (!offset || cache->reads != __atomic_load_n(&file->reads, __ATOMIC_ACQUIRE))
		return false;
	return (cache->position == offset || seek_in_cache(cache, offset)) && next_entry(cache);
}

/* The cache of `fh`. If there is none, the cache that was not used for the longest time is given
 * up. */
static struct dir_cache *cache_of(struct fs *fs, uint64_t fh)
{
	struct dir_cache *cache = &fs->dir_caches[0];

	for (uint32_t i = 0; i < DIR_CACHES && cache->fh != fh; i++) {
		struct dir_cache *other = &fs->dir_caches[i];

		if (other->fh == fh ||
		    fs->dir_cache_age - other->age > fs->dir_cache_age - cache->age)
			cache = other;
	}
	if (cache->fh != fh) {
		cache->fh = fh;
		cache->begin = cache->end = 0;
		cache->start = 0;
	}
	cache->age = ++fs->dir_cache_age;
	return cache;
}

/* Read from `offset`, which is the position of the fd. The caller holds the file's lock. Return:
 * bytes, 0 at the end, or -errno. */
static ssize_t read_on(struct open_file *file, uint64_t offset, uint8_t *buffer)
{
	const struct dirent64 *entry = NULL;
	ssize_t got;

	__atomic_store_n(&file->position, POSITION_UNKNOWN, __ATOMIC_RELEASE);
	got = getdents64(file->fd, buffer, DIR_BUFFER);
	if (got < 0)
		return -errno;
	for (uint32_t at = 0; at < (uint32_t)got; at += entry->d_reclen)
		entry = entry_at(buffer, at);
	if (entry)
		offset = guest_offset(entry);
	__atomic_store_n(&file->position, offset, __ATOMIC_RELEASE);
	return got;
}

/* Read from the beginning until the buffer has the entry with this offset. *ret_begin: the number
 * of bytes up to and including that entry. */
static ssize_t find_and_read(struct open_file *file, uint64_t offset, uint8_t *buffer,
			     uint32_t *ret_begin)
{
	uint64_t at = 0;
	ssize_t got;

	if (lseek(file->fd, 0, SEEK_SET) < 0)
		return -errno;
	do {
		got = read_on(file, at, buffer);
		at = file->position;
		*ret_begin = got > 0 ? find_offset(buffer, (uint32_t)got, offset) : 0;
	} while (got > 0 && !*ret_begin);
	if (!got)
		return -EINVAL; /* the entry's name was removed */
	if (got < 0 || *ret_begin < (uint32_t)got)
		return got;
	*ret_begin = 0; /* the entry is the last one in the buffer */
	return read_on(file, at, buffer);
}

/* Read from `offset`. The caller holds the file's lock. Return: bytes, of which the first
 * *ret_begin come before that offset; 0 at the end; or -errno. */
static ssize_t read_entries(struct open_file *file, uint64_t offset, uint8_t *buffer,
			    uint32_t *ret_begin)
{
	bool move = file->position != offset;

	*ret_begin = 0;
	if (offset > INT64_MAX)
		return -EINVAL; /* not an offset that the guest got from us */
	__atomic_store_n(&file->position, POSITION_UNKNOWN, __ATOMIC_RELEASE);
	__atomic_store_n(&file->reads, file->reads + 1, __ATOMIC_RELEASE);
	if (move && offset && file->flags & FILE_WIDE_OFFSETS)
		return find_and_read(file, offset, buffer, ret_begin);
	if (move && lseek(file->fd, (off_t)offset, SEEK_SET) < 0)
		return -errno;
	return read_on(file, offset, buffer);
}

static int fill_cache(struct fs *fs, struct dir_cache *cache, struct open_file *file,
		      uint64_t offset)
{
	uint32_t begin;
	ssize_t got;

	cache->begin = cache->end = 0;
	cache->position = offset;
	owner_lock(&file->lock, fs->slot);
	got = read_entries(file, offset, cache->buffer, &begin);
	cache->reads = file->reads;
	owner_unlock(&file->lock);
	if (got < 0)
		return (int)got;
	cache->start = begin ? 0 : offset;
	cache->begin = begin;
	cache->end = (uint32_t)got;
	return 0;
}

/* ---- entries of the reply ---- */

static void put_dirent(const struct dirent64 *entry, uint64_t ino, uint32_t type, uint32_t name_len,
		       uint8_t *to)
{
	struct fuse_dirent head = {
		.ino = ino,
		.off = guest_offset(entry),
		.namelen = name_len,
		.type = type,
	};
	uint32_t len = FUSE_NAME_OFFSET + name_len;

	/* The padding lies in the last 8 bytes; their other bytes are written again below. */
	memset(to + FUSE_DIRENT_ALIGN(len) - 8, 0, 8);
	memcpy(to, &head, FUSE_NAME_OFFSET);
	memcpy(to + FUSE_NAME_OFFSET, entry->d_name, name_len);
}

static bool is_dot_or_dotdot(const char *name)
{
	return name[0] == '.' && (!name[1] || (name[1] == '.' && !name[2]));
}

/*
 * nodeid 0: the name is listed, and the guest looks it up when needed. This is used for "." and
 * "..", because the guest does not count lookups of these, and for a name that cannot be looked up
 * now. Windows and UEFI firmware show the attributes of such an entry as well: they get the type at
 * least.
 */
static void put_unknown(const struct dirent64 *entry, mode_t type, struct fuse_entry_out *ret)
{
	*ret = (struct fuse_entry_out){.attr = {.ino = entry->d_ino, .mode = type}};
}

/* Linux uses no attribute of "." and "..". The attributes of ".." are sent only if the guest knows
 * that directory, because the directory above may be outside of the share. */
static void put_dot_or_dotdot(struct fs *fs, const struct inode *dir, const struct dirent64 *entry,
			      struct fuse_entry_out *ret)
{
	bool is_root = dir == inode_table_get(fs->inodes, FUSE_ROOT_ID);
	const char *name = is_root ? "." : entry->d_name;
	struct statx st;
	int fd;

	put_unknown(entry, S_IFDIR, ret);
	if (is_linux(fs->session))
		return;
	fd = inode_fd(fs, dir);
	if (fd >= 0 && !identity_stat_name(fd, name, &st) &&
	    inode_table_knows(fs->inodes, fs->slot, identity_key(&st)))
		entry_attr(fs, &st, &ret->attr);
}

/* Return: the type to report for the name: the type of the fuse_entry_out if the name could be
 * looked up. `to` is 8-aligned. */
static uint32_t put_entry(struct fs *fs, const struct inode *dir, const struct dirent64 *entry,
			  uint8_t *to)
{
	mode_t type = DTTOIF(entry->d_type);
	struct fuse_entry_out *out = (void *)to;

	if (is_dot_or_dotdot(entry->d_name))
		put_dot_or_dotdot(fs, dir, entry, out);
	else if (entry_lookup_dirent(fs, dir, entry->d_name, entry->d_ino, type, out) < 0)
		put_unknown(entry, type, out);
	return IFTODT(out->attr.mode);
}

static uint32_t device_of(struct fs *fs, uint64_t nodeid)
{
	const struct inode *inode = inode_table_get(fs->inodes, nodeid);

	return inode ? inode_key_device(inode_key_of(inode)) : fs->root_device;
}

/* If a mount covers the name, the number of the entry is that of the mounted root. */
static uint64_t number_of_entry(const uint8_t *reply, uint64_t ino)
{
	const struct fuse_entry_out *entry = (const void *)reply;

	return entry->nodeid ? entry->attr.ino : ino;
}

/* List the waiting entries that fit into `room`; if `dir` is given, each with its fuse_entry_out.
 * Return: bytes, or -EINVAL if not even the first entry fits. */
static int list_entries(struct fs *fs, const struct inode *dir, struct open_file *file,
			struct dir_cache *cache, uint8_t *reply, uint64_t room)
{
	uint32_t head = dir ? sizeof(struct fuse_entry_out) : 0;
	bool has_numbers = dir && !entry_announces_mounts(fs);
	uint32_t device = device_of(fs, file->nodeid);
	const struct dirent64 *entry;
	uint64_t used = 0;

	for (; (entry = next_entry(cache)); consume_entry(cache, entry)) {
		uint32_t name_len = (uint32_t)strlen(entry->d_name);
		uint64_t len = head + FUSE_DIRENT_ALIGN(FUSE_NAME_OFFSET + name_len);
		uint32_t type;
		uint64_t ino;

		if (label_hides(fs, entry->d_name))
			continue;
		if (len > room - used)
			return used ? (int)used : -EINVAL;
		type = dir ? put_entry(fs, dir, entry, reply + used) : entry->d_type;
		ino = entry_number(fs, entry->d_ino, device);
		if (has_numbers)
			ino = number_of_entry(reply + used, ino);
		put_dirent(entry, ino, type, name_len, reply + used + head);
		if (entry->d_off < 0)
			__atomic_or_fetch(&file->flags, FILE_WIDE_OFFSETS, __ATOMIC_RELAXED);
		used += len;
	}
	return (int)used;
}

static uint64_t reply_room(const struct request *r, uint32_t size)
{
	uint64_t room = r->data_out_len < size ? r->data_out_len : size;

	return room < REQUEST_LARGE_REPLY ? room : REQUEST_LARGE_REPLY;
}

/* Each request reads the directory once, and again only while every entry read is hidden: a short
 * reply does not mean the end of the directory, but an empty reply does. */
static int list(struct fs *fs, struct request *r, const struct inode *dir)
{
	const struct fuse_read_in *in = REQUEST_ARG(r, struct fuse_read_in);
	struct open_file *file = file_table_get(fs->files, in->fh, r->in.nodeid);
	uint64_t offset = in->offset;
	struct dir_cache *cache;
	int listed;

	if (!file || !(file->flags & FILE_IS_DIR))
		return unknown_file(fs, r->in.nodeid);
	cache = cache_of(fs, in->fh);
	r->reply = fs->large_reply;
	for (;;) {
		if (!answers(cache, file, offset)) {
			int err = fill_cache(fs, cache, file, offset);

			if (err)
				return err;
		}
		listed = list_entries(fs, dir, file, cache, r->reply, reply_room(r, in->size));
		if (listed || cache->position == offset)
			return listed;
		offset = cache->position;
	}
}

int op_readdir(struct fs *fs, struct request *r)
{
	return list(fs, r, NULL);
}

int op_readdirplus(struct fs *fs, struct request *r)
{
	const struct inode *dir = inode_table_get(fs->inodes, r->in.nodeid);
	int err;

	if (!dir)
		return -ESTALE;
	err = credentials_root(&fs->credentials);
	return err ? err : list(fs, r, dir);
}
