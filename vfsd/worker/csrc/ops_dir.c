/* SPDX-License-Identifier: Apache-2.0 */
/*
 * READDIR and READDIRPLUS.
 *
 * The kernel is asked for DIR_BUFFER bytes of entries at a time, the guest takes what fits its
 * reply; the rest waits in a dir_cache of this worker. Offsets are the host's d_off, so telldir and
 * seekdir keep their meaning across workers and restarts.
 *
 * The fd's own position is shared by all workers: open_file.position says where it stands, so only
 * another offset costs an lseek. open_file.lock covers the pair lseek, getdents64. While the fd
 * moves, `position` is POSITION_UNKNOWN: a worker that dies then leaves no wrong one behind.
 * open_file.reads counts those moves; entries that wait belong to the latest read of the directory
 * or are not told (the guest may have rewound it through another queue).
 *
 * Offset 0 always reads anew: rewinddir(3) shows what has changed.
 */
#include "worker/csrc/agreed.h"
#include "worker/csrc/entry.h"
#include "worker/csrc/inode_fd.h"
#include "worker/csrc/label.h"
#include "worker/csrc/owner_lock.h"

#include <dirent.h>
#include <errno.h>
#include <string.h>
#include <unistd.h>

#define POSITION_UNKNOWN UINT64_MAX

/* ---- entries that wait ---- */

static struct dirent64 *next_entry(const struct dir_cache *cache)
{
	return cache->begin < cache->end ? (struct dirent64 *)(void *)(cache->buffer + cache->begin)
					 : NULL;
}

static void entry_told(struct dir_cache *cache, const struct dirent64 *entry)
{
	cache->begin += entry->d_reclen;
	cache->position = (uint64_t)entry->d_off;
}

static bool answers(const struct dir_cache *cache, const struct open_file *file, uint64_t offset)
{
	return offset && cache->position == offset && next_entry(cache) &&
	       cache->reads == __atomic_load_n(&file->reads, __ATOMIC_ACQUIRE);
}

/* The cache of `fh`, or the one to give up for it: the one unused for longest. */
static struct dir_cache *cache_of(struct worker *w, uint64_t fh)
{
	struct dir_cache *cache = &w->dir_caches[0];

	for (uint32_t i = 0; i < DIR_CACHES && cache->fh != fh; i++) {
		struct dir_cache *other = &w->dir_caches[i];

		if (other->fh == fh ||
		    w->dir_cache_age - other->age > w->dir_cache_age - cache->age)
			cache = other;
	}
	if (cache->fh != fh) {
		cache->fh = fh;
		cache->begin = cache->end = 0;
	}
	cache->age = ++w->dir_cache_age;
	return cache;
}

/* The d_off of the last entry in the buffer. */
static uint64_t last_offset(const uint8_t *buffer, uint32_t end)
{
	uint64_t offset = 0;

	for (uint32_t at = 0; at < end;) {
		const struct dirent64 *entry = (const struct dirent64 *)(const void *)(buffer + at);

		offset = (uint64_t)entry->d_off;
		at += entry->d_reclen;
	}
	return offset;
}

/* Read from `offset` on. Under the file's lock. Return: bytes, 0 at the end, or -errno. */
static ssize_t read_entries(struct open_file *file, uint64_t offset, uint8_t *buffer)
{
	bool move = file->position != offset || offset == POSITION_UNKNOWN;
	ssize_t got;

	__atomic_store_n(&file->position, POSITION_UNKNOWN, __ATOMIC_RELEASE);
	__atomic_store_n(&file->reads, file->reads + 1, __ATOMIC_RELEASE);
	if (move && lseek(file->fd, (off_t)offset, SEEK_SET) < 0)
		return -errno;
	got = getdents64(file->fd, buffer, DIR_BUFFER);
	if (got < 0)
		return -errno;
	if (got)
		offset = last_offset(buffer, (uint32_t)got);
	__atomic_store_n(&file->position, offset, __ATOMIC_RELEASE);
	return got;
}

static int fill_cache(struct worker *w, struct dir_cache *cache, struct open_file *file,
		      uint64_t offset)
{
	ssize_t got;

	cache->begin = cache->end = 0;
	cache->position = offset;
	owner_lock(&file->lock, w->slot);
	got = read_entries(file, offset, cache->buffer);
	cache->reads = file->reads;
	owner_unlock(&file->lock);
	if (got < 0)
		return (int)got;
	cache->end = (uint32_t)got;
	return 0;
}

/* ---- entries told ---- */

static void put_dirent(const struct dirent64 *entry, uint32_t type, uint32_t name_len, uint8_t *to)
{
	struct fuse_dirent head = {
		.ino = entry->d_ino,
		.off = (uint64_t)entry->d_off,
		.namelen = name_len,
		.type = type,
	};
	uint32_t len = FUSE_NAME_OFFSET + name_len;

	memcpy(to, &head, FUSE_NAME_OFFSET);
	memcpy(to + FUSE_NAME_OFFSET, entry->d_name, name_len);
	memset(to + len, 0, FUSE_DIRENT_ALIGN(len) - len);
}

