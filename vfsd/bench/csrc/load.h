/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A load on one request queue of a virtio-fs device: so many streams, each sending one request
 * after the other. The theory is at the top of load.c.
 */
#ifndef VFSD_LOAD_H
#define VFSD_LOAD_H

#include "transport/csrc/types.h"
#include "transport/csrc/fuse_newer.h"
#include "frontend/csrc/driver_ring.h"
#include "frontend/csrc/hiprio.h"

enum load_limit {
	LOAD_STEPS_MAX = 4,
	LOAD_DIGITS = 7,	/* of the number in a name */
	LOAD_SUB_BUCKETS = 16,	/* of each power of two in the histogram */
	LOAD_BUCKETS = 40 * 16, /* up to 2^40 ns */
};

/* Why a function here returned something else than 0. */
enum load_end {
	LOAD_STOPPED = 1, /* stop_fd */
	LOAD_SILENT,	  /* a request was not answered in time */
	LOAD_BROKEN,	  /* the device broke the protocol: `reason` */
	LOAD_WRONG,	  /* a reply that is not what it must be: `reason`, `wrong` */
};

/* What a step takes from its stream, and what the stream learns from its reply. */
enum load_flag {
	LOAD_NODE = 1 << 0,	  /* nodeid of the header: the stream's */
	LOAD_FH = 1 << 1,	  /* `fh`, first in the argument: the stream's */
	LOAD_NAME = 1 << 2,	  /* the digits of the name: the stream's number */
	LOAD_SEQUENTIAL = 1 << 3, /* `offset`, second in the argument: the next block */
	LOAD_RANDOM = 1 << 4,	  /* ... : any block */
	LOAD_LEARN_NODE = 1 << 5, /* the reply begins with fuse_entry_out */
	LOAD_LEARN_FH = 1 << 6,	  /* the reply ends with fuse_open_out */
	LOAD_FORGET = 1 << 7,	  /* after it: FORGET the stream's node, or every entry listed */
	LOAD_LIST = 1 << 8,	  /* READDIRPLUS: each entry is a unit; start again at the end */
	LOAD_STAMPED = 1 << 9,	  /* READ: each page begins with its offset in the file */
};

/* One request of a program; its bytes are a template in guest memory. */
struct load_step {
	uint32_t flags;	    /* enum load_flag */
	int32_t error;	    /* that the reply must have: 0 or -errno */
	uint32_t reply_len; /* that it must have; 0: any */
	uint32_t digits;    /* where those of the name are in the argument */
	uint64_t ino;	    /* that a GETATTR or LOOKUP must find; 0: any */
};

/* What a stream does over and over. */
struct load_program {
	struct load_step steps[LOAD_STEPS_MAX];
	uint32_t count;
	bool measured;	 /* its latency counts */
	uint32_t block;	 /* bytes */
	uint32_t blocks; /* of the file */
	uint32_t names;	 /* each cycle takes the next number below this */
};

struct load_stream {
	const struct load_program *program; /* the caller's */
	uint64_t node;
	uint64_t fh;
	uint32_t number;
	uint32_t block;	 /* next one, when sequential */
	uint64_t listed; /* offset of the next entry of a directory */
	uint32_t step;
	uint64_t unique;
	uint64_t cycle_ns; /* when the first request of this cycle was sent */
};

struct load_config {
	struct driver_ring_config ring;
	bool indirect;
	bool poll;	/* look for replies all the time; false: sleep until called */
	uint32_t pages; /* data pages of one request */
	uint32_t streams;
	uint64_t offset; /* in guest memory: load_bytes() */
	int call_fd;
	int stop_fd;
	uint64_t silence_ns; /* this long without an answer is an error */
	struct hiprio *hiprio;
};

struct load_result {
	uint64_t cycles; /* of measured programs */
	uint64_t units;	 /* what one operation is: a cycle, or an entry listed */
	uint64_t requests;
	uint64_t forgets;
	uint64_t kicks;
	uint64_t calls;
	uint64_t ns;
	uint64_t histogram[LOAD_BUCKETS]; /* of the cycles' latencies */
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
	uint64_t number; /* of the next cycle */
	const char *reason;
	struct load_wrong wrong;
	uint8_t *reply; /* of load_call() */
	uint32_t reply_len;
};

/* Guest memory for so many streams, in bytes. */
uint64_t load_bytes(uint32_t pages, uint32_t streams);

/* Return: 0 or -errno. */
int load_init(struct load *l, const struct load_config *config) must_check;
void load_deinit(struct load *l);

/* Where the request of a step belongs. load_prepare() wants it there; after that only what
 * enum load_flag says is written. `stream` one past the last: load_call()'s. */
uint8_t *load_request(const struct load *l, uint32_t stream, uint32_t step);

/* Cut the request of a step into descriptors. Return: 0, or -E2BIG if it has no room. */
int load_prepare(struct load *l, uint32_t stream, uint32_t step) must_check;

/* Send the one request of load_call() and wait for `reply`. Return: 0, enum load_end, or -E2BIG. */
int load_call(struct load *l) must_check;

/* Run every stream for `ns`, or until `cycles` are done if that is not 0; wait for what is under
 * way then. What happened is in `result`. Return: 0 or enum load_end. */
int load_run(struct load *l, uint64_t ns, uint64_t cycles) must_check;

#endif
