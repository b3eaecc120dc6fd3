/* SPDX-License-Identifier: Apache-2.0 */
/* Linux capabilities(7) of the calling process. Sets are bit masks: 1 << capability number. */
#ifndef VFSD_CAPABILITIES_H
#define VFSD_CAPABILITIES_H

#include "transport/csrc/types.h"

/* The number of "chown", "CHOWN" or "CAP_CHOWN". Return: -EINVAL for an unknown name. */
int capability_number(const char *name) must_check;

/* The permitted set. Return: 0 or -errno. */
int capabilities_permitted(uint64_t *ret) must_check;

/*
 * Hold exactly `keep` from now on (permitted and effective), inherit nothing, and make sure that no
 * exec can ever give more (the bounding and ambient sets are emptied). Return: 0 or -errno; -EPERM
 * when `keep` has a capability that is not permitted.
 */
int capabilities_limit(uint64_t keep) must_check;

/* Keep the permitted set when the last user id that is 0 changes; the kernel would empty it. In
 * force until the next exec. Return: 0 or -errno. */
int capabilities_keep(void) must_check;

/* Make the permitted set the ambient set, so that a program executed next holds the same set
 * although its user is not root and its file has no capabilities. Return: 0 or -errno. */
int capabilities_pass_on(void) must_check;

#endif
