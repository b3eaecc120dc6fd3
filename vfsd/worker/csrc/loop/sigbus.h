/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
/*
 * Guest memory that vanishes (the front-end truncates its memfd) must not kill the worker: the
 * missing pages are replaced by zeroes, and data read from these pages is checked like all data
 * that the guest writes. System calls on such memory return EFAULT by themselves.
 */
#ifndef VFSD_SIGBUS_H
#define VFSD_SIGBUS_H

#include "transport/csrc/guest_memory.h"

/* Guard `memory`, which must live as long as the process. Its address is kept in a global variable,
 * because a signal handler has no other way to find it. */
void sigbus_guard(const struct guest_memory *memory);

#endif
