/* SPDX-License-Identifier: Apache-2.0 */
#include "transport/csrc/process.h"

#include "transport/csrc/page.h"

#include <errno.h>
#include <linux/kcmp.h>
#include <link.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

int process_become_subreaper(void)
{
	return prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) < 0 ? -errno : 0;
}

int process_watch_parent(int signal)
{
	return prctl(PR_SET_PDEATHSIG, signal, 0, 0, 0) < 0 ? -errno : 0;
}

int process_no_new_privs(void)
{
	return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 ? -errno : 0;
}

bool process_is_same_file(int fd, int other)
{
	pid_t self = getpid();

	return syscall(SYS_kcmp, self, self, KCMP_FILE, fd, other) == 0;
}

int process_see_whole_proc(void)
{
	if (unshare(CLONE_NEWNS) < 0 || mount(NULL, "/", NULL, MS_REC | MS_SLAVE, NULL) < 0 ||
	    mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL) < 0)
		return -errno;
	return 0;
}

/* Drop the parts of a program or library that are not mapped writable, and so still equal their
 * file: 64-bit linkers leave nothing to be relocated in them. */
static int forget_object(struct dl_phdr_info *object, size_t size, void *unused)
{
	(void)size;
	(void)unused;
	for (int i = 0; i < object->dlpi_phnum; i++) {
		const ElfW(Phdr) *part = &object->dlpi_phdr[i];
		uintptr_t start = object->dlpi_addr + part->p_vaddr;
		uintptr_t first = (start + PAGE - 1) & ~(uintptr_t)(PAGE - 1);
		uintptr_t end = (start + part->p_filesz) & ~(uintptr_t)(PAGE - 1);

		if (part->p_type == PT_LOAD && !(part->p_flags & PF_W) && first < end)
			(void)!madvise((void *)first, end - first, MADV_DONTNEED);
	}
	return 0;
}

void process_forget_code(void)
{
	dl_iterate_phdr(forget_object, NULL);
}
