/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A random driver that behaves well most of the time, and what it expects: each chain that it makes
 * is described byte by byte, independently of the device's code, and compared with what vring_pop
 * returns.
 *
 * The device completes in any order, publishes at any time, and dies now and then.
 */
#include "driver.h"

enum {
	FEATURES = DRIVER_INDIRECT_DESC | DRIVER_EVENT_IDX,
	SIZE_MAX_HERE = 64,
	PIECES_MAX = 8,
	TABLE_SLOT = 0x400, /* room for one head's indirect table */
	TABLES = DRIVER_DATA,
	DATA = DRIVER_DATA + SIZE_MAX_HERE * TABLE_SLOT,
	NANOSECONDS = 2000 * 1000 * 1000,
};

struct piece {
	uint64_t gpa;
	uint32_t len;
	bool writable;
};

/* What the driver knows about a head. */
struct expected {
	bool offered; /* offered and not yet completed */
	bool popped;
	bool bad;
	uint32_t count;
	struct piece pieces[PIECES_MAX];
	uint32_t descs[PIECES_MAX]; /* descriptors that the chain occupies */
	uint32_t desc_count;
};

struct model {
	struct driver d;
	uint64_t features;
	uint64_t random;
	uint32_t free[SIZE_MAX_HERE];
	uint32_t free_count;
	struct expected heads[SIZE_MAX_HERE];
	uint16_t queue[SIZE_MAX_HERE]; /* offered heads in their order */
	uint32_t queue_first, queue_count;
	uint16_t popped[SIZE_MAX_HERE]; /* heads at the device */
	uint32_t popped_count;
	uint32_t lens[SIZE_MAX_HERE]; /* by pushed head: the length that was pushed */
	uint32_t pending;
	uint64_t completed;
};

static uint32_t below(struct model *m, uint32_t end)
{
	return random_below(&m->random, end);
}

static uint32_t random_len(struct model *m)
{
	return below(m, 8) ? 1 + below(m, 100) : below(m, 3) ? 1 + below(m, 20000) : 0;
}

static void make_pieces(struct model *m, struct expected *e)
{
	uint64_t next = DATA + below(m, 0x10000);

	e->count = 1 + below(m, PIECES_MAX);
	for (uint32_t i = 0; i < e->count; i++) {
		struct piece *p = &e->pieces[i];

		p->gpa = below(m, 3) ? DATA + below(m, 0x100000) : next;
		p->len = random_len(m);
		p->writable = i && (e->pieces[i - 1].writable || !below(m, 3));
		next = p->gpa + p->len;
	}
}

/* Write `e` as descriptors, either into the ring or into an indirect table. */
static void write_chain(struct model *m, struct expected *e, uint16_t head, bool indirect)
{
	struct driver_desc *table =
		indirect ? (void *)(m->d.ram + TABLES + head * TABLE_SLOT) : m->d.desc;

	for (uint32_t i = 0; i < e->count; i++) {
		uint32_t at = indirect ? i : e->descs[i];
		bool last = i == e->count - 1;

		table[at] = (struct driver_desc){
			.addr = e->pieces[i].gpa,
			.len = e->pieces[i].len,
			.flags = (uint16_t)((last ? 0 : DRIVER_NEXT) |
					    (e->pieces[i].writable ? DRIVER_WRITE : 0)),
			.next = (uint16_t)(last	      ? next_random(&m->random)
					   : indirect ? i + 1
						      : e->descs[i + 1]),
		};
	}
	if (indirect)
		driver_set(&m->d, head, TABLES + (uint64_t)head * TABLE_SLOT, e->count * 16,
			   DRIVER_INDIRECT, (uint16_t)next_random(&m->random));
}

/* Change one descriptor of the chain so that the chain is malformed for certain. */
static void spoil(struct model *m, struct expected *e, uint16_t head, bool indirect)
{
	struct driver_desc *table =
		indirect ? (void *)(m->d.ram + TABLES + head * TABLE_SLOT) : m->d.desc;
	uint32_t last = indirect ? e->count - 1 : e->descs[e->count - 1];
	uint32_t first = indirect ? 0 : head;

	e->bad = true;
	switch (below(m, 5)) {
	case 0:
		table[last].flags |= DRIVER_NEXT;
		table[last].next = (uint16_t)(indirect ? e->count : m->d.size);
		break;
	case 1:
		table[last].addr = DRIVER_BYTES - 4;
		table[last].len = 5;
		break;
	case 2: /* a circle */
		table[last].flags |= DRIVER_NEXT;
		table[last].next = (uint16_t)first;
		break;
	case 3:
		table[last].len = 1;
		table[last].addr = UINT64_MAX - below(m, 100);
		break;
	default:
		table[last].flags =
			DRIVER_NEXT | DRIVER_INDIRECT; /* also where the flag is not allowed */
		break;
	}
}

