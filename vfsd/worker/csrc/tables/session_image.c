/* SPDX-License-Identifier: Apache-2.0 */
/*
 * THEORY
 *
 * Purpose. When the holder dies, every fd of the share is closed, and nothing
 * is left of the session but its tables, in memfds that the supervisor holds. The tables are full
 * of what ends with the sandbox: fds, mount ids, locks, hash chains. The image is what remains
 * true: which files the guest knows and how they can be found again, what it has open, and what was
 * agreed on. A new sandbox is built from the image (session_restore.c).
 *
 * Format. A header, the descriptions of the sections, the descriptions of their fields, and the
 * records. All records of a section have the same size. A reader finds a section and a field by its
 * name, so it reads an image with more fields, fewer fields, or fields in another order; a field
 * that is missing is zero, so zero means "not known" for each field that is added later.
 * IMAGE_VERSION changes only if a field changes its meaning. Numbers are in the byte order of the
 * machine.
 *
 * Trust. A worker that was taken over may have written anything to the tables, so a reader bounds
 * each index and each loop by what it knows itself. A wrong value gains nothing: the image is
 * written and read within a sandbox, by a process that may do what a worker may do.
 *
 * Death. An image is written from tables that stay as they are, into memory of its own. If the
 * process dies, the next one begins again.
 */
#include "worker/csrc/tables/session_image.h"

#include "worker/csrc/tables/file_table.h"
#include "worker/csrc/tables/forgotten.h"
#include "worker/csrc/tables/inode_layout.h"
#include "worker/csrc/tables/inode_restore.h"
#include "worker/csrc/tables/inode_slots.h"
#include "worker/csrc/tables/lock_notes.h"
#include "worker/csrc/tables/worker_table.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static const char magic[8] = "vfsdimg";

_Static_assert((int)IMAGE_HANDLE == (int)FHANDLE_BYTES_MAX, "a node has room for each handle");
_Static_assert(sizeof(((struct image_session *)0)->staging) ==
		       sizeof(((struct worker_table *)0)->staging),
	       "the whole prefix is kept");

#define FIELD(type, field)                                                              \
	{                                                                               \
#field, offsetof(struct type, field), sizeof(((struct type *)0)->field) \
	}
#define COUNT(array) ((uint32_t)(sizeof(array) / sizeof((array)[0])))

static const struct image_field session_fields[] = {
	FIELD(image_session, ready),	    FIELD(image_session, minor),
	FIELD(image_session, flags),	    FIELD(image_session, offered),
	FIELD(image_session, set_id_modes), FIELD(image_session, capability_sets),
	FIELD(image_session, number),	    FIELD(image_session, node_gen),
	FIELD(image_session, file_gen),	    FIELD(image_session, file_slots),
	FIELD(image_session, staging),	    FIELD(image_session, root_mount),
};

static const struct image_field node_fields[] = {
	FIELD(image_node, nodeid), FIELD(image_node, lookups),	   FIELD(image_node, ino),
	FIELD(image_node, btime),  FIELD(image_node, parent),	   FIELD(image_node, device),
	FIELD(image_node, mount),  FIELD(image_node, type),	   FIELD(image_node, past),
	FIELD(image_node, state),  FIELD(image_node, handle_type), FIELD(image_node, handle_len),
	FIELD(image_node, handle), FIELD(image_node, fd),	   FIELD(image_node, mac),
};

static const struct image_field file_fields[] = {
	FIELD(image_file, fh),	     FIELD(image_file, nodeid),	  FIELD(image_file, owner),
	FIELD(image_file, position), FIELD(image_file, flags),	  FIELD(image_file, open_flags),
	FIELD(image_file, fd),	     FIELD(image_file, keeps_fd),
};

static const struct image_field lock_fields[] = {
	FIELD(image_lock, nodeid), FIELD(image_lock, owner), FIELD(image_lock, start),
	FIELD(image_lock, end),	   FIELD(image_lock, type),  FIELD(image_lock, state),
};

struct section_type {
	const char *name;
	const struct image_field *fields;
	uint32_t field_count;
	uint32_t record_bytes;
	size_t view; /* offset in struct session_image */
};

enum {
	SESSION,
	NODES,
	FILES,
	LOCKS,
	SECTIONS,
};

