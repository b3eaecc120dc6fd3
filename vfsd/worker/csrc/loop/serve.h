/* SPDX-License-Identifier: Apache-2.0 */
/* The worker's loop as Python sees it: Python calls serve() again and again, and acts on the reason
 * that serve() returns. The theory is in serve.c. */
#ifndef VFSD_SERVE_H
#define VFSD_SERVE_H

enum serve_reason {
	SERVE_CONTROL = 1,  /* control_fd is readable, or the device state has a new generation */
	SERVE_COLD = 2,	    /* an op for Python: worker_cold_*; then call serve() again */
	SERVE_BROKEN = 3,   /* a ring broke: worker_broken_* */
	SERVE_UNSHARED = 4, /* requests point to memory that is not shared: worker_unshared */
};

struct worker;

/* Serve until there is a reason to return (enum serve_reason). */
int serve(struct worker *w);

#endif
