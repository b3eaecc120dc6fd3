/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/csrc/request/request.h"

#include "worker/csrc/request/agreed.h"

#include <errno.h>
#include <linux/limits.h>
#include <stdlib.h>
#include <string.h>

uint32_t iovec_truncate(struct iovec *iov, uint32_t count, uint64_t len)
{
	uint32_t kept = 0;

	while (kept < count && len) {
		if (iov[kept].iov_len > len)
			iov[kept].iov_len = len;
		len -= iov[kept].iov_len;
		kept++;
	}
	return kept;
}

uint32_t iovec_advance(struct iovec **iov, uint32_t count, uint64_t len)
{
	while (count && len >= (*iov)->iov_len) {
		len -= (*iov)->iov_len;
		(*iov)++;
		count--;
	}
	if (count && len) {
		(*iov)->iov_base = (uint8_t *)(*iov)->iov_base + len;
		(*iov)->iov_len -= len;
	}
	return count;
}

/* Drop `len` bytes from the front; the first piece has at least that number. Pieces are never empty
 * (vring.c). */
static inline void drop(struct iovec **iov, uint32_t *count, uint64_t len)
{
	struct iovec *first = *iov;

	if (first->iov_len == len) {
		(*iov)++;
		(*count)--;
		return;
	}
	first->iov_base = (uint8_t *)first->iov_base + len;
	first->iov_len -= len;
}

static __attribute__((noinline)) uint64_t take_pieces(void *to, struct iovec **iov, uint32_t *count,
						      uint64_t len)
{
	uint64_t done = 0;

	while (done < len && *count) {
		uint64_t here = (*iov)->iov_len < len - done ? (*iov)->iov_len : len - done;

		memcpy((uint8_t *)to + done, (*iov)->iov_base, here);
		drop(iov, count, here);
		done += here;
	}
	return done;
}

/* Copy up to `len` bytes from the front of the pieces and drop them. Return: bytes copied. */
static inline uint64_t take(void *to, struct iovec **iov, uint32_t *count, uint64_t len)
{
	if (!*count || (*iov)->iov_len < len)
		return take_pieces(to, iov, count, len);
	memcpy(to, (*iov)->iov_base, len); /* as nearly always */
	drop(iov, count, len);
	return len;
}

static void put_in_pieces(const struct iovec *iov, uint32_t count, const void *from, uint64_t len)
{
	const uint8_t *at = from;

	for (uint32_t i = 0; i < count && len; i++) {
		uint64_t here = iov[i].iov_len < len ? iov[i].iov_len : len;

		memcpy(iov[i].iov_base, at, here);
		at += here;
		len -= here;
	}
}

static inline void put(const struct iovec *iov, uint32_t count, const void *from, uint64_t len)
{
	if (count && iov->iov_len >= len) /* as nearly always; a known `len` makes it a store */
		memcpy(iov->iov_base, from, len);
	else
		put_in_pieces(iov, count, from, len);
}

/* The first 16 writable bytes are for the out header, the rest is for the payload. */
static void split_writable(struct request *r)
{
	uint64_t want = sizeof(struct fuse_out_header);
	struct iovec *iov = r->chain.writable;
	uint32_t count = r->chain.writable_count;

	r->out_header_count = 0;
	r->data_out = iov;
	r->data_out_count = 0;
	r->data_out_len = 0;
	if (r->chain.writable_len < want)
		return;
	while (want) {
		uint64_t here = iov->iov_len < want ? iov->iov_len : want;

		r->out_header[r->out_header_count++] = (struct iovec){iov->iov_base, here};
		drop(&iov, &count, here);
		want -= here;
	}
	r->data_out = iov;
	r->data_out_count = count;
	r->data_out_len = r->chain.writable_len - sizeof(struct fuse_out_header);
}

int request_check_name(const char *name)
{
	size_t len = strnlen(name, PATH_MAX);

	if (!len)
		return -ENOENT;
	if (len == PATH_MAX)
		return -ENAMETOOLONG;
	if (name[0] == '.' && (len == 1 || (len == 2 && name[1] == '.')))
		return -EINVAL;
	return memchr(name, '/', len) ? -EINVAL : 0;
}

/* The string at `*offset` of the payload, which must end inside it. NULL if it does not. */
static const char *payload_string(const struct request *r, uint32_t *offset)
{
	const char *start = r->payload + *offset;
	size_t room = r->payload_len - *offset;
	size_t len = strnlen(start, room);

	if (len == room)
		return NULL;
	*offset += (uint32_t)len + 1;
	return start;
}

static int parse_names(struct request *r, uint32_t flags)
{
	uint32_t offset = 0;
	int err;

	r->name = payload_string(r, &offset);
	if (!r->name)
		return -EINVAL;
	err = request_check_name(r->name);
	if (err || !(flags & OP_NAMES))
		return err;
	r->name2 = payload_string(r, &offset);
	return r->name2 ? request_check_name(r->name2) : -EINVAL;
}

