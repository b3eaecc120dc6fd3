/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A reply must have the length that its used element says, the `unique` of its request, the error
 * and length that the step expects, and a body that fits: the inode that was asked for, data that
 * belongs to the offset that was read. Any other reply ends the run.
 */
#include "bench/csrc/load_reply.h"

#include "frontend/csrc/request_layout.h"

enum {
	HEADER = sizeof(struct fuse_out_header),
};

static int wrong(struct load *l, const struct fuse_in_header *in, const struct fuse_out_header *out,
		 const char *reason)
{
	l->reason = reason;
	l->wrong = (struct load_wrong){in->opcode, out->error, out->len};
	return LOAD_WRONG;
}

static int forget(struct load *l, uint64_t node)
{
	struct {
		struct fuse_in_header header;
		struct fuse_forget_in forget;
	} message = {
		.header =
			{
				.len = sizeof(message),
				.opcode = FUSE_FORGET,
				.unique = ++l->unique,
				.nodeid = node,
			},
		.forget.nlookup = 1,
	};
	int err = hiprio_send(l->config.hiprio, &message.header, &message.forget);

	l->result.forgets++;
	if (err == HIPRIO_STOPPED)
		return LOAD_STOPPED;
	return err ? load_broken(l, hiprio_reason(l->config.hiprio)) : 0;
}

/* Is the entry "." or ".."? Both are listed but not looked up. */
static bool is_dots(const struct fuse_dirent *entry)
{
	return entry->name[0] == '.' &&
	       (entry->namelen == 1 || (entry->namelen == 2 && entry->name[1] == '.'));
}

/* Walk over the entries of a READDIRPLUS. Return: 0, LOAD_WRONG, or the error of a FORGET. */
static int take_entries(struct load *l, struct load_stream *s, const struct load_step *step,
			const struct fuse_in_header *in, const struct fuse_out_header *out)
{
	const uint8_t *at = (const void *)(out + 1), *end = (const uint8_t *)out + out->len;
	int err = 0;

	if (at == end)
		s->listed = 0;
	while (at < end && !err) {
		const struct fuse_direntplus *entry = (const void *)at;
		size_t left = (size_t)(end - at);

		if (left < FUSE_NAME_OFFSET_DIRENTPLUS || left < FUSE_DIRENTPLUS_SIZE(entry))
			return wrong(l, in, out, "an entry that does not fit its listing");
		if (!entry->dirent.namelen || !entry->dirent.off)
			return wrong(l, in, out, "an entry without a name or an offset");
		s->listed = entry->dirent.off;
		l->result.units += s->program->measured;
		if (!entry->entry_out.nodeid && !is_dots(&entry->dirent))
			return wrong(l, in, out, "an entry that was not looked up");
		if (step->flags & LOAD_FORGET && entry->entry_out.nodeid)
			err = forget(l, entry->entry_out.nodeid);
		at += FUSE_DIRENTPLUS_SIZE(entry);
	}
	return err;
}

/* Does each page of a READ begin with its offset in the file? */
static bool is_stamped(const struct fuse_in_header *in, const uint8_t *data)
{
	const struct fuse_read_in *arg = (const void *)(in + 1);

	for (uint32_t i = 0; i < arg->size; i += PAGE)
		if (*(const uint64_t *)(data + i) != arg->offset + i)
			return false;
	return true;
}

/* The fault in the body of a reply whose error and length are as expected; NULL: no fault. */
static const char *body_is_wrong(const struct load_step *step, const struct fuse_in_header *in,
				 const void *body)
{
	const struct fuse_entry_out *entry = body;
	const struct fuse_attr_out *attr = body;

	if (step->error)
		return NULL;
	if (step->flags & LOAD_LEARN_NODE && !entry->nodeid)
		return "an entry without a node";
	if (in->opcode == FUSE_LOOKUP && step->ino && entry->attr.ino != step->ino)
		return "an inode that does not belong to the name";
	if (in->opcode == FUSE_GETATTR && step->ino && attr->attr.ino != step->ino)
		return "attributes of another inode";
	if (in->opcode == FUSE_WRITE && ((const struct fuse_write_out *)body)->size !=
						((const struct fuse_write_in *)(in + 1))->size)
		return "a short write";
	if (step->flags & LOAD_STAMPED && !is_stamped(in, body))
		return "data of another offset";
	return NULL;
}

static int check_reply(struct load *l, const struct load_stream *s, const struct load_step *step,
		       const struct fuse_in_header *in, const struct fuse_out_header *out,
		       uint32_t used_len)
{
	const char *why;

	if (used_len < HEADER || out->len != used_len)
		return wrong(l, in, out, "a length that is not that of its used element");
	if (out->unique != s->unique)
		return wrong(l, in, out, "a reply to another request");
	if (out->error != step->error)
		return wrong(l, in, out, "an unexpected error");
	if (step->reply_len && out->len != step->reply_len)
		return wrong(l, in, out, "an unexpected length");
	why = body_is_wrong(step, in, out + 1);
	return why ? wrong(l, in, out, why) : 0;
}

static int learn(struct load *l, struct load_stream *s, const struct load_step *step,
		 const struct fuse_in_header *in, const struct fuse_out_header *out)
{
	const struct fuse_entry_out *entry = (const void *)(out + 1);
	const struct fuse_open_out *open =
		(const void *)((const uint8_t *)out + out->len - sizeof(*open));

	if (step->flags & LOAD_LIST)
		return take_entries(l, s, step, in, out);
	if (step->flags & LOAD_LEARN_NODE)
		s->node = entry->nodeid;
	if (step->flags & LOAD_LEARN_FH)
		s->fh = open->fh;
	return step->flags & LOAD_FORGET ? forget(l, s->node) : 0;
}

int load_take_reply(struct load *l, struct load_stream *s, const struct fuse_in_header *in,
		    const struct fuse_out_header *out, uint32_t used_len)
{
	const struct load_step *step = &s->program->steps[s->step];
	int end = check_reply(l, s, step, in, out, used_len);

	return end ? end : learn(l, s, step, in, out);
}
