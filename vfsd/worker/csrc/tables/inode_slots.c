/* SPDX-License-Identifier: Apache-2.0 */
/*
 * THEORY
 *
 * Purpose. The table takes memory only for the inodes that the guest knows. Slots are in blocks of
 * one page, the lowest free slot is taken first, and the page of a block is given back to the host
 * when none of its slots is in use any more (inode_trim.c, off the request path).
 *
 * Free slots. A block has a bit for each of its places; the bit is set while the place is not
 * free. Above the blocks are levels of bits that lead to the free slots: the lowest level has a
 * bit for each block, and each higher level has a bit for each word of the level below. A set bit
 * means that there may be a free slot below; a worker that finds none clears the bit. At every
 * store it holds that a bit is not clear while there is a free slot below, except in a block that
 * is closed. All these bits are changed under free_lock.
 *
 * Giving back. First the block is closed, so that no slot is taken from it. Then the highest
 * generation of its slots is kept in its struct inode_block; slots of the block will continue from
 * there, so a nodeid is never given out twice. Then the page is removed from the shared memory,
 * and the block is opened.
 *
 * No worker reads a slot of that page. inode_table_get() and every walk through the table check
 * the bit of a place first, and the bit is cleared only after every worker that could use the
 * inode has passed a quiescent point (reclaim.h). A worker with a stale nodeid may still see the
 * bit set, and read the slot a moment later. It finds an even generation, or 0 if the page has
 * gone, and neither matches a nodeid. Its read brings an empty page back, which does no harm but
 * for the memory.
 *
 * Death of a worker at any store. A place whose bit is set, but in which no inode was entered, is
 * lost (120 bytes, and its page is never given back). A block that is closed is opened by the next
 * worker in that slot of the worker table, and marked, so that it is visited again.
 */
#include "worker/csrc/tables/inode_slots.h"

#include "worker/csrc/tables/inode_layout.h"
#include "worker/csrc/tables/reclaim.h"
#include "worker/csrc/tables/tables.h"

#include <sys/mman.h>
#include <unistd.h>

enum {
	WORD_BITS = 64,
	WORD_SHIFT = 6,
	GIVE_BACK_MAX = 256, /* blocks that are given back by one call */
};

#define NO_BLOCK UINT32_MAX

uint32_t inode_slots_blocks(uint32_t slots)
{
	return slots / INODE_BLOCK + (slots % INODE_BLOCK != 0);
}

/* The number of words of a level. The highest level has a few words, which are searched one by one.
 * */
static uint32_t words_of(uint32_t blocks, unsigned int level)
{
	for (unsigned int i = 0; i <= level; i++)
		blocks = (blocks + WORD_BITS - 1) / WORD_BITS;
	return blocks;
}

uint64_t inode_slots_level_bytes(uint32_t blocks, unsigned int level)
{
	return (uint64_t)words_of(blocks, level) * sizeof(uint64_t);
}

/* ---- where free slots are ---- */

static uint64_t *word_at(const struct inode_table *t, unsigned int level, uint32_t word)
{
	return (uint64_t *)at_offset(t, t->at.open[level]) + word;
}

static uint64_t bit_of(uint32_t at)
{
	return UINT64_C(1) << at % WORD_BITS;
}

/* Set the bits that lead to this block. */
static void show(struct inode_table *t, uint32_t block)
{
	for (unsigned int level = BLOCK_LEVELS; level--;) {
		uint32_t at = block >> WORD_SHIFT * level;
		uint64_t *word = word_at(t, level, at / WORD_BITS);

		__atomic_store_n(word, *word | bit_of(at), __ATOMIC_RELEASE);
	}
}

/* Clear the block's bit, and each bit above it that leads to no other block. */
static void hide(struct inode_table *t, uint32_t block)
{
	for (unsigned int level = 0; level < BLOCK_LEVELS; level++) {
		uint32_t at = block >> WORD_SHIFT * level;
		uint64_t *word = word_at(t, level, at / WORD_BITS);

		__atomic_store_n(word, *word & ~bit_of(at), __ATOMIC_RELEASE);
		if (*word)
			break;
	}
}

/* Find the first block to which the bits below a word of the highest level lead. Return: false if
 * there is none. In that case the worker that hid the last block died before it had cleared all
 * bits, and this function clears the bit that it followed. */
static bool descend(struct inode_table *t, uint32_t at, uint32_t *ret_block)
{
	for (unsigned int level = BLOCK_LEVELS; level--;) {
		uint64_t word = *word_at(t, level, at);

		if (!word) {
			hide(t, at << WORD_SHIFT * (level + 1));
			return false;
		}
		at = at * WORD_BITS + (uint32_t)__builtin_ctzll(word);
	}
	*ret_block = at;
	return true;
}