static void offer(struct model *m)
{
	struct expected fresh = {0}, *e;
	uint32_t need;
	uint16_t head;
	bool indirect = m->features & DRIVER_INDIRECT_DESC && below(m, 2);

	make_pieces(m, &fresh);
	need = indirect ? 1 : fresh.count;
	if (need > m->free_count)
		return;
	for (uint32_t i = 0; i < need; i++) {
		uint32_t pick = below(m, m->free_count);

		fresh.descs[fresh.desc_count++] = m->free[pick];
		m->free[pick] = m->free[--m->free_count];
	}
	head = (uint16_t)fresh.descs[0];
	e = &m->heads[head];
	CHECK(!e->offered);
	*e = fresh;
	e->offered = true;
	write_chain(m, e, head, indirect);
	if (!below(m, 20))
		spoil(m, e, head, indirect);
	m->queue[(m->queue_first + m->queue_count++) % SIZE_MAX_HERE] = head;
	driver_offer(&m->d, head);
}

/* The bytes of one direction, in their order, must be the expected ones: the same addresses, no
 * two adjoining pieces left apart, and no empty piece. */
static void compare(struct model *m, const struct expected *e, bool writable)
{
	const struct chain *c = &m->d.chain;
	const struct iovec *iov = writable ? c->writable : c->readable;
	uint32_t count = writable ? c->writable_count : c->readable_count;
	uint64_t len = writable ? c->writable_len : c->readable_len, want = 0, offset = 0;
	uint32_t at = 0;

	for (uint32_t i = 0; i < e->count; i++) {
		const struct piece *p = &e->pieces[i];

		if (p->writable != writable)
			continue;
		want += p->len;
		for (uint32_t done = 0; done < p->len;) {
			uint64_t here = p->len - done;

			CHECK(at < count);
			if (here > iov[at].iov_len - offset)
				here = iov[at].iov_len - offset;
			CHECK((uint8_t *)iov[at].iov_base + offset ==
			      (uint8_t *)m->d.memory.mappings[0].addr + p->gpa + done);
			done += (uint32_t)here;
			offset += here;
			if (offset == iov[at].iov_len) {
				at++;
				offset = 0;
			}
		}
	}
	CHECK(at == count && !offset && len == want);
	for (uint32_t i = 1; i < count; i++)
		CHECK((uint8_t *)iov[i - 1].iov_base + iov[i - 1].iov_len != iov[i].iov_base);
}

static void pop(struct model *m)
{
	struct expected *e;
	int got = driver_pop(&m->d);

	if (!m->queue_count) {
		CHECK_EQUAL(got, 0);
		return;
	}
	CHECK_EQUAL(m->d.chain.head, m->queue[m->queue_first]);
	e = &m->heads[m->d.chain.head];
	m->queue_first = (m->queue_first + 1) % SIZE_MAX_HERE;
	m->queue_count--;
	CHECK_EQUAL(got, e->bad ? CHAIN_BAD : 1);
	if (!e->bad) {
		compare(m, e, false);
		compare(m, e, true);
	}
	e->popped = true;
	m->popped[m->popped_count++] = (uint16_t)m->d.chain.head;
}

static void push(struct model *m)
{
	uint32_t pick;
	uint16_t head;

	if (!m->popped_count)
		return;
	pick = below(m, m->popped_count);
	head = m->popped[pick];
	m->popped[pick] = m->popped[--m->popped_count];
	m->lens[head] = next_random(&m->random);
	vring_push(&m->d.vring, head, m->lens[head]);
	m->pending++;
}

/* The driver sees the published completions, and nothing else. */
static void collect(struct model *m, uint32_t count)
{
	uint32_t id, len;

	for (uint32_t i = 0; i < count; i++) {
		struct expected *e;

		CHECK(driver_take(&m->d, &id, &len));
		CHECK(id < m->d.size);
		e = &m->heads[id];
		CHECK(e->offered && e->popped && len == m->lens[id]);
		e->offered = false;
		for (uint32_t j = 0; j < e->desc_count; j++)
			m->free[m->free_count++] = e->descs[j];
		m->completed++;
	}
	CHECK(!driver_take(&m->d, &id, &len));
}