static const struct section_type sections[SECTIONS] = {
	[SESSION] = {"session", session_fields, COUNT(session_fields), sizeof(struct image_session),
		     offsetof(struct session_image, session)},
	[NODES] = {"nodes", node_fields, COUNT(node_fields), sizeof(struct image_node),
		   offsetof(struct session_image, nodes)},
	[FILES] = {"files", file_fields, COUNT(file_fields), sizeof(struct image_file),
		   offsetof(struct session_image, files)},
	[LOCKS] = {"locks", lock_fields, COUNT(lock_fields), sizeof(struct image_lock),
		   offsetof(struct session_image, locks)},
};

/* ---- writing ---- */

/* Where records go. `at` is NULL while they are only counted. */
struct sink {
	uint8_t *at[SECTIONS];
	uint64_t count[SECTIONS];
	uint64_t room[SECTIONS];
};

static void put(struct sink *sink, unsigned int section, const void *record)
{
	uint32_t bytes = sections[section].record_bytes;
	uint64_t count = sink->count[section]++;

	if (sink->at[section] && count < sink->room[section])
		memcpy(sink->at[section] + count * bytes, record, bytes);
}

/* The generation that the slot had when the guest got its nodeid; 0: the guest knows none. */
static uint32_t known_generation(const struct inode *inode)
{
	if (inode->generation & 1)
		return inode->lookup_count ? inode->generation : 0;
	return forgotten_is_let_go(inode) ? inode->generation - 1 : 0;
}

static void put_node(struct sink *sink, const struct inode *inode, uint32_t slot)
{
	uint32_t generation = known_generation(inode);
	struct image_node node = {
		.nodeid = slot | (uint64_t)generation << 32,
		.lookups = inode->lookup_count,
		.ino = inode->ino,
		.btime = inode->btime,
		.parent = inode->to_parent ? slot + inode->to_parent : 0,
		.device = inode_key_device(inode_key_of(inode)),
		.mount = inode_key_mount_id(inode_key_of(inode)),
		.type = inode->mode,
		.past = inode->marks.past,
		.handle_type = inode->handle.type,
		.handle_len = inode->handle.len,
		.mac = inode->handle.mac,
		.fd = (uint32_t)inode->fd + 1,
	};

	if (!generation)
		return;
	if (node.handle_len > IMAGE_HANDLE)
		node.handle_len = 0;
	memcpy(node.handle, inode->handle.bytes, node.handle_len);
	if (inode->is_young)
		node.state |= IMAGE_IS_YOUNG;
	if (!(inode->generation & 1))
		node.state |= IMAGE_IS_LET_GO;
	else if (inode->lender)
		node.state |= IMAGE_BORROWS;
	if (inode->is_readable)
		node.state |= IMAGE_IS_READABLE;
	put(sink, NODES, &node);
}

static void put_nodes(struct sink *sink, const struct inode_table *t)
{
	for (uint32_t slot = ROOT_SLOT; (slot = inode_slots_after(t, slot));)
		put_node(sink, slot_at(t, slot), slot);
}

static bool is_open(const struct open_file *file)
{
	return file->generation & 1 && file->nodeid;
}

static void put_file(struct sink *sink, const struct file_table *t, const struct open_file *file)
{
	struct image_file record = {
		.fh = open_file_fh(t, file),
		.nodeid = file->nodeid,
		.owner = file->flags & FILE_LOCK_OWNER ? file->owner : 0,
		.position = file->position,
		.flags = file->flags,
		.open_flags = file->open_flags,
		.fd = (uint32_t)file->fd + 1,
		.keeps_fd = file->keep_fd,
	};

	if (is_open(file))
		put(sink, FILES, &record);
}

/* Return: the largest generation. */
static uint32_t put_files(struct sink *sink, const struct file_table *t, uint32_t slots)
{
	uint32_t largest = 0;

	for (uint32_t slot = 1; slot < slots; slot++) {
		const struct open_file *file = file_table_peek(t, slot);

		if (file->generation > largest)
			largest = file->generation;
		put_file(sink, t, file);
	}
	return largest;
}

static void put_lock(struct sink *sink, const struct open_file *file, const struct lock_note *note,
		     enum image_lock_state state)
{
	struct image_lock record = {
		.nodeid = file->nodeid,
		.owner = file->owner,
		.start = note->start,
		.end = note->end,
		.type = note->type,
		.state = state,
	};

	put(sink, LOCKS, &record);
}

