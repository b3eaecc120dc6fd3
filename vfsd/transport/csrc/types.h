/* SPDX-License-Identifier: Apache-2.0 */
/* What every header here starts from. cffi also reads public headers (with VFSD_CDEF defined). */
#ifndef VFSD_TYPES_H
#define VFSD_TYPES_H

#include <stdint.h>
#include <stdbool.h>
#ifndef VFSD_CDEF
#include <stddef.h>
#define must_check __attribute__((warn_unused_result))
#else
#define must_check
#endif

#endif
