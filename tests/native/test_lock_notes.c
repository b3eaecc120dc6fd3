/* SPDX-License-Identifier: Apache-2.0 */
/* The notes of record locks: they say what a plain table of bytes says, when all notes are in use
 * they say less and never more, and after a death at any instruction they say all or nothing of a
 * change. */
#include "tables_death.h"

#include "worker/csrc/tables/lock_notes.h"

#include <fcntl.h>

enum {
	BYTES = 40,
	OWNERS = 3,
	STEPS = 20000,
	NONE = 0, /* in a byte: not locked; else a type + 1 */
};

struct bytes {
	uint8_t of[BYTES];
};

static struct lock_notes *notes;

static void create(uint32_t capacity)
{
	notes = make_shared(lock_notes_bytes(capacity));
	lock_notes_init(notes, capacity);
}

static void destroy(uint32_t capacity)
{
	munmap(notes, lock_notes_bytes(capacity));
}

static void mark(struct bytes *bytes, const struct lock_note *range)
{
	for (uint64_t i = range->start; i <= range->end && i < BYTES; i++)
		bytes->of[i] = range->type == F_UNLCK ? NONE : (uint8_t)(range->type + 1);
}

/* What the notes of an owner say. */
static struct bytes read_notes(const struct lock_notes *n, uint32_t head, uint32_t capacity)
{
	const struct lock_note *h = lock_notes_head(n, head), *range = h;
	struct bytes ret = {0};
	uint32_t count = 0;

	while ((range = lock_notes_peek(n, range->next, capacity))) {
		CHECK(++count < capacity && range->start <= range->end);
		mark(&ret, range);
	}
	if (h->state == LOCK_NOTES_CHANGED)
		mark(&ret, h);
	return ret;
}

static bool are_same(struct bytes a, struct bytes b)
{
	return !memcmp(&a, &b, sizeof(a));
}

static struct lock_note random_change(void)
{
	static const int16_t types[] = {F_RDLCK, F_WRLCK, F_UNLCK};
	uint64_t start = (uint64_t)random() % BYTES;

	return (struct lock_note){.start = start,
				  .end = start + (uint64_t)random() % (BYTES - start),
				  .type = types[random() % 3]};
}

static bool change(uint32_t head, const struct lock_note *what)
{
	lock_notes_try(notes, head, what->start, what->end, what->type);
	return lock_notes_change(notes, 0, head);
}

static void test_notes_say_what_is_locked(void)
{
	const uint32_t capacity = 1 + OWNERS * (1 + BYTES);
	struct bytes model[OWNERS] = {0};
	uint32_t heads[OWNERS];

	create(capacity);
	for (int i = 0; i < OWNERS; i++)
		CHECK((heads[i] = lock_notes_begin(notes, 0)));
	for (int i = 0; i < STEPS; i++) {
		struct lock_note what = random_change();
		long at = random() % OWNERS;

		if (random() % 4) {
			CHECK(change(heads[at], &what));
			mark(&model[at], &what);
		} else {
			lock_notes_try(notes, heads[at], what.start, what.end, what.type);
			lock_notes_refused(notes, heads[at]);
		}
		for (int owner = 0; owner < OWNERS; owner++)
			CHECK(are_same(read_notes(notes, heads[owner], capacity), model[owner]));
	}
	for (int i = 0; i < OWNERS; i++) {
		lock_notes_end(notes, 0, &heads[i]);
		CHECK(!heads[i]);
	}
	for (uint32_t i = 1; i < notes->next_unused; i++)
		CHECK(lock_notes_begin(notes, 0) < notes->next_unused); /* all were given back */
	destroy(capacity);
}

static void test_neighbours_become_one(void)
{
	uint32_t head;

	create(4);
	head = lock_notes_begin(notes, 0);
	for (uint64_t i = 0; i < 100; i++) {
		struct lock_note up = {.start = 1000 + i, .end = 1000 + i, .type = F_WRLCK};
		struct lock_note down = {.start = 999 - i, .end = 999 - i, .type = F_WRLCK};

		CHECK(change(head, &up) && change(head, &down));
	}
	destroy(4);
}

static void test_full_notes_claim_nothing_that_is_not_held(void)
{
	const uint32_t capacity = 6;
	struct bytes model = {0}, noted;
	uint32_t head, missed = 0;

	create(capacity);
	CHECK((head = lock_notes_begin(notes, 0)));
	for (int i = 0; i < STEPS; i++) {
		struct lock_note what = random_change();

		missed += !change(head, &what);
		mark(&model, &what);
		noted = read_notes(notes, head, capacity);
		for (int at = 0; at < BYTES; at++)
			CHECK(noted.of[at] == NONE || noted.of[at] == model.of[at]);
	}
	CHECK(missed);
	while (lock_notes_begin(notes, 0))
		continue;
	CHECK(!lock_notes_begin(notes, 0));
	destroy(capacity);
}