/* FUSE_EXT_GROUPS: the groups a creating op acts with besides in.gid. */
static int parse_groups(struct request *r, const uint8_t *body, uint32_t len)
{
	struct fuse_supp_groups head;

	if (len < sizeof(head))
		return -EINVAL;
	memcpy(&head, body, sizeof(head));
	if (head.nr_groups > SUPPLEMENTARY_GROUPS_MAX ||
	    head.nr_groups * sizeof(uint32_t) > len - sizeof(head))
		return -EINVAL;
	memcpy(r->groups, body + sizeof(head), head.nr_groups * sizeof(uint32_t));
	r->group_count = head.nr_groups;
	return 0;
}

/* struct fuse_secctx, the name with its '\0', the value; 8-aligned. */
bool request_next_label(const uint8_t **at, uint32_t *left, struct request_label *ret)
{
	static const char prefix[] = "security.";
	struct fuse_secctx head;
	const char *name = (const char *)*at + sizeof(head);
	uint32_t len;

	if (*left < sizeof(head))
		return false;
	memcpy(&head, *at, sizeof(head));
	len = (uint32_t)strnlen(name, *left - sizeof(head));
	/* Only a label may be set this way: not an ACL, not a "user." attribute. */
	if (len >= *left - sizeof(head) || len > XATTR_NAME_MAX ||
	    strncmp(name, prefix, sizeof(prefix) - 1) != 0 || !name[sizeof(prefix) - 1])
		return false;
	*ret = (struct request_label){.name = name, .value = name + len + 1, .size = head.size};
	len += (uint32_t)sizeof(head) + 1;
	if (head.size > *left - len)
		return false;
	len = (len + head.size + 7) / 8 * 8;
	if (len > *left)
		len = *left; /* the padding of the last label may be missing */
	*at += len;
	*left -= len;
	return true;
}

/* An extension whose type is the number of labels in it. */
static int parse_labels(struct request *r, const uint8_t *body, uint32_t len, uint32_t count)
{
	struct request_label label;

	r->labels = body;
	r->labels_len = len;
	r->label_count = count;
	for (uint32_t i = 0; i < count; i++)
		if (!request_next_label(&body, &len, &label))
			return -EINVAL;
	return 0;
}

/* The extension area at the request's end (FUSE 7.38): ext_header, body, 8-aligned, repeated. */
static int parse_extensions(const struct fuse_session *session, struct request *r,
			    const uint8_t *at, uint32_t len)
{
	while (len) {
		struct fuse_ext_header head;
		uint32_t body;
		int err = 0;

		if (len < sizeof(head))
			return -EINVAL;
		memcpy(&head, at, sizeof(head));
		if (head.size < sizeof(head) || head.size > len || head.size % 8)
			return -EINVAL;
		body = head.size - (uint32_t)sizeof(head);
		if (head.type == FUSE_EXT_GROUPS && is_agreed(session, &AGREED_GROUPS))
			err = parse_groups(r, at + sizeof(head), body);
		else if (head.type <= FUSE_MAX_NR_SECCTX && is_agreed(session, &AGREED_LABELS))
			err = parse_labels(r, at + sizeof(head), body, head.type);
		if (err)
			return err;
		at += head.size;
		len -= head.size;
	}
	return 0;
}

/* FUSE 7.36 and 7.37 have no extension area: the labels follow the names, with the same header. */
static int parse_old_labels(const struct fuse_session *session, struct request *r)
{
	uint32_t strings = 1, offset = 0;

	switch (r->in.opcode) {
	case FUSE_SYMLINK:
		strings = 2;
		break;
	case FUSE_CREATE:
	case FUSE_MKDIR:
	case FUSE_MKNOD:
	case FUSE_TMPFILE:
		break;
	default:
		return 0;
	}
	while (strings--)
		if (!payload_string(r, &offset))
			return -EINVAL;
	return parse_extensions(session, r, (const uint8_t *)r->payload + offset,
				r->payload_len - offset);
}

/* Return: bytes of the extension area. */
static uint64_t extension_bytes(const struct fuse_session *session, const struct request *r)
{
	return r->in.total_extlen && is_agreed(session, &AGREED_EXTENSIONS)
		       ? (uint64_t)r->in.total_extlen * 8
		       : 0;
}

static int parse_payload(const struct fuse_session *session, struct request *r, uint32_t flags,
			 char *room, struct iovec *iov, uint32_t count, uint64_t len)
{
	uint64_t extension = extension_bytes(session, r);
	int err;

	if (len > REQUEST_PAYLOAD_MAX)
		return -E2BIG;
	if (extension > len)
		return -EINVAL;
	take(room, &iov, &count, len);
	r->payload = room;
	r->payload_len = (uint32_t)(len - extension);
	err = parse_extensions(session, r, (uint8_t *)room + r->payload_len, (uint32_t)extension);
	/* This may overwrite the first extension's header, which has been parsed. */
	room[r->payload_len] = '\0';
	if (!err && is_agreed(session, &AGREED_LABELS) && !is_agreed(session, &AGREED_EXTENSIONS))
		err = parse_old_labels(session, r);
	if (err)
		return err;
	return flags & (OP_NAME | OP_NAMES) ? parse_names(r, flags) : 0;
}

