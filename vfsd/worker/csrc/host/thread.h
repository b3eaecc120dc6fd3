/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
#ifndef VFSD_THREAD_H
#define VFSD_THREAD_H

#include "transport/csrc/types.h"

/* Start a thread that ends with the process and gets no signals: they are the main thread's
 * business. Return: 0, or an errno. */
int thread_start(void *(*run)(void *arg), void *arg) must_check;

#endif