#ifdef __x86_64__

static uint32_t shared_head;
static struct lock_note shared_change;
static struct bytes before, after;

static struct bytes shared_bytes(void)
{
	return read_notes(file_table_lock_notes(b.files), shared_head, FILES);
}

static bool files_differ(const struct image *image)
{
	return memcmp(b.files, image->files, file_table_bytes(FILES));
}

static void count_notes(void)
{
	uint32_t count = 0;

	if (shared_head)
		lock_notes_end(file_table_lock_notes(b.files), OTHER, &shared_head);
	while (lock_notes_begin(file_table_lock_notes(b.files), OTHER))
		CHECK(++count < FILES);
	CHECK(count + 1 >= FILES - 1); /* a death loses one at most */
}

/* The worker has died during a change. */
static void other_finds_all_or_nothing(void)
{
	struct lock_notes *n = file_table_lock_notes(b.files);
	uint16_t state = lock_notes_head(n, shared_head)->state;
	uint32_t head = shared_head;

	bury(VICTIM);
	CHECK(are_same(shared_bytes(), before) || are_same(shared_bytes(), after));
	if (state == LOCK_NOTES_CHANGED) {
		CHECK(are_same(shared_bytes(), after));
		CHECK(lock_notes_change(n, OTHER, shared_head));
		CHECK(are_same(shared_bytes(), after));
	}
	count_notes();
	shared_head = head;
}

static void prepare(void)
{
	struct lock_notes *n = file_table_lock_notes(b.files);

	shared_head = lock_notes_begin(n, OTHER);
	lock_notes_try(n, shared_head, 0, 9, F_RDLCK);
	CHECK(lock_notes_change(n, OTHER, shared_head));
	lock_notes_try(n, shared_head, 20, 29, F_WRLCK);
	CHECK(lock_notes_change(n, OTHER, shared_head));
	before = after = shared_bytes();
	mark(&after, &shared_change);
}

static void run_change(void)
{
	struct lock_notes *n = file_table_lock_notes(b.files);

	lock_notes_try(n, shared_head, shared_change.start, shared_change.end, shared_change.type);
	CHECK(lock_notes_change(n, VICTIM, shared_head));
}

static void test_death_during_a_change(void)
{
	static const struct lock_note changes[] = {
		{.start = 3, .end = 5, .type = F_UNLCK},
		{.start = 3, .end = 5, .type = F_WRLCK},
		{.start = 5, .end = 24, .type = F_UNLCK},
		{.start = 5, .end = 24, .type = F_RDLCK},
		{.start = 10, .end = 12, .type = F_RDLCK},
		{.start = 18, .end = 19, .type = F_WRLCK},
		{.start = 0, .end = BYTES, .type = F_WRLCK},
		{.start = 0, .end = BYTES, .type = F_UNLCK},
	};
	const struct setting setting = {INODES, other_finds_all_or_nothing, files_differ};
	const struct operation operation = {prepare, run_change, 5, 0};

	for (size_t i = 0; i < sizeof(changes) / sizeof(changes[0]); i++) {
		shared_change = changes[i];
		step_through(&setting, &operation);
	}
}

/* Give the notes back, of an open file that is in the table. */
static uint32_t *kept_head;

static void prepare_end(void)
{
	kept_head = &file_table_at(b.files, 1)->notes;
	prepare();
	*kept_head = shared_head;
}

static void run_end(void)
{
	lock_notes_end(file_table_lock_notes(b.files), VICTIM, kept_head);
}

static void other_ends_the_list(void)
{
	bury(VICTIM);
	shared_head = *kept_head;
	count_notes();
}

static void test_death_at_the_end_of_an_owner(void)
{
	const struct setting setting = {INODES, other_ends_the_list, files_differ};

	step_through(&setting, &(struct operation){prepare_end, run_end, 8, 0});
}

#endif

int main(void)
{
	RUN(test_notes_say_what_is_locked);
	RUN(test_neighbours_become_one);
	RUN(test_full_notes_claim_nothing_that_is_not_held);
#ifdef __x86_64__
	RUN(test_death_during_a_change);
	RUN(test_death_at_the_end_of_an_owner);
#endif
	return 0;
}
