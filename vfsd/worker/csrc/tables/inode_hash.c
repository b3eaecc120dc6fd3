/* SPDX-License-Identifier: Apache-2.0 */
/*
 * THEORY
 *
 * Purpose. The number of chains follows the number of inodes that the guest knows. It changes
 * while every worker goes on with its requests.
 *
 * Layout. A stripe is a lock and the chains that the lock protects. The low bits of a hash choose
 * the stripe; the other bits choose a row. A row has one chain of every stripe, so stripe and row
 * together name a chain. The heads of a row's chains lie side by side, in a page or a part of a
 * page. So a row that no stripe uses takes no memory.
 *
 * Linear hashing. Each stripe has its own number of rows. It grows by splitting one chain, and
 * shrinks by joining two chains. Both are done under the stripe's lock, so a worker never waits
 * for more than two chains. `rows` of the table is the number of rows up to which a stripe may
 * grow; it rises with the number of inodes. A stripe that has fewer rows splits one chain whenever
 * an inode is linked in it.
 *
 * Giving back. A worker that holds rows_lock lowers `rows`, and then locks each stripe once and
 * shrinks it to that number of rows. A stripe that was shrunk does not grow into the rows above,
 * because it reads `rows` under its own lock. So the memory of those rows can be given back. A
 * worker that wants to raise `rows` does not wait for rows_lock: the chains are a little longer
 * until a later attempt.
 *
 * Death of a worker at any store. A resize is written down before it begins: the stripe's entry in
 * `resizes` describes it, `end` of the stripe's chains is 0 while the resize goes on, and `moving`
 * names the slot that is in neither chain for a moment. The next worker that locks the stripe
 * finds no bucket below `end`, and completes the resize (settle) before it looks at a chain.
 */
#include "worker/csrc/tables/inode_hash.h"

#include "worker/csrc/tables/inode_layout.h"
#include "worker/csrc/tables/table_count.h"

#include <sys/mman.h>

enum {
	RESIZE_GROW = 1 << 30, /* the stripe grows; without this flag it shrinks */
	ROW_BYTES = STRIPES * sizeof(uint32_t),
	SHRINK_ROWS = 16, /* rows that are given back together; they fill the largest page */
};

_Static_assert(SHRINK_ROWS *ROW_BYTES == GRANULE, "rows are given back in whole pages");
_Static_assert(ROWS_MIN % SHRINK_ROWS == 0, "rows are given back in whole pages");

/* The number of rows that suits this number of inodes. */
static uint32_t rows_for(uint64_t inodes)
{
	uint64_t rows = inodes / STRIPES + 1;

	rows = (rows + SHRINK_ROWS - 1) / SHRINK_ROWS * SHRINK_ROWS;
	return rows < ROWS_MIN ? ROWS_MIN : (uint32_t)rows;
}

uint64_t inode_hash_bytes(uint32_t capacity)
{
	return (uint64_t)rows_for(capacity) * ROW_BYTES;
}

static void set_rows(struct inode_table *t, uint32_t stripe, uint32_t rows)
{
	struct inode_chains *chains = &t->chains[stripe];
	uint32_t end = rows * STRIPES;

	__atomic_store_n(&chains->mask, UINT32_MAX >> __builtin_clz(end - 1), __ATOMIC_RELEASE);
	__atomic_store_n(&chains->end, end, __ATOMIC_RELEASE);
}

static uint32_t rows_in_use(const struct inode_table *t, uint32_t stripe)
{
	return t->chains[stripe].end / STRIPES;
}

void inode_hash_init(struct inode_table *t, uint32_t capacity)
{
	t->row_count = rows_for(capacity);
	t->rows = ROWS_MIN;
	for (uint32_t stripe = 0; stripe < STRIPES; stripe++)
		set_rows(t, stripe, ROWS_MIN);
}

/* The row from which `row` was split off, and with which it is joined again. */
static uint32_t row_below(uint32_t row)
{
	return row & UINT32_MAX >> __builtin_clz(row) >> 1;
}

static uint32_t row_of(uint64_t hash, uint32_t rows)
{
	uint32_t row = (uint32_t)(hash >> STRIPE_BITS) & UINT32_MAX >> __builtin_clz(rows);

	return row < rows ? row : row_below(row);
}

static uint32_t row_of_slot(const struct inode_table *t, uint32_t slot, uint32_t rows)
{
	return row_of(hash_of(inode_key_of(slot_at(t, slot))), rows);
}

/* ---- splitting and joining chains ---- */

static uint32_t *head_in(const struct inode_table *t, uint32_t stripe, uint32_t row)
{
	return inode_hash_head(t, row * STRIPES + stripe);
}

static void set_moving(struct inode_table *t, uint32_t stripe, uint32_t slot)
{
	__atomic_store_n(&t->resizes[stripe].moving, slot, __ATOMIC_RELEASE);
}

/* Move those inodes from row `from` to row `to` that belong there when the stripe has `rows` rows.
 * */