static bool is_dot_or_dotdot(const char *name)
{
	return name[0] == '.' && (!name[1] || (name[1] == '.' && !name[2]));
}

/*
 * nodeid 0: the name is listed, the guest looks it up when it needs it. So it is for "." and "..",
 * whose lookups it does not count, and for a name that cannot be looked up now. Windows and UEFI
 * firmware show what the attributes say of these, too: at least their type.
 */
static void put_unknown(const struct dirent64 *entry, mode_t type, struct fuse_entry_out *ret)
{
	*ret = (struct fuse_entry_out){.attr = {.ino = entry->d_ino, .mode = type}};
}

/* Linux looks at no attribute of these. Of ".." only what the guest knows has attributes for it:
 * the directory above may be outside of the share. */
static void put_dot_or_dotdot(struct worker *w, const struct inode *dir,
			      const struct dirent64 *entry, struct fuse_entry_out *ret)
{
	bool is_root = dir == inode_table_get(w->inodes, FUSE_ROOT_ID);
	const char *name = is_root ? "." : entry->d_name;
	struct statx st;
	int fd;

	put_unknown(entry, S_IFDIR, ret);
	if (is_linux(w->session))
		return;
	fd = inode_fd(w, dir);
	if (fd >= 0 && !entry_stat_name(fd, name, &st) &&
	    inode_table_knows(w->inodes, w->slot, entry_key(&st)))
		entry_attr(w, &st, &ret->attr);
}

/* Return: the type to report for the name, which is the one of the entry if there is one. `to`:
 * 8-aligned. */
static uint32_t put_entry(struct worker *w, const struct inode *dir, const struct dirent64 *entry,
			  uint8_t *to)
{
	mode_t type = DTTOIF(entry->d_type);
	struct fuse_entry_out *out = (void *)to;

	if (is_dot_or_dotdot(entry->d_name))
		put_dot_or_dotdot(w, dir, entry, out);
	else if (entry_lookup_dirent(w, dir, entry->d_name, entry->d_ino, type, out) < 0)
		put_unknown(entry, type, out);
	return IFTODT(out->attr.mode);
}

/* Tell the entries that wait, as many as fit `room`; with `dir` each with its fuse_entry_out.
 * Return: bytes, or -EINVAL when not even the first one fits. */
static int tell_entries(struct worker *w, const struct inode *dir, struct dir_cache *cache,
			uint8_t *reply, uint64_t room)
{
	uint32_t head = dir ? sizeof(struct fuse_entry_out) : 0;
	const struct dirent64 *entry;
	uint64_t used = 0;

	for (; (entry = next_entry(cache)); entry_told(cache, entry)) {
		uint32_t name_len = (uint32_t)strlen(entry->d_name);
		uint64_t len = head + FUSE_DIRENT_ALIGN(FUSE_NAME_OFFSET + name_len);
		uint32_t type;

		if (label_hides(w, entry->d_name))
			continue;
		if (len > room - used)
			return used ? (int)used : -EINVAL;
		type = dir ? put_entry(w, dir, entry, reply + used) : entry->d_type;
		put_dirent(entry, type, name_len, reply + used + head);
		used += len;
	}
	return (int)used;
}

static uint64_t reply_room(const struct request *r, uint32_t size)
{
	uint64_t room = r->data_out_len < size ? r->data_out_len : size;

	return room < REQUEST_LARGE_REPLY ? room : REQUEST_LARGE_REPLY;
}

/* One read of the directory per request, more only while all that is read is hidden: a short reply
 * is not the end, an empty one is. */
static int list(struct worker *w, struct request *r, const struct inode *dir)
{
	const struct fuse_read_in *in = REQUEST_ARG(r, struct fuse_read_in);
	struct open_file *file = file_table_get(w->files, in->fh, r->in.nodeid);
	uint64_t offset = in->offset;
	struct dir_cache *cache;
	int told;

	if (!file || !(file->flags & FILE_IS_DIR))
		return -EBADF;
	cache = cache_of(w, in->fh);
	r->reply = w->large_reply;
	for (;;) {
		if (!answers(cache, file, offset)) {
			int err = fill_cache(w, cache, file, offset);

			if (err)
				return err;
		}
		told = tell_entries(w, dir, cache, r->reply, reply_room(r, in->size));
		if (told || cache->position == offset)
			return told;
		offset = cache->position;
	}
}

int op_readdir(struct worker *w, struct request *r)
{
	return list(w, r, NULL);
}

int op_readdirplus(struct worker *w, struct request *r)
{
	const struct inode *dir = inode_table_get(w->inodes, r->in.nodeid);
	int err;

	if (!dir)
		return -ESTALE;
	err = credentials_root(&w->credentials);
	return err ? err : list(w, r, dir);
}
