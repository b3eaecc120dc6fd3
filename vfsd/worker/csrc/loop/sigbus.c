/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/csrc/loop/sigbus.h"

#include "transport/csrc/page.h"

#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static const struct guest_memory *guarded;

static void on_sigbus(int signo, siginfo_t *info, void *context)
{
	uintptr_t page = (uintptr_t)info->si_addr & ~(uintptr_t)(PAGE - 1);

	(void)context;
	if (guest_memory_contains(guarded, info->si_addr) &&
	    mmap((void *)page, PAGE, PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != MAP_FAILED)
		return;
	signal(signo, SIG_DFL); /* a bug of ours: die by the signal */
	raise(signo);
}

void sigbus_guard(const struct guest_memory *memory)
{
	struct sigaction action;

	guarded = memory;
	memset(&action, 0, sizeof(action));
	action.sa_sigaction = on_sigbus;
	action.sa_flags = SA_SIGINFO;
	sigaction(SIGBUS, &action, NULL);
}
