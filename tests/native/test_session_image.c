/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The session image: tables with random content come back as they were; an image with other fields
 * is read by their names; random bytes in an image or in tables harm nobody.
 */
#include "tables.h"

#include "worker/csrc/tables/inode_layout.h"
#include "worker/csrc/tables/inode_restore.h"
#include "worker/csrc/tables/lock_notes.h"
#include "worker/csrc/tables/session_image.h"

enum {
	INODES = 3000,
	FILES = 200,
	STEPS = 6000,
	KEYS = 1500,
	TRIES = 300,
	OWNERS = 5,
};

static struct bench b, other;
static uint8_t *image;
static int64_t image_bytes;
static struct session_image view;

static struct image_tables tables_of(const struct bench *bench)
{
	return (struct image_tables){.inodes = bench->inodes,
				     .files = bench->files,
				     .workers = bench->workers,
				     .inode_capacity = bench->inode_capacity,
				     .file_capacity = bench->file_capacity};
}

static void write_image(void)
{
	struct image_tables from = tables_of(&b);

	image_bytes = session_image_write(&from, NULL, 0);
	CHECK(image_bytes > 0);
	image = malloc((size_t)image_bytes);
	CHECK(image);
	CHECK_EQUAL(session_image_write(&from, image, (uint64_t)image_bytes), image_bytes);
	CHECK(!session_image_open(image, (uint64_t)image_bytes, &view));
}

/* Lock owners with a range each. */
static void add_locks(void)
{
	struct lock_notes *notes = file_table_lock_notes(b.files);
	struct open_file *file;
	bool added;

	for (uint64_t owner = 1; owner <= OWNERS; owner++) {
		file = file_table_reserve(b.files, 0);
		CHECK(file);
		file_table_add_lock_owner(b.files, 0, file, 2, owner, fd_open(&b, 2), &added);
		CHECK(added);
		lock_notes_try(notes, file->notes, owner, 2 * owner, 1);
		CHECK(lock_notes_change(notes, 0, file->notes));
	}
}

static void check_locks(void)
{
	CHECK_EQUAL(view.locks.count, OWNERS);
	for (uint64_t i = 0; i < OWNERS; i++) {
		struct image_lock lock;

		session_image_lock(&view, i, &lock);
		CHECK(lock.nodeid == 2 && lock.owner && lock.state == IMAGE_LOCK_HELD);
		CHECK(lock.type == 1 && lock.start == lock.owner && lock.end == 2 * lock.owner);
	}
}

/* Inodes that come and go, in directories, some by handles; files that are opened and released. */
static void fill(uint32_t seed)
{
	static uint64_t nodeids[KEYS], fhs[FILES];

	memset(nodeids, 0, sizeof(nodeids));
	memset(fhs, 0, sizeof(fhs));
	srandom(seed);
	bench_init(&b, INODES, FILES);
	reclaim_quiescent(&b.reclaims[0]);
	add_locks();
	for (int i = 0; i < STEPS; i++) {
		uint32_t number = (uint32_t)random() % KEYS, at = (uint32_t)random() % FILES;
		struct inode *inode, *parent;

		if (random() % 3) {
			nodeids[number] = lookup(&b, 0, number + 1);
			inode = inode_table_get(b.inodes, nodeids[number]);
			parent = inode_table_get(b.inodes, nodeids[random() % KEYS]);
			inode_table_note_birth(inode, random());
			inode_table_note(inode, random() % 8);
			if (parent && parent != inode)
				inode_table_note_parent(inode, parent);
		} else if (nodeids[number]) {
			forget(&b, 0, nodeids[number], 1 + (uint64_t)random() % 3);
		}
		if (random() % 4 == 0 && fhs[at]) {
			file_table_release(b.files, &b.reclaims[0],
					   file_table_at(b.files, (uint32_t)fhs[at]));
			fhs[at] = 0;
		} else if (nodeids[number] && random() % 4 == 0) {
			fhs[at] = open_file(&b, 0, nodeids[number], number + 1);
		}
		quiesce(&b, 0);
	}
	b.workers->session = (struct fuse_session){
		.ready = 1, .minor = 38, .flags = (uint64_t)random() << 32, .number = 7};
	memcpy(b.workers->staging, "secret", 6);
}

