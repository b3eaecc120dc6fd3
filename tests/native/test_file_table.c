/* SPDX-License-Identifier: Apache-2.0 */
/* Open files, their pins, and the lock owners. */
#include "small_tables.h"

static void test_open_and_release(void)
{
	uint64_t fh, again;
	int fd;

	begin();
	fh = open_file(&b, 0, 42, 7);
	CHECK(fh && file_table_get(b.files, fh, 42));
	CHECK(!file_table_get(b.files, fh, 43));
	CHECK(!file_table_get(b.files, fh + 1, 42));
	CHECK(!file_table_get(b.files, 0, 42));
	CHECK(!file_table_get(b.files, UINT64_MAX, 42));
	CHECK(!file_table_get(b.files, fh + (UINT64_C(2) << 32), 42));
	fd = file_table_get(b.files, fh, 42)->fd;
	release(0, fh, 42);
	CHECK(!file_table_get(b.files, fh, 42));
	quiesce(&b, 0);
	CHECK(!fd_is_open(&b, fd));
	again = open_file(&b, 0, 42, 7);
	CHECK((uint32_t)again == (uint32_t)fh && again != fh);
	CHECK(!file_table_get(b.files, fh, 42));
	end();
}

static void test_released_twice(void)
{
	struct open_file *file;
	uint64_t fh;

	begin();
	fh = open_file(&b, 0, 42, 7);
	file = file_table_get(b.files, fh, 42);
	file_table_release(b.files, &b.reclaims[0], file);
	file_table_release(b.files, &b.reclaims[1], file);
	quiesce(&b, 0);
	quiesce(&b, 1);
	CHECK_EQUAL(file_table_count(b.files), 0);
	end();
}

static void test_full_file_table(void)
{
	uint64_t fhs[FILES];
	struct open_file *file;

	begin();
	for (uint32_t i = 1; i < FILES; i++)
		CHECK((fhs[i] = open_file(&b, 0, 42, i)));
	CHECK(!file_table_reserve(b.files, 0));
	release(0, fhs[3], 42);
	CHECK(!file_table_reserve(b.files, 0)); /* not before the quiescent point */
	quiesce(&b, 0);
	file = file_table_reserve(b.files, 0);
	CHECK(file && !file_table_reserve(b.files, 0));
	file_table_abandon(b.files, 0, file);
	CHECK(file_table_reserve(b.files, 0) == file);
	file_table_reset(b.files, &b.reclaims[0]);
	quiesce(&b, 0);
	CHECK_EQUAL(file_table_count(b.files), 0);
	end();
}

static void test_pinned_files_wait(void)
{
	struct open_file *file;
	uint16_t *pins;
	uint64_t fh;
	int fd;

	begin();
	fh = open_file(&b, 0, 42, 7);
	file = file_table_get(b.files, fh, 42);
	fd = file->fd;
	pins = file_pins_create(b.files);
	file_pin(b.files, pins, 2, file);
	release(1, fh, 42);
	for (int i = 0; i < 10; i++)
		quiesce(&b, 1);
	CHECK(fd_is_open(&b, fd));
	file_unpin(b.files, pins, 2, file);
	quiesce(&b, 1);
	CHECK(!fd_is_open(&b, fd));
	free(pins);
	end();
}

static void test_a_dead_workers_pins_are_taken_back(void)
{
	struct open_file *file;
	uint16_t *pins;
	uint64_t fh;
	int fd;

	begin();
	fh = open_file(&b, 0, 42, 7);
	file = file_table_get(b.files, fh, 42);
	fd = file->fd;
	pins = file_pins_create(b.files);
	file_pin(b.files, pins, 2, file);
	file_pin(b.files, pins, 2, file);
	release(1, fh, 42);
	quiesce(&b, 1);
	CHECK(fd_is_open(&b, fd));
	file_table_bury(b.files, 2);
	quiesce(&b, 1);
	CHECK(!fd_is_open(&b, fd));
	free(pins);
	end();
}

