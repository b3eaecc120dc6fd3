/* SPDX-License-Identifier: Apache-2.0 */
/* A worker that dies while it splits or joins hash chains of the inode table: every inode is found
 * all the same. */
#include "tables_death.h"

#include "worker/csrc/tables/inode_hash.h"
#include "worker/csrc/tables/inode_layout.h"

#ifdef __x86_64__

enum {
	ROOMY = 20 * 1024, /* inodes, which may have twice ROWS_MIN rows */
	CHAINED = 24,
	STEPS_MAX = 700, /* enough for the first of STRIPES stripes */
};

static uint32_t chained[CHAINED];
static uint64_t chained_nodeids[CHAINED];
static uint32_t chained_known;

/* Files of one stripe. Each file that is looked up makes a chain split. */
static void look_up_chained(uint32_t count)
{
	uint32_t found = 0;

	__atomic_store_n(&b.inodes->rows, 2 * ROWS_MIN, __ATOMIC_RELEASE);
	for (uint32_t number = 1; found < CHAINED; number++)
		if (hash_of(key(number)) % STRIPES == 0)
			chained[found++] = number;
	for (uint32_t i = 0; i < count; i++)
		chained_nodeids[i] = lookup(&b, OTHER, chained[i]);
	chained_known = count;
}

static void prepare_to_split(void)
{
	look_up_chained(5);
	CHECK_EQUAL(b.inodes->chains[0].end, (ROWS_MIN + 5) * STRIPES);
}

static void prepare_to_join(void)
{
	look_up_chained(CHAINED);
	CHECK_EQUAL(b.inodes->chains[0].end, 2 * ROWS_MIN * STRIPES);
}

static void run_split(void)
{
	lookup(&b, VICTIM, chained[CHAINED - 1]);
}

static void run_join(void)
{
	inode_table_shrink(b.inodes, VICTIM);
}

/* The memory that decides in which chain of the stripe an inode is. */
struct stripe_image {
	struct inode_chains chains;
	struct inode_resize resize;
	uint32_t rows, lock, rows_lock;
	uint32_t heads[2 * ROWS_MIN];
	uint32_t next[CHAINED];
};

static struct stripe_image stripe_image_of(const struct inode_table *t)
{
	struct stripe_image ret = {
		.chains = t->chains[0],
		.resize = t->resizes[0],
		.rows = t->rows,
		.lock = t->stripes[0],
		.rows_lock = t->rows_lock,
	};

	for (uint32_t row = 0; row < 2 * ROWS_MIN; row++)
		ret.heads[row] = *inode_hash_head(t, row * STRIPES);
	for (uint32_t i = 0; i < chained_known; i++)
		ret.next[i] = slot_at(t, (uint32_t)chained_nodeids[i])->next;
	return ret;
}

static bool stripe_differs(const struct image *image)
{
	struct stripe_image now = stripe_image_of(b.inodes);
	struct stripe_image then = stripe_image_of((const struct inode_table *)image->inodes);

	return memcmp(&now, &then, sizeof(now));
}

/* Each inode is in one chain, and can leave it. */
static void check_chained(void)
{
	bury(VICTIM);
	for (uint32_t i = 0; i < chained_known; i++) {
		CHECK_EQUAL(lookup(&b, OTHER, chained[i]), chained_nodeids[i]);
		forget(&b, OTHER, chained_nodeids[i], 2);
		CHECK(!inode_table_knows(b.inodes, OTHER, key(chained[i])));
	}
}

static const struct operation OPERATIONS[] = {
	{prepare_to_split, run_split, 9, 0},
	{prepare_to_join, run_join, 9, STEPS_MAX},
};

static void test_death_while_chains_change(void)
{
	const struct setting setting = {ROOMY, check_chained, stripe_differs};

	for (size_t i = 0; i < sizeof(OPERATIONS) / sizeof(OPERATIONS[0]); i++)
		step_through(&setting, &OPERATIONS[i]);
}

#endif

int main(void)
{
#ifdef __x86_64__
	RUN(test_death_while_chains_change);
#endif
	return 0;
}
