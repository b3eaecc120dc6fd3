/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The compiled xattrmap: the host's names of the guest's extended attributes. Python parses the
 * language (transport/xattrmap.py) and fills the table; this file only looks names up.
 */
#ifndef VFSD_XATTRMAP_H
#define VFSD_XATTRMAP_H

#include "transport/csrc/types.h"

enum {
	XATTRMAP_RULES_MAX = 64,
	XATTRMAP_NAME = 256, /* XATTR_NAME_MAX and '\0' */
};

enum xattrmap_action {
	XATTRMAP_BAD,
	XATTRMAP_UNSUPPORTED,
	XATTRMAP_OK,
	XATTRMAP_PREFIX,
};

struct xattrmap_rule {
	uint8_t action; /* enum xattrmap_action */
	bool client;	/* the rule applies to names that the guest sends */
	bool server;	/* the rule applies to names that the host lists */
	uint8_t key_len;
	uint8_t prepend_len;
	char key[XATTRMAP_NAME];
	char prepend[XATTRMAP_NAME];
};

struct xattrmap {
	uint32_t rule_count; /* 0: names are not changed */
	struct xattrmap_rule rules[XATTRMAP_RULES_MAX];
};

/* Write the host's name of the guest's attribute `name` (at most XATTR_NAME_MAX bytes) to `ret`,
 * which has XATTRMAP_NAME bytes. Return: 0, -EPERM, -EOPNOTSUPP, or -ERANGE (the new name is too
 * long). */
int xattrmap_to_host(const struct xattrmap *map, const char *name, char *ret) must_check;

/* The guest's name of the host's attribute `name`, as a part of that string. NULL: the attribute is
 * hidden from the guest. */
const char *xattrmap_to_guest(const struct xattrmap *map, const char *name);

#endif