/* `left`: how many notes there may be, since a list may be a circle. */
static void put_owner(struct sink *sink, const struct image_tables *from,
		      const struct open_file *file, uint32_t *left)
{
	uint32_t room = from->file_capacity;
	const struct lock_notes *notes = file_table_peek_lock_notes(from->files, room);
	const struct lock_note *head = lock_notes_peek(notes, file->notes, room), *range = head;

	while (range && (range = lock_notes_peek(notes, range->next, room)) && *left) {
		--*left;
		put_lock(sink, file, range, IMAGE_LOCK_HELD);
	}
	if (head && head->state == LOCK_NOTES_TRIED)
		put_lock(sink, file, head, IMAGE_LOCK_TRIED);
	if (head && head->state == LOCK_NOTES_CHANGED)
		put_lock(sink, file, head, IMAGE_LOCK_CHANGED);
	if (file->flags & FILE_LOCKS_MISSED)
		put_lock(sink, file, &(struct lock_note){0}, IMAGE_LOCK_MISSED);
}

static void put_locks(struct sink *sink, const struct image_tables *from, uint32_t slots)
{
	uint32_t left = from->file_capacity;

	for (uint32_t slot = 1; slot < slots; slot++) {
		const struct open_file *file = file_table_peek(from->files, slot);

		if (is_open(file) && file->flags & FILE_LOCK_OWNER)
			put_owner(sink, from, file, &left);
	}
}

static void put_all(struct sink *sink, const struct image_tables *from)
{
	const struct worker_table *workers = from->workers;
	const struct fuse_session *session = &workers->session;
	struct image_session record = {
		.ready = session->ready,
		.minor = session->minor,
		.flags = session->flags,
		.offered = session->offered,
		.number = session->number,
		.root_mount = inode_key_mount_id(inode_key_of(slot_at(from->inodes, ROOT_SLOT))),
		.set_id_modes = workers->set_id_modes,
		.capability_sets = workers->capability_sets,
		.file_slots = file_table_slots(from->files),
	};

	if (record.file_slots > from->file_capacity)
		record.file_slots = from->file_capacity;
	memcpy(record.staging, workers->staging, sizeof(record.staging));
	record.node_gen = inode_restore_generation(from->inodes);
	put_nodes(sink, from->inodes);
	record.file_gen = put_files(sink, from->files, record.file_slots);
	put_locks(sink, from, record.file_slots);
	put(sink, SESSION, &record);
}

static uint64_t fields_bytes(unsigned int section)
{
	return sections[section].field_count * sizeof(struct image_field);
}

/* Lay an image out for these numbers of records. Return: its bytes. */
static uint64_t lay_out(const uint64_t *counts, struct image_section *ret)
{
	uint64_t at = sizeof(struct image_header) + SECTIONS * sizeof(*ret);

	for (unsigned int i = 0; i < SECTIONS; i++) {
		ret[i] = (struct image_section){.count = counts[i],
						.fields = at,
						.field_count = sections[i].field_count,
						.record_bytes = sections[i].record_bytes};
		strncpy(ret[i].name, sections[i].name, IMAGE_NAME - 1);
		at += fields_bytes(i);
	}
	for (unsigned int i = 0; i < SECTIONS; i++) {
		ret[i].offset = at;
		at += counts[i] * sections[i].record_bytes;
	}
	return at;
}

uint64_t session_image_bytes_max(uint32_t inodes, uint32_t files)
{
	struct image_section layout[SECTIONS];
	const uint64_t counts[SECTIONS] = {1, inodes, files, 3 * (uint64_t)files}; /* put_owner() */

	return lay_out(counts, layout);
}

static void describe(uint8_t *image, const struct image_section *layout, uint64_t bytes)
{
	struct image_header header = {
		.version = IMAGE_VERSION, .section_count = SECTIONS, .bytes = bytes};

	memcpy(header.magic, magic, sizeof(magic));
	memcpy(image, &header, sizeof(header));
	memcpy(image + sizeof(header), layout, SECTIONS * sizeof(*layout));
	for (unsigned int i = 0; i < SECTIONS; i++)
		memcpy(image + layout[i].fields, sections[i].fields, fields_bytes(i));
}

int64_t session_image_write(const struct image_tables *from, void *ret, uint64_t room)
{
	struct image_section layout[SECTIONS];
	struct sink sink = {0};
	uint8_t *image = ret;
	uint64_t bytes;

	if (!inode_restore_knows_layout(from->inodes, from->inode_capacity))
		return -EINVAL;
	put_all(&sink, from);
	bytes = lay_out(sink.count, layout);
	if (bytes > room)
		return (int64_t)bytes;
	describe(image, layout, bytes);
	sink = (struct sink){0};
	for (unsigned int i = 0; i < SECTIONS; i++) {
		sink.at[i] = image + layout[i].offset;
		sink.room[i] = layout[i].count;
	}
	put_all(&sink, from);
	return (int64_t)bytes;
}

