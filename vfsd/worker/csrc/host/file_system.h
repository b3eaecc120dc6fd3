/* SPDX-License-Identifier: Apache-2.0 */
/* What can be relied on for each type of host file system. This is the only table of such facts. */
#ifndef VFSD_FILE_SYSTEM_H
#define VFSD_FILE_SYSTEM_H

#include "transport/csrc/types.h"

enum file_system_fact {
	FS_LASTING_HANDLES = 1, /* a handle opens its file for as long as the file has a name */
	FS_SILENT_CLOSE = 2,	/* close() does nothing that FLUSH would have to wait for */
	FS_IN_MEMORY = 4,	/* reading never waits for storage */
	FS_JUDGES_USERS = 8,	/* a server decides what each user may do, root included */
	FS_NEW_BIRTHS = 32,	/* the birth time of a file may change */
	FS_HONEST_CTIME = 64,	/* each change of a file gives it a new ctime by the host's clock */
	FS_SILLY_RENAMES = 16,	/* a file that is removed while an fd holds it is renamed instead */
};

/* The facts about the file system of `fd`, which may be any fd, also O_PATH. Return: enum
 * file_system_fact; 0 if the file system is not in the table or fstatfs(2) fails. */
uint32_t file_system_facts(int fd);

#endif