/* Return: the lowest block to which the bits lead, or NO_BLOCK. */
static uint32_t find_shown(struct inode_table *t)
{
	uint32_t words = words_of(t->block_count, BLOCK_LEVELS - 1), block = NO_BLOCK;

	for (uint32_t at = 0; at < words;) {
		if (!*word_at(t, BLOCK_LEVELS - 1, at))
			at++;
		else if (descend(t, at, &block))
			break;
	}
	return block;
}

/* Make the lowest block with a free slot t->lowest. Return: false if there is none. Not inlined,
 * because it is called once for many slots. */
static __attribute__((noinline)) bool find_lowest(struct inode_table *t)
{
	for (;;) {
		uint32_t block = find_shown(t);

		if (block == NO_BLOCK && t->blocks_used == t->block_count) {
			note_fullness(t, INODES_FULL);
			return false;
		}
		if (block == NO_BLOCK) {
			block = t->blocks_used;
			show(t, block);
		}
		if (block >= t->blocks_used)
			__atomic_store_n(&t->blocks_used, block + 1, __ATOMIC_RELEASE);
		if (block_at(t, block)->used != BLOCK_FULL && !block_at(t, block)->closed_by) {
			t->lowest = block;
			if (block >= t->block_count / 5 * 4 + 1)
				note_fullness(t, INODES_MANY);
			return true;
		}
		hide(t, block);
	}
}

/* ---- taking and freeing ---- */

void inode_slots_init(struct inode_table *t, uint32_t slots)
{
	uint32_t rest = slots % INODE_BLOCK;

	t->block_count = inode_slots_blocks(slots);
	t->missing = rest ? BLOCK_FULL & ~((UINT64_C(1) << rest) - 1) : 0;
	block_at(t, t->block_count - 1)->used = t->missing;
	block_at(t, 0)->used |= 1; /* the root */
	t->blocks_used = 1;
	show(t, 0);
}

/* Take the first free place of t->lowest. Return: its slot. */
static uint32_t take_place(struct inode_table *t)
{
	struct inode_block *b = block_at(t, t->lowest);
	uint32_t place = (uint32_t)__builtin_ctzll(~b->used);

	if (b->is_vacant)
		__atomic_store_n(&b->is_vacant, 0, __ATOMIC_RELEASE);
	__atomic_store_n(&b->used, b->used | bit_of(place), __ATOMIC_RELEASE);
	return slot_in(t->lowest, place);
}

/* The generation from which a slot goes on whose page is new or was given back. */
static uint32_t next_generation(const struct inode_table *t, uint32_t block)
{
	uint32_t kept = block_at(t, block)->generation;

	return kept ? kept : t->first_generation;
}

struct inode *inode_slots_take(struct inode_table *t, uint32_t worker)
{
	struct inode *inode = NULL;
	uint32_t slot = 0;

	owner_lock(&t->free_lock, worker);
	if (__builtin_expect(block_at(t, t->lowest)->used != BLOCK_FULL, 1) || find_lowest(t))
		slot = take_place(t);
	owner_unlock(&t->free_lock);
	if (!slot)
		return NULL;
	inode = slot_at(t, slot);
	if (!inode->generation)
		__atomic_store_n(&inode->generation, next_generation(t, block_of(slot)),
				 __ATOMIC_RELAXED);
	return inode;
}

bool inode_slots_take_at(struct inode_table *t, uint32_t worker, uint32_t slot)
{
	uint32_t block = block_of(slot), place = place_of(slot);
	struct inode_block *b;
	bool is_free;

	if (block >= t->block_count || place >= INODE_BLOCK || slot != slot_in(block, place))
		return false;
	b = block_at(t, block);
	owner_lock(&t->free_lock, worker);
	for (; t->blocks_used <= block; t->blocks_used++)
		show(t, t->blocks_used);
	is_free = !(b->used & bit_of(place));
	b->used |= bit_of(place);
	owner_unlock(&t->free_lock);
	return is_free;
}

static void free_place(struct inode_table *t, uint32_t slot)
{
	uint32_t block = block_of(slot), place = place_of(slot);
	struct inode_block *b = block_at(t, block);

	if (b->used == BLOCK_FULL)
		show(t, block);
	__atomic_store_n(&b->used, b->used & ~bit_of(place), __ATOMIC_RELEASE);
	if (block < t->lowest)
		t->lowest = block;
	if (!b->used)
		mark_block(t, block);
}

static void free_slot(void *table, struct reclaim *reclaim, uint32_t slot)
{
	struct inode_table *t = table;
	struct inode *inode = slot_at(t, slot);
	uint32_t mount_id = inode_key_mount_id(inode_key_of(inode));

	inode->fd = -1;
	inode->retired_by = 0;
	if (mount_id != t->mounts.root_id)
		mount_table_leave(&t->mounts, reclaim, mount_id);
	owner_lock(&t->free_lock, reclaim->slot);
	free_place(t, slot);
	owner_unlock(&t->free_lock);
	__atomic_sub_fetch(&t->in_use, 1, __ATOMIC_RELAXED);
}

