/* SPDX-License-Identifier: Apache-2.0 */
/* The guard of the broker of file handles: the guard starts a broker, and a new broker when that
 * broker dies. The guard's deputy takes the place of a guard that dies. */
#ifndef VFSD_HANDLE_GUARD_H
#define VFSD_HANDLE_GUARD_H

#include "transport/csrc/types.h"

struct handle_guard {
	int32_t root_fd; /* the shared directory, open for reading */
	uint32_t socket_count;
	const int32_t *sockets; /* the broker's end of each worker slot's pair */
	int32_t key_fd;		/* a pipe with the key, which is closed */
	int32_t action;		/* enum seccomp_action; -1: no filter */
};

/*
 * Run as the guard. The calling process must have one thread, its own fd table, no_new_privs and
 * CAP_DAC_READ_SEARCH. The function confines the process by seccomp and never returns: the process
 * exits with status 0 when the workers' ends of all sockets are closed, and with 1 if a broker
 * cannot be started or failed too often.
 */
void handle_guard_run(const struct handle_guard *guard);

/* Can this process open file handles? `root_fd`: the shared directory, open for reading. */
bool handle_guard_can_open(int root_fd);

#endif
