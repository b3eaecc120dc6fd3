/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A load on one request queue of a virtio-fs device: a number of streams, each of which sends one
 * request after the other. The theory is at the top of load.c.
 */
#ifndef VFSD_LOAD_H
#define VFSD_LOAD_H

#include "transport/csrc/types.h"
#include "transport/csrc/fuse_newer.h"
#include "frontend/csrc/driver_ring.h"
#include "frontend/csrc/hiprio.h"

enum load_limit {
	LOAD_STEPS_MAX = 4,
	LOAD_DIGITS = 7,	/* digits of the number in a name */
	LOAD_SUB_BUCKETS = 16,	/* parts of each power of two in the histogram */
	LOAD_BUCKETS = 40 * 16, /* up to 2^40 ns */
};

/* The reason why a function here did not return 0. */
enum load_end {
	LOAD_STOPPED = 1, /* stop_fd became readable */
	LOAD_SILENT,	  /* a request was not answered in time */
	LOAD_BROKEN,	  /* the device broke the protocol: `reason` */
	LOAD_WRONG,	  /* a reply is not as it must be: `reason`, `wrong` */
};

/* What a step takes from its stream, and what the stream takes from the reply. */
enum load_flag {
	LOAD_NODE = 1 << 0,	  /* nodeid in the header: that of the stream */
	LOAD_FH = 1 << 1,	  /* `fh`, first in the argument: that of the stream */
	LOAD_NAME = 1 << 2,	  /* the digits in the name: the number of the stream */
	LOAD_SEQUENTIAL = 1 << 3, /* `offset`, second in the argument: the next block */
	LOAD_RANDOM = 1 << 4,	  /* ... : a random block */
	LOAD_LEARN_NODE = 1 << 5, /* the reply begins with fuse_entry_out */
	LOAD_LEARN_FH = 1 << 6,	  /* the reply ends with fuse_open_out */
	LOAD_FORGET = 1 << 7,	  /* after the reply: FORGET the node, or every listed entry */
	LOAD_LIST = 1 << 8,	  /* READDIRPLUS: each entry is a unit; at the end start again */
	LOAD_STAMPED = 1 << 9,	  /* READ: each page begins with its offset in the file */
};

/* One request of a program; a template of its bytes lies in guest memory. */
struct load_step {
	uint32_t flags;	    /* enum load_flag */
	int32_t error;	    /* the error that the reply must have: 0 or -errno */
	uint32_t reply_len; /* the length that the reply must have; 0: any */
	uint32_t digits;    /* offset of the name's digits in the argument */
	uint64_t ino;	    /* the inode that a GETATTR or LOOKUP must find; 0: any */
};

/* The requests that a stream repeats. */
struct load_program {
	struct load_step steps[LOAD_STEPS_MAX];
	uint32_t count;
	bool measured;	 /* the latency of its cycles is recorded */
	uint32_t block;	 /* in bytes */
	uint32_t blocks; /* number of blocks of the file */
	uint32_t names;	 /* a name ends with the number of its cycle, modulo this */
};

struct load_stream {
	const struct load_program *program; /* owned by the caller */
	uint64_t node;
	uint64_t fh;
	uint32_t number;
	uint32_t block;	 /* the next block, when sequential */
	uint64_t listed; /* offset of the next directory entry to list */
	uint32_t step;
	uint64_t unique;
	uint64_t cycle_ns; /* the time at which the first request of this cycle was sent */
};

struct load_config {
	struct driver_ring_config ring;
	bool indirect;
	bool poll;	/* look for replies without pause; false: sleep until called */
	uint32_t pages; /* data pages of one request */
	uint32_t streams;
	uint64_t offset; /* in guest memory; its length is load_bytes() */
	int call_fd;
	int stop_fd;
	uint64_t silence_ns; /* an answer that takes longer is an error */
	struct hiprio *hiprio;
};

struct load_result {
	uint64_t cycles; /* of measured programs only */
	uint64_t units;	 /* operations: an operation is a cycle, or a listed entry */
	uint64_t requests;
	uint64_t forgets;
	uint64_t kicks;
	uint64_t calls;
	uint64_t ns;
	uint64_t histogram[LOAD_BUCKETS]; /* of the latencies of cycles */
};

/* The reply that was wrong. */
struct load_wrong {
	uint32_t opcode;
	int32_t error;
	uint32_t len;
};

struct load_chain;
struct slot_layout;

struct load {
	struct load_config config;
	struct driver_ring ring;
	struct slot_layout *layout;
	struct load_chain *chains; /* one for each slot */
	struct load_stream *streams;
	struct load_result result;
	uint64_t unique;
	uint64_t random;
	uint64_t number; /* the number of the next cycle */
	const char *reason;
	struct load_wrong wrong;
	uint8_t *reply; /* the reply of load_call() */
	uint32_t reply_len;
};

/* The guest memory that `streams` streams need, in bytes. */
uint64_t load_bytes(uint32_t pages, uint32_t streams);

/* Return: 0 or -errno. */
int load_init(struct load *l, const struct load_config *config) must_check;
void load_deinit(struct load *l);

/* The address at which the request of a step belongs. It must be there before load_prepare();
 * afterwards only the fields that enum load_flag names are written. `stream` may be one past the
 * last: the stream of load_call(). */
uint8_t *load_request(const struct load *l, uint32_t stream, uint32_t step);

/* Cut the request of a step into descriptors. Return: 0, or -E2BIG if there is no room for it. */
int load_prepare(struct load *l, uint32_t stream, uint32_t step) must_check;

/* Send the request of load_call() and wait for `reply`. Return: 0, enum load_end, or -E2BIG. */
int load_call(struct load *l) must_check;

/* Run every stream for `ns`, or until `cycles` cycles are done if `cycles` is not 0; then wait for
 * the requests under way. The figures are in `result`. Return: 0 or enum load_end. */
int load_run(struct load *l, uint64_t ns, uint64_t cycles) must_check;

#endif
