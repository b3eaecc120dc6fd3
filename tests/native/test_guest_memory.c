/* SPDX-License-Identifier: Apache-2.0 */
#include "check.h"

#include "transport/csrc/guest_memory.h"

#include <errno.h>
#include <string.h>
#include <sys/uio.h>

enum {
	PAGE = 4096,
};

static struct guest_memory memory;

/* A region `offset` bytes into a memfd of its own. */
static struct device_region make_region(uint64_t gpa, uint64_t size, uint64_t offset)
{
	return (struct device_region){.gpa = gpa,
				      .size = size,
				      .uva = 0x7f0000000000 + gpa,
				      .offset = offset,
				      .fd = make_memfd(offset + size)};
}

static void end(const struct device_region *regions, uint32_t count)
{
	guest_memory_clear(&memory);
	guest_memory_reap(&memory);
	for (uint32_t i = 0; i < count; i++)
		close(regions[i].fd);
	CHECK_EQUAL(memory.count, 0);
	CHECK_EQUAL(memory.retired_count, 0);
}

static bool is_mapped(void *addr)
{
	unsigned char state;

	return !mincore((void *)((uintptr_t)addr & ~(uintptr_t)(PAGE - 1)), 1, &state);
}

static void test_lookup_at_the_edges(void)
{
	struct device_region r = make_region(0x10000, 2 * PAGE, 0);
	uint8_t *addr;

	CHECK(!guest_memory_update(&memory, &r, 1));
	addr = guest_memory_at(&memory, 0x10000, 2 * PAGE);
	CHECK(addr);
	CHECK(guest_memory_at(&memory, 0x10000 + 2 * PAGE - 1, 1) == addr + 2 * PAGE - 1);
	CHECK(!guest_memory_at(&memory, 0x10000 + 2 * PAGE, 1));
	CHECK(!guest_memory_at(&memory, 0x10000 + 2 * PAGE - 1, 2));
	CHECK(!guest_memory_at(&memory, 0x10000, 2 * PAGE + 1));
	CHECK(!guest_memory_at(&memory, 0xffff, 1));
	CHECK(!guest_memory_at(&memory, 0xffff, 2));
	CHECK(!guest_memory_at(&memory, 0, UINT64_MAX));
	CHECK(!guest_memory_at(&memory, 0x10001, UINT64_MAX));
	CHECK(!guest_memory_at(&memory, UINT64_MAX, 1));
	CHECK(guest_memory_at(&memory, 0x10000, 0) == addr);
	CHECK(!guest_memory_at(&memory, 0x10000 + 2 * PAGE, 0));
	CHECK(guest_memory_contains(&memory, addr + 2 * PAGE - 1));
	CHECK(!guest_memory_contains(&memory, addr + 2 * PAGE));
	CHECK(!guest_memory_contains(&memory, addr - 1));
	end(&r, 1);
}

static void test_uva(void)
{
	struct device_region r = make_region(0x10000, 2 * PAGE, 0);
	uint8_t *addr;

	CHECK(!guest_memory_update(&memory, &r, 1));
	addr = guest_memory_at(&memory, r.gpa, 1);
	CHECK(guest_memory_at_uva(&memory, r.uva, 2 * PAGE) == addr);
	CHECK(guest_memory_at_uva(&memory, r.uva + 2 * PAGE - 1, 1) == addr + 2 * PAGE - 1);
	CHECK(!guest_memory_at_uva(&memory, r.uva + 2 * PAGE, 1));
	CHECK(!guest_memory_at_uva(&memory, r.uva + 1, 2 * PAGE));
	CHECK(!guest_memory_at_uva(&memory, r.uva + 1, UINT64_MAX));
	CHECK(!guest_memory_at_uva(&memory, r.uva - 1, 1));
	CHECK(!guest_memory_at_uva(&memory, r.gpa, 1));
	end(&r, 1);
}