int64_t session_image_make(const struct image_tables *from, void **ret)
{
	int64_t bytes = session_image_write(from, NULL, 0);

	if (bytes < 0)
		return bytes;
	*ret = malloc((size_t)bytes);
	return *ret ? session_image_write(from, *ret, (uint64_t)bytes) : -ENOMEM;
}

/* ---- reading ---- */

static bool is_within(uint64_t offset, uint64_t count, uint64_t each, uint64_t bytes)
{
	return offset <= bytes && (!each || count <= (bytes - offset) / each);
}

static bool is_named(const char *name, const char *wanted)
{
	return !strncmp(name, wanted, IMAGE_NAME);
}

static void add_part(const struct section_type *type, const struct image_field *field,
		     struct image_view *view)
{
	for (uint32_t i = 0; i < type->field_count; i++) {
		const struct image_field *own = &type->fields[i];

		if (is_named(field->name, own->name))
			view->parts[view->part_count++] = (struct image_part){
				.from = field->offset,
				.to = own->offset,
				.bytes = field->bytes < own->bytes ? field->bytes : own->bytes,
			};
	}
}

static int open_section(const uint8_t *image, uint64_t bytes, const struct image_section *section,
			const struct section_type *type, struct image_view *view)
{
	if (section->field_count > IMAGE_FIELDS_MAX || !section->record_bytes || view->records ||
	    !is_within(section->offset, section->count, section->record_bytes, bytes) ||
	    !is_within(section->fields, section->field_count, sizeof(struct image_field), bytes))
		return -EINVAL;
	for (uint32_t i = 0; i < section->field_count; i++) {
		struct image_field field;

		memcpy(&field, image + section->fields + i * sizeof(field), sizeof(field));
		if (!is_within(field.offset, field.bytes, 1, section->record_bytes))
			return -EINVAL;
		add_part(type, &field, view);
	}
	view->records = image + section->offset;
	view->count = section->count;
	view->record_bytes = section->record_bytes;
	return 0;
}

static const struct section_type *type_of(const struct image_section *section)
{
	for (unsigned int i = 0; i < SECTIONS; i++)
		if (is_named(section->name, sections[i].name))
			return &sections[i];
	return NULL; /* a later version has it */
}

static int read_header(const void *image, uint64_t bytes, struct image_header *ret)
{
	if (bytes < sizeof(*ret))
		return -EINVAL;
	memcpy(ret, image, sizeof(*ret));
	if (memcmp(ret->magic, magic, sizeof(magic)) || ret->version > IMAGE_VERSION ||
	    ret->section_count > IMAGE_SECTIONS_MAX || ret->bytes > bytes ||
	    !is_within(sizeof(*ret), ret->section_count, sizeof(struct image_section), ret->bytes))
		return -EINVAL;
	return 0;
}

int session_image_open(const void *image, uint64_t bytes, struct session_image *ret)
{
	struct image_header header;
	int err = read_header(image, bytes, &header);

	*ret = (struct session_image){0};
	for (uint32_t i = 0; !err && i < header.section_count; i++) {
		const uint8_t *at = (const uint8_t *)image + sizeof(header);
		const struct section_type *type;
		struct image_section section;

		memcpy(&section, at + i * sizeof(section), sizeof(section));
		type = type_of(&section);
		if (type)
			err = open_section(image, header.bytes, &section, type,
					   (void *)((uint8_t *)ret + type->view));
	}
	if (err)
		return err;
	return ret->session.count == 1 ? 0 : -EINVAL;
}

static void read_record(const struct image_view *view, uint64_t index, void *ret, size_t bytes)
{
	const uint8_t *record = view->records + index * view->record_bytes;

	memset(ret, 0, bytes);
	for (uint32_t i = 0; i < view->part_count; i++)
		memcpy((uint8_t *)ret + view->parts[i].to, record + view->parts[i].from,
		       view->parts[i].bytes);
}

void session_image_session(const struct session_image *image, struct image_session *ret)
{
	read_record(&image->session, 0, ret, sizeof(*ret));
}

void session_image_node(const struct session_image *image, uint64_t index, struct image_node *ret)
{
	read_record(&image->nodes, index, ret, sizeof(*ret));
}

void session_image_file(const struct session_image *image, uint64_t index, struct image_file *ret)
{
	read_record(&image->files, index, ret, sizeof(*ret));
}

void session_image_lock(const struct session_image *image, uint64_t index, struct image_lock *ret)
{
	read_record(&image->locks, index, ret, sizeof(*ret));
}