/* virtio 1.2 §2.7.7.2 in words: was entry `event` among the entries from `old` up to `new`, with
 * `old` and without `new`? */
static bool among(uint16_t event, uint16_t old, uint16_t end)
{
	for (uint16_t i = old; i != end; i++)
		if (i == event)
			return true;
	return false;
}

static void publish(struct model *m)
{
	uint16_t old = driver_used_idx(&m->d);
	uint16_t event = (uint16_t)(old + below(m, 8) - 2);
	bool mute = below(m, 2), call;

	driver_set_used_event(&m->d, event);
	m->d.avail[0] = mute;
	call = vring_publish(&m->d.vring);
	CHECK_EQUAL((uint16_t)(driver_used_idx(&m->d) - old), m->pending);
	if (m->features & DRIVER_EVENT_IDX)
		CHECK_EQUAL(call, among(event, old, driver_used_idx(&m->d)));
	else
		CHECK_EQUAL(call, m->pending && !mute);
	collect(m, m->pending);
	m->pending = 0;
}

static int by_number(const void *a, const void *b)
{
	return *(const uint16_t *)a - *(const uint16_t *)b;
}

/* A head that was popped and not published is in flight again; pushes are forgotten. */
static void die(struct model *m)
{
	uint16_t heads[SIZE_MAX_HERE];
	uint32_t count = driver_attach(&m->d, m->features, heads), expected = 0;

	for (uint16_t head = 0; head < m->d.size; head++)
		if (m->heads[head].offered && m->heads[head].popped)
			m->popped[expected++] = head;
	CHECK_EQUAL(count, expected);
	m->popped_count = expected;
	for (uint32_t i = 0; i < count; i++) {
		struct expected *e = &m->heads[heads[i]];

		m->d.chain.head = heads[i];
		CHECK_EQUAL(vring_repop(&m->d.vring, &m->d.memory, &m->d.chain),
			    e->bad ? CHAIN_BAD : 1);
		if (!e->bad)
			compare(m, e, true);
	}
	qsort(heads, count, sizeof(*heads), by_number);
	for (uint32_t i = 0; i < count; i++)
		CHECK_EQUAL(heads[i], m->popped[i]);
	m->pending = 0;
	CHECK(vring_publish(&m->d.vring));
	CHECK_EQUAL(vring_available(&m->d.vring), m->queue_count);
}

static void kicks(struct model *m)
{
	CHECK_EQUAL(vring_enable_kicks(&m->d.vring), m->queue_count > 0);
	if (m->features & DRIVER_EVENT_IDX)
		CHECK_EQUAL(driver_avail_event(&m->d),
			    (uint16_t)(m->d.next_avail - m->queue_count));
	vring_disable_kicks(&m->d.vring);
}

static uint64_t run(uint32_t size, uint64_t features, uint64_t seed, uint64_t until)
{
	static struct model m;

	memset(&m, 0, sizeof(m));
	m.features = features;
	m.random = seed;
	driver_start(&m.d, size, features);
	for (uint32_t i = 0; i < size; i++)
		m.free[m.free_count++] = i;
	while (test_clock_ns() < until || m.completed < 70000) {
		switch (below(&m, 32)) {
		case 0 ... 9:
			offer(&m);
			break;
		case 10 ... 19:
			pop(&m);
			break;
		case 20 ... 28:
			push(&m);
			break;
		case 29:
			kicks(&m);
			break;
		case 30:
			if (!below(&m, 50))
				die(&m);
			break;
		default:
			publish(&m);
		}
	}
	driver_end(&m.d);
	return m.completed;
}

int main(void)
{
	static const uint64_t features[] = {FEATURES, 0, DRIVER_INDIRECT_DESC, DRIVER_EVENT_IDX};
	static const uint32_t sizes[] = {1, 2, 16, 64};

	for (uint64_t i = 0; i < 4; i++) {
		uint64_t until = test_clock_ns() + NANOSECONDS / 4;

		printf("size %u: %" PRIu64 " requests\n", sizes[i],
		       run(sizes[i], features[i], i + 1, until));
	}
	return 0;
}