static void test_lock_owners_are_found_once_each(void)
{
	struct open_file *file, *same, *other;
	bool added;

	begin();
	CHECK(!file_table_lock_owner(b.files, 0, 42, 1));
	file = file_table_reserve(b.files, 0);
	CHECK(file_table_add_lock_owner(b.files, 0, file, 42, 1, fd_open(&b, 7), &added) == file);
	CHECK(added && file_table_lock_owner(b.files, 1, 42, 1) == file);
	CHECK(!file_table_lock_owner(b.files, 1, 42, 2) &&
	      !file_table_lock_owner(b.files, 1, 43, 1));
	other = file_table_reserve(b.files, 1);
	same = file_table_add_lock_owner(b.files, 1, other, 42, 1, -1, &added);
	CHECK(!added && same == file);
	CHECK(file_table_add_lock_owner(b.files, 1, other, 42, 2, fd_open(&b, 8), &added) == other);
	file_table_drop_lock_owner(b.files, &b.reclaims[0], file);
	file_table_drop_lock_owner(b.files, &b.reclaims[0], file); /* a second drop does nothing */
	CHECK(!file_table_lock_owner(b.files, 0, 42, 1));
	CHECK(file_table_lock_owner(b.files, 0, 42, 2) == other);
	file_table_reset(b.files, &b.reclaims[0]);
	CHECK(!file_table_lock_owner(b.files, 0, 42, 2));
	quiesce(&b, 0);
	CHECK_EQUAL(file_table_count(b.files), 0);
	end();
}

/* Add many lock owners, and look for each owner first: with all owners in one list that would take
 * minutes. Return: seconds of CPU time, because the machine may be busy. */
static double add_and_find_lock_owners(const uint64_t *owners, uint32_t count)
{
	clock_t started = clock();
	bool added;

	bench_init(&b, INODES, count + 8);
	for (uint32_t i = 0; i < count; i++) {
		struct open_file *file = file_table_reserve(b.files, 0);

		CHECK(file && !file_table_lock_owner(b.files, 0, 42, owners[i]));
		file_table_add_lock_owner(b.files, 0, file, 42, owners[i], fd_open(&b, 7), &added);
		CHECK(added);
	}
	for (uint32_t i = 0; i < count; i++)
		CHECK(file_table_lock_owner(b.files, 0, 42, owners[i]));
	file_table_reset(b.files, &b.reclaims[0]);
	end();
	return (double)(clock() - started) / CLOCKS_PER_SEC;
}

static void test_a_quarter_of_a_million_lock_owners_cost_what_a_few_do(void)
{
	static uint64_t owners[250000];
	double seconds;

	for (uint32_t i = 0; i < 250000; i++)
		owners[i] = (uint64_t)i * 4096;
	seconds = add_and_find_lock_owners(owners, 250000);
	printf("%.1f us per owner\n", seconds * 1e6 / 250000);
	CHECK(seconds < 20);
}

/* The inverse of the odd number `factor` modulo 2^64. */
static uint64_t inverse(uint64_t factor)
{
	uint64_t found = factor;

	for (int i = 0; i < 6; i++)
		found *= 2 - factor * found;
	return found;
}

/* Owners that all had the same value of an earlier hash, which had no secret key. */
static void test_lock_owners_of_a_guests_choice_are_not_in_one_list(void)
{
	const uint64_t golden = UINT64_C(0x9e3779b97f4a7c15);
	static uint64_t owners[50000];

	for (uint32_t i = 0; i < 50000; i++) {
		uint64_t mixed = i * inverse(golden);

		mixed ^= mixed >> 32;
		owners[i] = mixed * inverse(UINT64_C(0xd6e8feb86659fd93)) ^ 42 * golden;
	}
	CHECK(add_and_find_lock_owners(owners, 50000) < 2);
}

int main(void)
{
	RUN(test_open_and_release);
	RUN(test_released_twice);
	RUN(test_full_file_table);
	RUN(test_pinned_files_wait);
	RUN(test_a_dead_workers_pins_are_taken_back);
	RUN(test_lock_owners_are_found_once_each);
	RUN(test_a_quarter_of_a_million_lock_owners_cost_what_a_few_do);
	RUN(test_lock_owners_of_a_guests_choice_are_not_in_one_list);
	return 0;
}
