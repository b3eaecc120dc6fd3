/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The extension area of a request (FUSE 7.38): random bytes hardly ever form such an area, so it is
 * built from decisions, now and then with a number that is too large.
 */
#ifndef VFSD_FUZZ_EXTENSIONS_H
#define VFSD_FUZZ_EXTENSIONS_H

#include "fuzz.h"

#include "transport/csrc/fuse_newer.h"
#include "worker/csrc/host/credentials.h"

enum {
	EXTENSIONS_MAX = 2048, /* bytes in an area */
	EXTENSION_PARTS = 3,
};

struct extension_area {
	uint8_t bytes[EXTENSIONS_MAX];
	uint32_t len;
};

static inline void extension_add(struct extension_area *area, const void *data, uint32_t len)
{
	memcpy(area->bytes + area->len, data, len);
	area->len += len;
}

static inline void extension_add_raw(struct extension_area *area, struct input *in, uint32_t len)
{
	take_bytes(in, area->bytes + area->len, len);
	area->len += len;
}

/* FUSE_EXT_GROUPS: at times more groups than allowed, or fewer than announced. */
static inline void extension_add_groups(struct extension_area *area, struct input *in)
{
	uint8_t count = take_byte(in) % (SUPPLEMENTARY_GROUPS_MAX + 3), announced = take_byte(in);
	struct fuse_ext_header head = {.type = FUSE_EXT_GROUPS};
	struct fuse_supp_groups groups = {.nr_groups = announced < 8 ? count + announced : count};
	uint32_t fixed = (uint32_t)(sizeof(head) + sizeof(groups));

	head.size = (fixed + count * (uint32_t)sizeof(uint32_t) + 7) & ~7u;
	extension_add(area, &head, sizeof(head));
	extension_add(area, &groups, sizeof(groups));
	extension_add_raw(area, in, head.size - fixed);
}

/* A security label for the file to be created, perhaps with a wrong size. */
static inline void extension_add_label(struct extension_area *area, struct input *in)
{
	static const char *const names[] = {"security.selinux", "security.x", "security.capability",
					    "user.x"};
	const char *name = names[take_byte(in) % 4];
	uint32_t name_len = (uint32_t)strlen(name) + 1, size = take_byte(in) % 64;
	struct fuse_ext_header head = {.type = 1};
	struct fuse_secctx label = {.size = size};
	uint32_t len = (uint32_t)(sizeof(head) + sizeof(label)) + name_len + size;
	uint8_t wrong = take_byte(in);

	head.size = (len + 7) & ~7u;
	if (wrong > 240)
		label.size += wrong - 240u;
	extension_add(area, &head, sizeof(head));
	extension_add(area, &label, sizeof(label));
	extension_add(area, name, name_len);
	extension_add_raw(area, in, size + head.size - len);
}

static inline void extension_add_bytes(struct extension_area *area, struct input *in)
{
	extension_add_raw(area, in, take_byte(in) & 0x78u);
}

/* Add some extensions. Return: their length in units of 8 bytes, or another number. */
static inline uint16_t extensions_take(struct extension_area *area, struct input *in)
{
	uint8_t choice = take_byte(in);

	area->len = 0;
	for (uint32_t i = 0; i < EXTENSION_PARTS; i++, choice /= 4) {
		if (choice % 4 == 1)
			extension_add_label(area, in);
		else if (choice % 4 == 2)
			extension_add_groups(area, in);
		else if (choice % 4 == 3)
			extension_add_bytes(area, in);
	}
	return choice == 3 ? take_byte(in) : (uint16_t)(area->len / 8);
}

#endif