static void restore_node(const struct image_node *node)
{
	struct inode values = {.ino = node->ino,
			       .mnt_id = (uint64_t)node->mount << 32 | node->device,
			       .mode = node->type,
			       .fd = fd_open(&other, (uint32_t)node->ino),
			       .btime = node->btime,
			       .marks.past = node->past,
			       .lookup_count = node->lookups};
	struct inode *inode = inode_restore(other.inodes, 0, node->nodeid, &values, NULL);

	CHECK(inode);
	CHECK(!inode_restore(other.inodes, 0, node->nodeid, &values, NULL));
	inode->to_parent = node->parent ? node->parent - (uint32_t)node->nodeid : 0;
}

static void restore(void)
{
	struct image_session session;

	bench_init(&other, INODES, FILES);
	reclaim_quiescent(&other.reclaims[0]);
	session_image_session(&view, &session);
	CHECK_EQUAL(session.minor, 38);
	CHECK(session.flags == b.workers->session.flags);
	CHECK(!strcmp(session.staging, "secret"));
	for (uint64_t i = 0; i < view.nodes.count; i++) {
		struct image_node node;

		session_image_node(&view, i, &node);
		restore_node(&node);
	}
	inode_restore_end(other.inodes, session.node_gen);
	for (uint64_t i = 0; i < view.files.count; i++) {
		struct image_file record;
		struct open_file file = {.fd = 5};

		session_image_file(&view, i, &record);
		file.nodeid = record.nodeid;
		file.flags = record.flags;
		CHECK(file_table_restore(other.files, record.fh, &file));
		CHECK(!file_table_restore(other.files, record.fh, &file));
	}
	file_table_restore_end(other.files, session.file_slots, session.file_gen);
}

static uint32_t parent_of(const struct bench *bench, const struct inode *inode)
{
	return inode->to_parent ? slot_of(bench->inodes, inode) + inode->to_parent : 0;
}

static void check_inode(const struct inode *mine, uint64_t nodeid)
{
	const struct inode *theirs = inode_table_get(other.inodes, nodeid);

	CHECK(theirs);
	CHECK(inode_key_equal(inode_key_of(mine), inode_key_of(theirs)));
	CHECK_EQUAL(theirs->lookup_count, mine->lookup_count);
	CHECK_EQUAL(theirs->btime, mine->btime);
	CHECK_EQUAL(theirs->marks.past, mine->marks.past);
	CHECK_EQUAL(parent_of(&other, theirs), parent_of(&b, mine));
	CHECK(inode_table_knows(other.inodes, 0, inode_key_of(mine)));
}

/* What the guest has from before works, and nothing that it gets now was given out before. */
static void check_same(void)
{
	uint64_t count = 0;

	for (uint32_t number = 1; number <= KEYS; number++) {
		struct inode *inode = inode_table_acquire(b.inodes, 0, key(number), 0);
		uint64_t nodeid;

		if (!inode)
			continue;
		inode->lookup_count--;
		count++;
		check_inode(inode, inode_nodeid(b.inodes, inode));
		nodeid = lookup(&other, 0, number);
		CHECK(nodeid == inode_nodeid(b.inodes, inode));
	}
	CHECK_EQUAL(inode_table_count(other.inodes), count);
	for (uint32_t slot = 1; slot < file_table_slots(b.files); slot++) {
		struct open_file *file = file_table_at(b.files, slot);
		uint64_t fh = open_file_fh(b.files, file);

		if (file->flags & FILE_LOCK_OWNER)
			continue;
		CHECK(!file_table_get(b.files, fh, file->nodeid) ==
		      !file_table_get(other.files, fh, file->nodeid));
	}
	CHECK_EQUAL(file_table_count(other.files), file_table_count(b.files) - OWNERS);
	for (uint32_t number = KEYS + 1; number < KEYS + 500; number++) {
		uint64_t nodeid = lookup(&other, 0, number);

		CHECK(nodeid >> 32 > slot_at(b.inodes, (uint32_t)nodeid)->generation);
	}
}

static void test_round_trip(void)
{
	for (uint32_t seed = 1; seed <= 5; seed++) {
		fill(seed);
		write_image();
		CHECK(view.nodes.count > 100 && view.files.count > 10);
		check_locks();
		restore();
		check_same();
		bench_end(&b);
		bench_end(&other);
		free(image);
	}
}

