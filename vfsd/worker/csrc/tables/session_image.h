/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The session image: what is to be known of a FUSE session in order to go on with it in another
 * sandbox. The theory is in session_image.c.
 */
#ifndef VFSD_SESSION_IMAGE_H
#define VFSD_SESSION_IMAGE_H

#include "transport/csrc/types.h"

enum {
	IMAGE_VERSION = 1,
	IMAGE_NAME = 16, /* bytes of a name, padded with zeros */
	IMAGE_SECTIONS_MAX = 64,
	IMAGE_FIELDS_MAX = 64, /* of one section */
	IMAGE_HANDLE = 32,     /* FHANDLE_BYTES_MAX */
};

struct image_header {
	char magic[8];
	uint32_t version;
	uint32_t section_count; /* the struct image_section follow the header */
	uint64_t bytes;		/* of the whole image */
};

struct image_section {
	char name[IMAGE_NAME];
	uint64_t offset; /* of the first record, from the beginning of the image */
	uint64_t count;
	uint64_t fields; /* offset of the descriptions of the fields */
	uint32_t field_count;
	uint32_t record_bytes;
};

struct image_field {
	char name[IMAGE_NAME];
	uint32_t offset; /* in the record */
	uint32_t bytes;
};

/* Section "session", one record: the result of INIT, and what all workers share. */
struct image_session {
	uint32_t ready;
	uint32_t minor;
	uint64_t flags;
	uint64_t offered;
	uint64_t set_id_modes;
	uint64_t capability_sets;
	uint32_t number;
	uint32_t root_mount; /* inode_key_mount_id() of the share */
	uint32_t node_gen;   /* no nodeid has a larger generation */
	uint32_t file_gen;   /* nor has an fh */
	uint32_t file_slots; /* slots that were ever used */
	char staging[64];
};

enum image_node_state {
	IMAGE_IS_YOUNG = 1,    /* inode.is_young */
	IMAGE_IS_LET_GO = 2,   /* the guest has forgotten it, and may ask for it (forgotten.c) */
	IMAGE_BORROWS = 4,     /* an open file owns fd */
	IMAGE_IS_READABLE = 8, /* inode.is_readable */
};

/* Section "nodes": the inodes that the guest knows, without the root. */
struct image_node {
	uint64_t nodeid;
	uint64_t lookups;
	uint64_t ino;
	int64_t btime;	 /* ns; 0: not known */
	uint32_t parent; /* slot of the directory where it was seen last; 0: not known */
	uint32_t device; /* inode_key_device() */
	uint32_t mount;	 /* inode_key_mount_id(), which differs in another sandbox */
	uint16_t type;	 /* S_IFMT */
	uint8_t past;	 /* enum inode_past */
	uint8_t state;	 /* enum image_node_state */
	int32_t handle_type;
	uint32_t handle_len; /* 0: without a handle */
	uint8_t handle[IMAGE_HANDLE];
	uint64_t mac; /* fhandle.mac */
	uint32_t fd;  /* its fd in the sandbox of the tables, plus 1; 0: none */
};

/* Section "files": the open files and directories. */
struct image_file {
	uint64_t fh;
	uint64_t nodeid;
	uint64_t owner;	    /* with FILE_LOCK_OWNER; it has the fd of its locks, nothing else */
	uint64_t position;  /* of LSEEK; a directory's comes with each READDIR */
	uint32_t flags;	    /* enum open_file_flag */
	int32_t open_flags; /* of open(2) */
	uint32_t fd;	    /* as for a node */
	uint32_t keeps_fd;  /* open_file.keep_fd: a node has the same fd */
};

enum image_lock_state {
	IMAGE_LOCK_HELD = 1,
	IMAGE_LOCK_TRIED, /* a change under way: it has happened, or the ranges are as they were */
	IMAGE_LOCK_CHANGED, /* a change that has happened, in place of what the ranges say */
	IMAGE_LOCK_MISSED,  /* the owner has locks that were not noted */
};

/* Section "locks": the record locks (fcntl). The records of an owner follow each other, ranges that
 * are held first. */
struct image_lock {
	uint64_t nodeid;
	uint64_t owner;
	uint64_t start, end;
	int32_t type;	/* F_RDLCK, F_WRLCK; of a change F_UNLCK as well */
	uint32_t state; /* enum image_lock_state */
};

/* The tables of a session, mapped. They may hold anything: a worker of the lost sandbox may have
 * been taken over. */
struct image_tables {
	const void *inodes;
	const void *files;
	const void *workers;
	uint32_t inode_capacity;
	uint32_t file_capacity;
};

/* More bytes than the image of any session has in tables of these capacities. */
uint64_t session_image_bytes_max(uint32_t inodes, uint32_t files);

/* Write the image to `ret` if `room` bytes are enough for it. Return: the size of the image in
 * bytes, written or not; or -EINVAL (the tables have another layout). */
int64_t session_image_write(const struct image_tables *from, void *ret, uint64_t room) must_check;

/* Write the image to new memory, *ret, which the caller frees. Return as above, or -ENOMEM. */
int64_t session_image_make(const struct image_tables *from, void **ret) must_check;

/* Where an image has the records of a section, and which parts of a record go to which places in
 * the struct of this version. */
struct image_view {
	const uint8_t *records;
	uint64_t count;
	uint32_t record_bytes;
	uint32_t part_count;
	struct image_part {
		uint32_t from;
		uint32_t to;
		uint32_t bytes;
	} parts[IMAGE_FIELDS_MAX];
};

struct session_image {
	struct image_view session;
	struct image_view nodes;
	struct image_view files;
	struct image_view locks;
};

/* Check an image, of this version or an older one, and find its sections. Return: 0 or -EINVAL. */
int session_image_open(const void *image, uint64_t bytes, struct session_image *ret) must_check;

/* Copy a record. A field that the image does not have is zero; `index` is below the
 * `count` of the view. */
void session_image_session(const struct session_image *image, struct image_session *ret);
void session_image_node(const struct session_image *image, uint64_t index, struct image_node *ret);
void session_image_file(const struct session_image *image, uint64_t index, struct image_file *ret);
void session_image_lock(const struct session_image *image, uint64_t index, struct image_lock *ret);

#endif
