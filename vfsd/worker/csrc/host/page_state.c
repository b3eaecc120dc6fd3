/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/csrc/host/page_state.h"

#include <sys/syscall.h>
#include <unistd.h>

/* Younger than the headers of Debian 12; the number is the same on every architecture. */
#ifndef SYS_cachestat
#define SYS_cachestat 451
#endif

/* struct cachestat_range and struct cachestat of <linux/mman.h>. */
struct page_range {
	uint64_t offset;
	uint64_t len; /* 0: to the end of the file */
};

struct page_counts {
	uint64_t cached;
	uint64_t dirty;
	uint64_t in_writeback;
	uint64_t evicted;
	uint64_t recently_evicted;
};

bool is_written_back(int fd)
{
	struct page_range all = {0};
	struct page_counts pages;

	return !syscall(SYS_cachestat, fd, &all, &pages, 0) && !pages.dirty && !pages.in_writeback;
}