/* A version that knows a section under the same name, and a field of it under another name. */
static void test_fields_are_found_by_name(void)
{
	struct image_section section;
	struct image_field field;
	struct image_node before, after;
	uint8_t *at;

	fill(1);
	write_image();
	session_image_node(&view, 0, &before);
	memcpy(&section, image + sizeof(struct image_header) + sizeof(section), sizeof(section));
	CHECK(!strcmp(section.name, "nodes"));
	at = image + section.fields + 2 * sizeof(field);
	memcpy(&field, at, sizeof(field));
	CHECK(!strcmp(field.name, "ino"));
	strcpy(field.name, "later");
	memcpy(at, &field, sizeof(field));
	CHECK(!session_image_open(image, (uint64_t)image_bytes, &view));
	session_image_node(&view, 0, &after);
	CHECK(before.ino && !after.ino);
	CHECK(after.nodeid == before.nodeid && after.btime == before.btime);
	strcpy(field.name, "ino");
	field.bytes = 1; /* it was a byte once */
	memcpy(at, &field, sizeof(field));
	CHECK(!session_image_open(image, (uint64_t)image_bytes, &view));
	session_image_node(&view, 0, &after);
	CHECK_EQUAL(after.ino, before.ino & 0xff);
	bench_end(&b);
	free(image);
}

static void read_everything(void)
{
	struct image_session session;
	struct image_node node;
	struct image_file file;
	struct image_lock lock;

	session_image_session(&view, &session);
	CHECK(view.locks.count <= 2 * FILES + FILES);
	for (uint64_t i = 0; i < view.locks.count; i++)
		session_image_lock(&view, i, &lock);
	for (uint64_t i = 0; i < view.nodes.count; i++)
		session_image_node(&view, i, &node);
	for (uint64_t i = 0; i < view.files.count; i++)
		session_image_file(&view, i, &file);
}

/* In memory of exactly its size, so that the sanitizer sees each byte too many. */
static void test_random_bytes_in_an_image(void)
{
	uint32_t head = sizeof(struct image_header) + 4 * sizeof(struct image_section) +
			30 * sizeof(struct image_field);
	uint32_t opened = 0;
	uint8_t *whole;

	fill(2);
	write_image();
	whole = malloc((size_t)image_bytes);
	CHECK(whole);
	memcpy(whole, image, (size_t)image_bytes);
	for (int i = 0; i < TRIES; i++) {
		uint64_t bytes = (uint64_t)image_bytes;

		memcpy(image, whole, (size_t)image_bytes);
		for (int changes = 0; changes < 3; changes++)
			image[(uint32_t)random() % head] = (uint8_t)random();
		if (i % 4 == 0)
			bytes = (uint64_t)random() % bytes;
		if (session_image_open(image, bytes, &view))
			continue;
		opened++;
		read_everything();
	}
	CHECK(opened > TRIES / 10 && opened < TRIES);
	free(whole);
	free(image);
	bench_end(&b);
}

static void test_random_bytes_in_tables(void)
{
	struct image_tables from;

	fill(3);
	from = tables_of(&b);
	for (int i = 0; i < TRIES; i++) {
		uint8_t *inodes = (uint8_t *)b.inodes, *files = (uint8_t *)b.files;
		uint64_t slots = b.inodes->at.blocks;

		for (int changes = 0; changes < 20; changes++) {
			inodes[slots + (uint64_t)random() % (b.inodes->at.end - slots)] =
				(uint8_t)random();
			files[(uint64_t)random() % file_table_bytes(FILES)] = (uint8_t)random();
		}
		write_image();
		read_everything();
		free(image);
	}
	b.inodes->at.slots += 4096;
	CHECK_EQUAL(session_image_write(&from, NULL, 0), -EINVAL);
	b.inodes->at.slots -= 4096;
	b.inodes->blocks_used = UINT32_MAX;
	CHECK_EQUAL(session_image_write(&from, NULL, 0), -EINVAL);
}

int main(void)
{
	RUN(test_round_trip);
	RUN(test_fields_are_found_by_name);
	RUN(test_random_bytes_in_an_image);
	RUN(test_random_bytes_in_tables);
	return 0;
}