static void move(struct inode_table *t, uint32_t stripe, uint32_t from, uint32_t to, uint32_t rows)
{
	uint32_t *link = head_in(t, stripe, from);

	while (*link) {
		uint32_t slot = *link;

		if (row_of_slot(t, slot, rows) != to) {
			link = &slot_at(t, slot)->next;
			continue;
		}
		set_moving(t, stripe, slot);
		__atomic_store_n(link, slot_at(t, slot)->next, __ATOMIC_RELEASE);
		inode_hash_push(t, head_in(t, stripe, to), slot);
		set_moving(t, stripe, 0);
	}
}

/* Carry out the resize that is written down, or complete it for a worker that died. */
static __attribute__((noinline)) void settle(struct inode_table *t, uint32_t stripe)
{
	const struct inode_resize *resize = &t->resizes[stripe];
	bool grows = resize->rows & RESIZE_GROW;
	uint32_t before = resize->rows & ~(uint32_t)RESIZE_GROW,
		 rows = grows ? before + 1 : before - 1;
	uint32_t high = grows ? before : rows, low = row_below(high), slot = resize->moving;

	if (slot) {
		inode_hash_remove(t, head_in(t, stripe, low), slot);
		inode_hash_remove(t, head_in(t, stripe, high), slot);
		inode_hash_push(t, head_in(t, stripe, row_of_slot(t, slot, rows)), slot);
		set_moving(t, stripe, 0);
	}
	move(t, stripe, grows ? low : high, grows ? high : low, rows);
	set_rows(t, stripe, rows);
}

static void settle_if_begun(struct inode_table *t, uint32_t stripe)
{
	if (!t->chains[stripe].end) /* the worker that held the lock died */
		settle(t, stripe);
}

/* Add a row to the stripe (`flag` is RESIZE_GROW) or remove its last row (0). */
static void resize(struct inode_table *t, uint32_t stripe, uint32_t flag)
{
	__atomic_store_n(&t->resizes[stripe].rows, rows_in_use(t, stripe) | flag, __ATOMIC_RELEASE);
	__atomic_store_n(&t->chains[stripe].end, 0, __ATOMIC_RELEASE);
	settle(t, stripe);
}

uint32_t inode_hash_fold(struct inode_table *t, uint64_t hash)
{
	uint32_t stripe = hash % STRIPES;

	settle_if_begun(t, stripe);
	return row_of(hash, rows_in_use(t, stripe)) * STRIPES + stripe;
}

/* ---- growing ---- */

static void raise_rows(struct inode_table *t, uint32_t worker)
{
	uint32_t wanted = rows_for(table_count(&t->in_use));

	if (wanted > t->row_count)
		wanted = t->row_count;
	if (wanted <= __atomic_load_n(&t->rows, __ATOMIC_RELAXED) ||
	    !owner_trylock(&t->rows_lock, worker))
		return;
	if (wanted > t->rows)
		__atomic_store_n(&t->rows, wanted, __ATOMIC_RELEASE);
	owner_unlock(&t->rows_lock);
}

void inode_hash_grow(struct inode_table *t, uint32_t worker, uint64_t hash)
{
	uint32_t stripe = hash % STRIPES;

	if (rows_in_use(t, stripe) < __atomic_load_n(&t->rows, __ATOMIC_ACQUIRE))
		resize(t, stripe, RESIZE_GROW);
	raise_rows(t, worker);
}

/* ---- giving memory back ---- */

static void shrink(struct inode_table *t, uint32_t worker, uint32_t stripe, uint32_t rows)
{
	owner_lock(&t->stripes[stripe], worker);
	settle_if_begun(t, stripe);
	while (rows_in_use(t, stripe) > rows)
		resize(t, stripe, 0);
	owner_unlock(&t->stripes[stripe]);
}

/* Are there more than one and a half times the rows that are needed? With a lower limit, rows would
 * come and go. */
static bool is_too_large(const struct inode_table *t)
{
	uint64_t wanted = rows_for(table_count(&t->in_use));

	return __atomic_load_n(&t->rows, __ATOMIC_RELAXED) > wanted + wanted / 2;
}

bool inode_hash_shrink(struct inode_table *t, uint32_t worker)
{
	uint32_t rows;

	if (!is_too_large(t) || !owner_trylock(&t->rows_lock, worker))
		return false;
	rows = t->rows - SHRINK_ROWS;
	__atomic_store_n(&t->rows, rows, __ATOMIC_SEQ_CST);
	for (uint32_t stripe = 0; stripe < STRIPES; stripe++)
		shrink(t, worker, stripe, rows);
	madvise(inode_hash_head(t, rows * STRIPES), SHRINK_ROWS * ROW_BYTES, MADV_REMOVE);
	owner_unlock(&t->rows_lock);
	return is_too_large(t);
}

void inode_hash_bury(struct inode_table *t, uint32_t worker)
{
	owner_lock_bury(&t->rows_lock, worker);
	for (uint32_t i = 0; i < STRIPES; i++)
		owner_lock_bury(&t->stripes[i], worker);
}