static void reset(struct request *r)
{
	memset(&r->in, 0, sizeof(r->in));
	memset(r->arg, 0, sizeof(r->arg));
	r->payload = "";
	r->payload_len = 0;
	r->name = r->name2 = NULL;
	r->group_count = 0;
	r->label_count = 0;
	r->reply = r->small;
	r->data_in = NULL;
	r->data_in_count = 0;
	r->data_in_len = 0;
	r->replayed = r->abandoned = r->held = r->holds_fd = r->kill_suidgid = false;
	r->run_again = false;
	r->waits = 0;
	r->intent = NULL;
	r->run = NULL;
	r->file = r->file2 = NULL;
	r->fd = r->fd2 = -1;
	r->done_bytes = 0;
}

/* Return: false if there is no whole header; r->in is zero then. *iov and *count move past the
 * header. */
static inline bool parse_header(struct request *r, struct iovec **iov, uint32_t *count)
{
	reset(r);
	split_writable(r);
	if (take(&r->in, iov, count, sizeof(r->in)) == sizeof(r->in))
		return true;
	memset(&r->in, 0, sizeof(r->in));
	return false;
}

void request_parse_header(struct request *r)
{
	struct iovec *iov = r->chain.readable;
	uint32_t count = r->chain.readable_count;

	(void)!parse_header(r, &iov, &count);
}

int request_parse(struct request *r, const struct fuse_session *session, char *payload)
{
	struct iovec *iov = r->chain.readable;
	uint32_t count = r->chain.readable_count;
	const struct fuse_op *op;
	uint64_t len;

	if (!parse_header(r, &iov, &count))
		return -EIO;
	if (r->in.len < sizeof(r->in) || r->in.len > r->chain.readable_len)
		return -EIO;
	len = r->in.len - sizeof(r->in);
	op = fuse_op(r->in.opcode);
	if (!op->name)
		return -ENOSYS;
	/* In a FORGET, Zephyr counts only the header. An error could not be reported: FORGET has no
	 * reply. */
	if (len < op->arg_size && op->flags & OP_NO_REPLY)
		len = r->chain.readable_len - sizeof(r->in);
	if (len < op->arg_size || op->arg_size > sizeof(r->arg))
		return -EINVAL;
	take(r->arg, &iov, &count, op->arg_size);
	len -= op->arg_size;
	if (op->flags & OP_DATA_IN) {
		r->data_in = iov;
		r->data_in_count = iovec_truncate(iov, count, len);
		r->data_in_len = len;
		return 0;
	}
	return len ? parse_payload(session, r, op->flags, payload, iov, count, len)
		   : (op->flags & (OP_NAME | OP_NAMES) ? -EINVAL : 0);
}

static void move_to(const char **at, const char *from, const char *to)
{
	if (*at)
		*at = to + (*at - from);
}

int request_keep_payload(struct request *r)
{
	size_t len = (size_t)r->payload_len + 1;
	size_t labels_len = r->label_count ? r->labels_len : 0;

	if (r->kept || !r->payload_len)
		return 0;
	r->kept = malloc(len + labels_len);
	if (!r->kept)
		return -ENOMEM;
	memcpy(r->kept, r->payload, len);
	if (labels_len) {
		memcpy(r->kept + len, r->labels, labels_len);
		r->labels = (uint8_t *)r->kept + len;
	}
	move_to(&r->name, r->payload, r->kept);
	move_to(&r->name2, r->payload, r->kept);
	r->payload = r->kept;
	return 0;
}

void request_drop_payload(struct request *r)
{
	free(r->kept);
	r->kept = NULL;
}

int request_need_room(const struct request *r, uint64_t len)
{
	return r->out_header_count && r->data_out_len >= len ? 0 : -EIO;
}

static bool payload_is_in_place(const struct request *r)
{
	return fuse_op(r->in.opcode)->flags & OP_DATA_OUT;
}

uint32_t request_reply(struct request *r, int result)
{
	struct fuse_out_header out = {.unique = r->in.unique};
	uint64_t len = result > 0 ? (uint64_t)result : 0;

	if (!r->out_header_count)
		return 0;
	if (len > r->data_out_len) {
		result = -EIO;
		len = 0;
	}
	if (len && !payload_is_in_place(r))
		put(r->data_out, r->data_out_count, r->reply, len);
	out.error = result < 0 ? result : 0;
	out.len = (uint32_t)(sizeof(out) + len);
	put(r->out_header, r->out_header_count, &out, sizeof(out));
	return out.len;
}

bool request_loses_memory(const struct request *r, const struct guest_memory *memory)
{
	for (uint32_t i = 0; i < r->chain.readable_count; i++)
		if (guest_memory_loses(memory, &r->chain.readable[i]))
			return true;
	for (uint32_t i = 0; i < r->chain.writable_count; i++)
		if (guest_memory_loses(memory, &r->chain.writable[i]))
			return true;
	return false;
}
