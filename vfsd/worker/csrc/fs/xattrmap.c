/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/csrc/fs/xattrmap.h"

#include <errno.h>
#include <linux/limits.h>
#include <string.h>

_Static_assert((int)XATTRMAP_NAME == XATTR_NAME_MAX + 1, "names fit");

/* The rule for a name that the guest sends; NULL if there is no rule. */
static const struct xattrmap_rule *client_rule(const struct xattrmap *map, const char *name)
{
	for (uint32_t i = 0; i < map->rule_count; i++) {
		const struct xattrmap_rule *rule = &map->rules[i];

		if (rule->client && !strncmp(name, rule->key, rule->key_len))
			return rule;
	}
	return NULL;
}

/* The rule for a name that the host lists; NULL if there is no rule. */
static const struct xattrmap_rule *server_rule(const struct xattrmap *map, const char *name)
{
	for (uint32_t i = 0; i < map->rule_count; i++) {
		const struct xattrmap_rule *rule = &map->rules[i];

		if (rule->server && !strncmp(name, rule->prepend, rule->prepend_len))
			return rule;
	}
	return NULL;
}

static int join(const char *prefix, size_t prefix_len, const char *name, char *ret)
{
	size_t len = strlen(name);

	if (prefix_len + len > XATTR_NAME_MAX)
		return -ERANGE;
	memcpy(ret, prefix, prefix_len);
	memcpy(ret + prefix_len, name, len + 1);
	return 0;
}

int xattrmap_to_host(const struct xattrmap *map, const char *name, char *ret)
{
	const struct xattrmap_rule *rule;

	if (!map->rule_count)
		return join("", 0, name, ret);
	rule = client_rule(map, name);
	if (!rule)
		return -EPERM;
	switch (rule->action) {
	case XATTRMAP_OK:
		return join("", 0, name, ret);
	case XATTRMAP_PREFIX:
		return join(rule->prepend, rule->prepend_len, name, ret);
	case XATTRMAP_UNSUPPORTED:
		return -EOPNOTSUPP;
	default:
		return -EPERM;
	}
}

const char *xattrmap_to_guest(const struct xattrmap *map, const char *name)
{
	const struct xattrmap_rule *rule;

	if (!map->rule_count)
		return name;
	rule = server_rule(map, name);
	if (!rule)
		return NULL;
	if (rule->action == XATTRMAP_OK)
		return name;
	/* The prefix alone is not a valid name. */
	return rule->action == XATTRMAP_PREFIX && name[rule->prepend_len] ? name + rule->prepend_len
									  : NULL;
}