void inode_slots_retire(struct inode_table *t, struct reclaim *reclaim, struct inode *inode)
{
	if (!inode->lender && inode->fd >= 0)
		__atomic_sub_fetch(&t->held, 1, __ATOMIC_RELAXED);
	reclaim_retire(reclaim, (struct retired){.fd = inode->lender ? -1 : inode->fd,
						 .slot = slot_of(t, inode),
						 .free_slot = free_slot,
						 .table = t});
}

uint64_t inode_slots_count(const struct inode_table *t)
{
	uint64_t places = (uint64_t)t->block_count * INODE_BLOCK;

	return places - (uint32_t)__builtin_popcountll(t->missing) - 1;
}

uint32_t inode_slots_after(const struct inode_table *t, uint32_t slot)
{
	uint32_t end = blocks_used(t), place = place_of(slot) + 1;

	for (uint32_t block = block_of(slot); block < end; block++, place = 0) {
		uint64_t used = __atomic_load_n(&block_at(t, block)->used, __ATOMIC_ACQUIRE);

		used = used >> place << place;
		if (block == t->block_count - 1)
			used &= ~t->missing;
		if (used)
			return slot_in(block, (uint32_t)__builtin_ctzll(used));
	}
	return 0;
}

/* ---- giving memory back ---- */

bool inode_slots_is_empty(const struct inode_table *t, uint32_t block)
{
	const struct inode_block *b = block_at(t, block);

	return !__atomic_load_n(&b->used, __ATOMIC_ACQUIRE) &&
	       !__atomic_load_n(&b->is_vacant, __ATOMIC_ACQUIRE);
}

/* Return: false if a slot of the block is in use, or if another worker has closed the block. */
static bool close_block(struct inode_table *t, uint32_t worker, uint32_t block)
{
	struct inode_block *b = block_at(t, block);
	bool is_ours;

	owner_lock(&t->free_lock, worker);
	is_ours = !b->used && !b->closed_by;
	if (is_ours) {
		if (t->lowest == block)
			t->lowest = 0; /* block 0 has the root, so it is never closed */
		__atomic_store_n(&b->closed_by, (uint8_t)(worker + 1), __ATOMIC_RELEASE);
		hide(t, block);
	}
	owner_unlock(&t->free_lock);
	return is_ours;
}

static void open_block(struct inode_table *t, uint32_t worker, uint32_t block, bool is_removed)
{
	struct inode_block *b = block_at(t, block);

	owner_lock(&t->free_lock, worker);
	if (is_removed)
		__atomic_store_n(&b->is_vacant, 1, __ATOMIC_RELEASE);
	show(t, block);
	__atomic_store_n(&b->closed_by, 0, __ATOMIC_RELEASE);
	owner_unlock(&t->free_lock);
}

/* Keep the highest generation of the block's slots. A page that was given back is not read, since a
 * read would bring it back. */
static void keep_generation(struct inode_table *t, uint32_t block)
{
	struct inode_block *b = block_at(t, block);

	for (uint32_t place = 0; place < INODE_BLOCK && !b->is_vacant; place++) {
		const struct inode *inode = slot_at(t, slot_in(block, place));
		uint32_t generation = __atomic_load_n(&inode->generation, __ATOMIC_RELAXED);

		if (generation > b->generation)
			__atomic_store_n(&b->generation, generation, __ATOMIC_RELEASE);
	}
}

/* Remove the pages of `count` closed blocks, which together fill whole pages. Return: true if the
 * pages were removed. */
static bool remove_pages(struct inode_table *t, uint32_t block, uint32_t count)
{
	for (uint32_t i = 0; i < count; i++)
		keep_generation(t, block + i);
	return count &&
	       !madvise(slot_at(t, slot_in(block, 0)), (size_t)count * BLOCK_BYTES, MADV_REMOVE);
}

static uint32_t blocks_in_page(void)
{
	long bytes = sysconf(_SC_PAGESIZE);

	return bytes > BLOCK_BYTES ? (uint32_t)bytes / BLOCK_BYTES : 1;
}

uint32_t inode_slots_give_back(struct inode_table *t, uint32_t worker, uint32_t block)
{
	uint32_t in_page = blocks_in_page(), first = block / in_page * in_page, end = first, count;
	bool is_removed;

	while (end - first < GIVE_BACK_MAX && end < blocks_used(t) &&
	       (in_page > 1 || inode_slots_is_empty(t, end)) && close_block(t, worker, end))
		end++;
	count = (end - first) / in_page * in_page;
	is_removed = remove_pages(t, first, count);
	for (uint32_t at = first; at < end; at++)
		open_block(t, worker, at, is_removed && at < first + count);
	return end - first;
}

void inode_slots_adopt(struct inode_table *t, uint32_t worker)
{
	for (uint32_t block = 0; block < blocks_used(t); block++) {
		if (block_at(t, block)->closed_by == worker + 1)
			open_block(t, worker, block, false);
		if (inode_slots_is_empty(t, block)) /* the dead worker may have taken its mark */
			mark_block(t, block);
	}
}
