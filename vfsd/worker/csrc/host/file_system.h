/* SPDX-License-Identifier: Apache-2.0 */
/* What each kind of file system on the host keeps its word about: the one table of that. */
#ifndef VFSD_FILE_SYSTEM_H
#define VFSD_FILE_SYSTEM_H

#include "transport/csrc/types.h"

enum file_system_fact {
	FS_LASTING_HANDLES = 1, /* a handle opens its file for as long as the file has a name */
	FS_SILENT_CLOSE = 2,	/* close() does nothing that a FLUSH has to wait for */
	FS_IN_MEMORY = 4,	/* reading never waits for storage */
	FS_JUDGES_USERS = 8,	/* its server decides what each user may do, root included */
	FS_SILLY_RENAMES = 16,	/* a file that is removed while an fd holds it gets another name */
};

/* What is true of the file system that `fd` (of any kind, O_PATH too) is on. Return: enum
 * file_system_fact; 0 if it is not known or cannot be asked. */
uint32_t file_system_facts(int fd);

#endif
