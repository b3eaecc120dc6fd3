/* SPDX-License-Identifier: Apache-2.0 */
#include "transport/csrc/device_state.h"

#include <errno.h>
#include <sched.h>
#include <string.h>

enum {
	READ_ATTEMPTS = 1000, /* each attempt yields the CPU: some milliseconds at most */
};

void device_state_write_begin(struct device_state *shared, uint32_t generation)
{
	__atomic_store_n(&shared->generation, generation - 1, __ATOMIC_RELAXED);
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
}

void device_state_write_end(struct device_state *shared, uint32_t generation)
{
	__atomic_store_n(&shared->generation, generation, __ATOMIC_RELEASE);
}

uint32_t device_state_generation(const struct device_state *shared)
{
	return __atomic_load_n(&shared->generation, __ATOMIC_ACQUIRE);
}

int device_state_read(const struct device_state *shared, struct device_state *ret)
{
	for (int i = 0; i < READ_ATTEMPTS; i++) {
		uint32_t before = device_state_generation(shared);

		if (!(before & 1)) {
			memcpy(ret, shared, sizeof(*ret));
			__atomic_thread_fence(__ATOMIC_ACQUIRE);
			ret->generation = before;
			if (device_state_generation(shared) == before)
				return 0;
		}
		sched_yield();
	}
	return -EAGAIN;
}
