/* SPDX-License-Identifier: Apache-2.0 */
#ifndef VFSD_PAGE_H
#define VFSD_PAGE_H

enum {
	PAGE = 4096, /* bytes; FUSE, the segments and guest memory count in pages of this size */
};

#endif