static void test_span_ends_with_its_region(void)
{
	struct device_region r[] = {make_region(0, PAGE, 0), make_region(PAGE, PAGE, 0)};
	uint64_t len = 0;
	uint8_t *first, *second;

	CHECK(!guest_memory_update(&memory, r, 2));
	first = guest_memory_span(&memory, 0, 100, &len);
	CHECK(first && len == 100);
	CHECK(guest_memory_span(&memory, PAGE - 8, 100, &len) == first + PAGE - 8);
	CHECK_EQUAL(len, 8);
	second = guest_memory_span(&memory, PAGE, UINT64_MAX, &len);
	CHECK(second);
	CHECK_EQUAL(len, PAGE);
	CHECK(!guest_memory_span(&memory, 2 * PAGE, 1, &len));
	CHECK(!guest_memory_at(&memory, PAGE - 8, 9)); /* in two mappings, wherever they are */
	end(r, 2);
}

static void test_unordered_regions_are_found(void)
{
	enum {
		COUNT = 61,
	};
	struct device_region r[COUNT];

	for (uint32_t i = 0; i < COUNT; i++) {
		uint64_t at = i * 17 % COUNT; /* 17 and 61 have no common factor */

		r[i] = make_region(at * 3 * PAGE, PAGE, 0);
		CHECK(pwrite(r[i].fd, &(uint64_t){at}, 8, 0) == 8);
	}
	CHECK(!guest_memory_update(&memory, r, COUNT));
	for (uint32_t turn = 0; turn < 2; turn++)
		for (uint64_t at = 0; at < COUNT; at++) {
			uint64_t *found = guest_memory_at(&memory, at * 3 * PAGE, 8);

			CHECK(found && *found == at);
			CHECK(!guest_memory_at(&memory, at * 3 * PAGE + PAGE, 1));
			CHECK(!guest_memory_at(&memory, at * 3 * PAGE - 1, 1));
		}
	end(r, COUNT);
}

static void test_update_keeps_what_stays(void)
{
	struct device_region r[] = {make_region(0, PAGE, 0), make_region(PAGE, PAGE, 0),
				    make_region(8 * PAGE, PAGE, 0)};
	void *stays, *goes;

	CHECK(!guest_memory_update(&memory, r, 2));
	goes = guest_memory_at(&memory, 0, 1);
	stays = guest_memory_at(&memory, PAGE, 1);
	CHECK(!guest_memory_update(&memory, r + 1, 2));
	CHECK(guest_memory_at(&memory, PAGE, 1) == stays);
	CHECK(guest_memory_at(&memory, 8 * PAGE, 1));
	CHECK(!guest_memory_at(&memory, 0, 1));
	CHECK_EQUAL(memory.retired_count, 1);
	/* A request that is under way may still write there. */
	memset(goes, 1, PAGE);
	guest_memory_reap(&memory);
	CHECK(!is_mapped(goes));
	CHECK(is_mapped(stays));
	end(r, 3);
}

/* A thread may touch retired memory just after the front-end has truncated it, so sigbus.c must
 * recognize this memory. */
static void test_retired_memory_is_guest_memory(void)
{
	struct device_region r = make_region(0, PAGE, 0);
	void *addr;

	CHECK(!guest_memory_update(&memory, &r, 1));
	addr = guest_memory_at(&memory, 0, 1);
	CHECK(!guest_memory_update(&memory, NULL, 0));
	CHECK(guest_memory_contains(&memory, addr));
	guest_memory_reap(&memory);
	CHECK(!guest_memory_contains(&memory, addr));
	end(&r, 1);
}

static void test_diverted_memory_is_out_of_reach(void)
{
	struct device_region r = make_region(0, 2 * PAGE, 0);
	uint8_t *addr;
	int fds[2];

	CHECK(!guest_memory_update(&memory, &r, 1));
	addr = guest_memory_at(&memory, 0, PAGE);
	memcpy(addr, "before", 6);
	guest_memory_divert(&memory);
	CHECK(!guest_memory_at(&memory, 0, 1));
	CHECK(!pipe(fds));
	CHECK(write(fds[1], addr, 6) < 0 && errno == EFAULT);
	CHECK_EQUAL(write(fds[1], "after", 5), 5);
	CHECK(read(fds[0], addr, 5) < 0 && errno == EFAULT);
	CHECK(!guest_memory_update(&memory, &r, 1));
	CHECK(!memcmp(guest_memory_at(&memory, 0, PAGE), "before", 6));
	close(fds[0]);
	close(fds[1]);
	end(&r, 1);
}

/* A call that still uses an old mapping reaches what the table in force has at that address, and
 * nothing else. */
