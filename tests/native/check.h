/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What every C test uses: a check that ends the program and prints the place and the two values,
 * memfds, and random numbers that are the same in every run.
 */
#ifndef VFSD_TEST_CHECK_H
#define VFSD_TEST_CHECK_H

#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define CHECK(condition)                                                                \
	do {                                                                            \
		if (!(condition)) {                                                     \
			fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
			exit(1);                                                        \
		}                                                                       \
	} while (0)

#define CHECK_EQUAL(left, right)                                                            \
	do {                                                                                \
		int64_t left_ = (int64_t)(left), right_ = (int64_t)(right);                 \
		if (left_ != right_) {                                                      \
			fprintf(stderr, "%s:%d: %s is %" PRId64 ", not %s = %" PRId64 "\n", \
				__FILE__, __LINE__, #left, left_, #right, right_);          \
			exit(1);                                                            \
		}                                                                           \
	} while (0)

/* Run one test function and print its name: the last name printed is the test that failed. */
#define RUN(test)               \
	do {                    \
		puts(#test);    \
		fflush(stdout); \
		test();         \
	} while (0)

static inline int make_memfd(uint64_t size)
{
	int fd = memfd_create("vfsd-test", MFD_CLOEXEC);

	CHECK(fd >= 0);
	CHECK(!ftruncate(fd, (off_t)size));
	return fd;
}

/* `size` zeroed bytes of memory that a forked child shares. */
static inline void *make_shared(uint64_t size)
{
	int fd = make_memfd(size);
	void *addr = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	CHECK(addr != MAP_FAILED);
	close(fd);
	return addr;
}

/* xorshift64*; the seed may be any number except 0. */
static inline uint32_t next_random(uint64_t *state)
{
	*state ^= *state >> 12;
	*state ^= *state << 25;
	*state ^= *state >> 27;
	return (uint32_t)(*state * UINT64_C(0x2545f4914f6cdd1d) >> 32);
}

static inline uint32_t random_below(uint64_t *state, uint32_t end)
{
	return next_random(state) % end;
}

static inline uint64_t test_clock_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

#endif
