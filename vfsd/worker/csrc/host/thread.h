/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
#ifndef VFSD_THREAD_H
#define VFSD_THREAD_H

#include "transport/csrc/types.h"

/* Start a thread that lives as long as the process. All signals but SIGBUS are blocked in the
 * thread: the main thread handles them. Return: 0, or a positive errno. */
int thread_start(void *(*run)(void *arg), void *arg) must_check;

#endif