static void test_retired_memory_follows_the_table(void)
{
	struct device_region old = make_region(0x10000, 4 * PAGE, 0);
	struct device_region kept = old, other = make_region(0x10000 + 3 * PAGE, PAGE, PAGE);
	struct device_region table[2];
	uint8_t *addr;
	int fds[2];

	CHECK(!guest_memory_update(&memory, &old, 1));
	addr = guest_memory_at(&memory, 0x10000, 4 * PAGE);
	memset(addr, 'o', 4 * PAGE);
	kept.gpa +=
		PAGE; /* the second page stays, the fourth is in another file, the other two go */
	kept.offset += PAGE;
	kept.size = PAGE;
	table[0] = kept;
	table[1] = other;
	CHECK(!guest_memory_update(&memory, table, 2));
	CHECK(guest_memory_loses(&memory, &(struct iovec){addr, 1}));
	CHECK(!guest_memory_loses(&memory, &(struct iovec){addr + PAGE, PAGE}));
	CHECK(guest_memory_loses(&memory, &(struct iovec){addr + PAGE, PAGE + 1}));
	CHECK(guest_memory_loses(&memory, &(struct iovec){addr + 3 * PAGE - 1, 2}));
	CHECK(!guest_memory_loses(&memory, &(struct iovec){addr + 3 * PAGE, PAGE}));
	guest_memory_redirect(&memory);
	CHECK_EQUAL(addr[PAGE], 'o');
	CHECK_EQUAL(addr[3 * PAGE], 0);
	addr[3 * PAGE] = 'n';
	CHECK_EQUAL(*(uint8_t *)guest_memory_at(&memory, 0x10000 + 3 * PAGE, 1), 'n');
	CHECK(!pipe(fds));
	for (int page = 0; page < 4; page++) { /* as a request's system call does */
		bool is_there = page % 2;

		CHECK_EQUAL(write(fds[1], "x", 1), 1);
		CHECK_EQUAL(read(fds[0], addr + page * PAGE, 1), is_there ? 1 : -1);
		if (!is_there)
			CHECK_EQUAL(read(fds[0], &(char){0}, 1), 1);
	}
	close(fds[0]);
	close(fds[1]);
	/* Map the memory in its first place again; diverted memory stays out of reach. */
	CHECK(!guest_memory_update(&memory, &old, 1));
	guest_memory_redirect(&memory);
	CHECK_EQUAL(addr[0], 'o');
	guest_memory_divert(&memory);
	CHECK(!guest_memory_update(&memory, &old, 1));
	CHECK(guest_memory_loses(&memory, &(struct iovec){addr, 1}));
	guest_memory_redirect(&memory);
	CHECK(!pipe(fds));
	CHECK_EQUAL(write(fds[1], "x", 1), 1);
	CHECK_EQUAL(read(fds[0], addr, 1), -1);
	close(fds[0]);
	close(fds[1]);
	close(other.fd);
	end(&old, 1);
}

static void test_a_moved_region_is_a_new_one(void)
{
	struct device_region r = make_region(0, PAGE, 0);

	CHECK(!guest_memory_update(&memory, &r, 1));
	r.gpa = PAGE;
	CHECK(!guest_memory_update(&memory, &r, 1));
	CHECK(!guest_memory_at(&memory, 0, 1));
	CHECK(guest_memory_at(&memory, PAGE, 1));
	CHECK_EQUAL(memory.count, 1);
	CHECK_EQUAL(memory.retired_count, 1);
	end(&r, 1);
}

static void refuse(struct device_region r, int err)
{
	struct device_region good = make_region(0x100000, PAGE, 0);
	struct device_region both[] = {good, r};

	CHECK(!guest_memory_update(&memory, &good, 1));
	CHECK_EQUAL(guest_memory_update(&memory, both, 2), err);
	CHECK(!guest_memory_at(&memory, good.gpa, 1));	/* no address is translated any more */
	CHECK(!guest_memory_update(&memory, &good, 1)); /* and a new table works again */
	end(both, 2);
}

static struct device_region changed(uint64_t gpa, uint64_t size, uint64_t uva, uint64_t offset)
{
	struct device_region r = make_region(0, PAGE, 0);

	r.gpa = gpa;
	r.size = size;
	r.uva = uva;
	r.offset = offset;
	return r;
}

