/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The compiled xattrmap: what the guest's extended attributes are called on the host. The language
 * is Python's (transport/xattrmap.py), which fills the table; here it is looked up.
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
	bool client;	/* it decides about names that the guest gives … */
	bool server;	/* … about names that the host lists */
	uint8_t key_len;
	uint8_t prepend_len;
	char key[XATTRMAP_NAME];
	char prepend[XATTRMAP_NAME];
};

struct xattrmap {
	uint32_t rule_count; /* 0: every name is itself */
	struct xattrmap_rule rules[XATTRMAP_RULES_MAX];
};

/* The host's name of the guest's attribute `name` (at most XATTR_NAME_MAX bytes), into the
 * XATTRMAP_NAME bytes of *ret. Return: 0, -EPERM, -EOPNOTSUPP, or -ERANGE (it becomes too long). */
int xattrmap_to_host(const struct xattrmap *map, const char *name, char *ret) must_check;

/* The guest's name of the host's attribute `name`: a part of it. NULL: the guest must not see it.
 */
const char *xattrmap_to_guest(const struct xattrmap *map, const char *name);

#endif