static void test_what_is_refused(void)
{
	struct device_region r;

	refuse(changed(0, 0, 0, 0), -EINVAL);
	refuse(changed(0x100000, PAGE, 0, 0), -EINVAL); /* overlaps the good region */
	refuse(changed(0x100000 - 1, PAGE, 0, 0), -EINVAL);
	refuse(changed(0x100000 - PAGE + 1, PAGE, 0, 0), -EINVAL);
	refuse(changed(0x100000 + PAGE - 1, PAGE, 0, 0), -EINVAL);
	refuse(changed(UINT64_MAX - PAGE + 1, PAGE, 0, 0), -EINVAL);
	refuse(changed(0, PAGE, UINT64_MAX, 0), -EINVAL);
	refuse(changed(0, PAGE, 0, UINT64_MAX - 1), -EINVAL);
	refuse(changed(0, PAGE, 0, 1), -EINVAL); /* one byte beyond the end of the file */
	refuse(changed(0, PAGE + 1, 0, 0), -EINVAL);
	refuse(changed(0, UINT64_MAX, 0, 0), -EINVAL);
	refuse(changed(0, PAGE, 0, UINT64_C(1) << 63), -EINVAL);
	r = changed(0, PAGE, 0, 0);
	close(r.fd);
	r.fd = -1;
	CHECK_EQUAL(guest_memory_update(&memory, &r, 1), -EBADF);
	CHECK_EQUAL(guest_memory_update(&memory, &r, DEVICE_REGIONS_MAX + 1), -EINVAL);
	CHECK_EQUAL(memory.count, 0);
}

static void test_a_pipe_is_no_memory(void)
{
	int fds[2];
	struct device_region r = {.size = PAGE};

	CHECK(!pipe(fds));
	r.fd = fds[0];
	CHECK(guest_memory_update(&memory, &r, 1) < 0);
	close(fds[0]);
	close(fds[1]);
}

static void test_unaligned_offsets(void)
{
	const uint64_t offsets[] = {1, 8, 4095, 4096, 4097, 3 * 4096 + 17};

	for (uint32_t i = 0; i < sizeof(offsets) / sizeof(*offsets); i++) {
		struct device_region r = make_region(5, PAGE + 3, offsets[i]);
		uint8_t *addr, byte = 0;

		CHECK(!guest_memory_update(&memory, &r, 1));
		addr = guest_memory_at(&memory, 5, PAGE + 3);
		CHECK(addr);
		addr[0] = 0xaa;
		addr[PAGE + 2] = 0xbb;
		CHECK(pread(r.fd, &byte, 1, (off_t)offsets[i]) == 1 && byte == 0xaa);
		CHECK(pread(r.fd, &byte, 1, (off_t)(offsets[i] + PAGE + 2)) == 1 && byte == 0xbb);
		end(&r, 1);
	}
}

static void test_as_many_regions_as_there_may_be(void)
{
	static struct device_region r[DEVICE_REGIONS_MAX];
	int fd = make_memfd(PAGE);

	for (uint32_t i = 0; i < DEVICE_REGIONS_MAX; i++)
		r[i] = (struct device_region){
			.gpa = i * PAGE, .uva = i * PAGE, .size = PAGE, .fd = fd};
	CHECK(!guest_memory_update(&memory, r, DEVICE_REGIONS_MAX));
	/* The regions move to other addresses: the retired list has exactly enough room for them.
	 */
	for (uint32_t i = 0; i < DEVICE_REGIONS_MAX; i++)
		r[i].gpa += UINT64_C(1) << 40;
	CHECK(!guest_memory_update(&memory, r, DEVICE_REGIONS_MAX));
	CHECK_EQUAL(memory.retired_count, DEVICE_REGIONS_MAX);
	guest_memory_reap(&memory);
	end(r, 1);
}

int main(void)
{
	RUN(test_lookup_at_the_edges);
	RUN(test_uva);
	RUN(test_span_ends_with_its_region);
	RUN(test_unordered_regions_are_found);
	RUN(test_update_keeps_what_stays);
	RUN(test_retired_memory_is_guest_memory);
	RUN(test_diverted_memory_is_out_of_reach);
	RUN(test_retired_memory_follows_the_table);
	RUN(test_a_moved_region_is_a_new_one);
	RUN(test_what_is_refused);
	RUN(test_a_pipe_is_no_memory);
	RUN(test_unaligned_offsets);
	RUN(test_as_many_regions_as_there_may_be);
	return 0;
}
