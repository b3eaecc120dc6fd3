/* SPDX-License-Identifier: Apache-2.0 */
/*
 * THEORY
 *
 * Purpose. A guest that exports the share (an NFS server, open_by_handle_at(2)) gives out nodeids
 * which must last as long as their files. It asks for one that it has forgotten by LOOKUP of ".",
 * and takes no other nodeid for an answer. So the latest FORGOTTEN_MAX inodes that the guest has
 * forgotten stay in the table, with their file handles and nothing else: no fd, no mount. That is
 * why only inodes of the share's own mount stay, since the fd of that mount stays as well. Such an
 * inode does not keep a file that the host deletes.
 *
 * States of a slot. In use: the generation is odd. Let go: the generation is even, retired_by is
 * LET_GO, the slot is in its hash chain (unless another file took its key over) and in the ring
 * below. Retired and free: as without all this. A nodeid holds the odd generation, so every op
 * finds an inode that is let go as stale, at no cost; only forgotten_find() looks for the next
 * generation. Coming back makes the generation odd again, the one that it was: LOOKUP of "." does
 * that, and LOOKUP of a name that leads to the same file. When a slot that is let go becomes free
 * its generation stays even, and the next inode has another one.
 *
 * The ring has the order in which inodes were let go. An inode that is let go knows its place in
 * the ring. One that came back leaves its entry behind, and may have a later one: so an entry
 * counts only if its inode is let go and has this place.
 *
 * Readers that found the inode before it was let go may use it until their quiescent point, as
 * ever: key and handle stay, the fd is closed then (reclaim.h), and a slot that leaves the ring
 * also becomes free by way of reclaim.h. Its page is not given back before that (inode_slots.c).
 * But a slot that the ring names may have been free for long: the bit of the slot is looked at
 * first. forgotten_find() copies under the stripe's lock, so only a worker that found an inode in
 * use holds a pointer to that inode after it is let go.
 *
 * Identity. What a handle opens is compared with the inode, birth time included, before the inode
 * comes back by its nodeid (inode_forget.c). By a name it comes back as any inode that its handle
 * alone holds is found (inode_table.c).
 *
 * Locks. The ring's lock comes before a stripe's, and only to remove the oldest inode.
 *
 * Death of a worker at any store:
 * - an entry of the ring is written before the inode is let go: it counts for nothing until then.
 *   The oldest inode is removed before its entry is.
 * - let go: fd, LET_GO, place, generation. Before the last store the inode is in use, with no
 *   lookups, and LET_GO says that it was to be let go: the next worker in the slot removes it.
 * - to come back: lookups, place, generation, LET_GO. After the third store it is in use, and
 *   the next worker in the slot clears the mark.
 * - removal: out of the chain, then the worker that is to free it. In between the ring still has
 * it, unless its entry is overwritten by another worker first: then the slot is lost until the
 * session ends. The counts are measures (table_count.h).
 */
#include "worker/csrc/tables/forgotten.h"

#include "worker/csrc/tables/inode_hash.h"
#include "worker/csrc/tables/inode_layout.h"
#include "worker/csrc/tables/inode_slots.h"
#include "worker/csrc/tables/table_count.h"

enum {
	RESERVE_PART = 4,    /* one slot in this number is kept free of what is forgotten */
	REMOVALS_MAX = 1024, /* between two batches of requests */
	ANY_PLACE = FORGOTTEN_MAX,
};

/* Of an inode that was let go a moment ago: its slot does not become another inode's before our
 * next quiescent point. */
static uint32_t *lock_stripe_of(struct inode_table *t, uint32_t worker, const struct inode *inode)
{
	uint32_t *stripe = stripe_of(t, hash_of(inode_key_of(inode)));

	owner_lock(stripe, worker);
	return stripe;
}

/* ---- the ring ---- */

/* Take the inode out of its chain if it is let go, and has this place (ANY_PLACE: whichever it
 * has). Return: true if it is to be retired. */
static bool try_remove(struct inode_table *t, uint32_t worker, struct inode *inode, uint32_t place)
{
	uint32_t *stripe;
	bool found;

	if (!forgotten_is_let_go(inode))
		return false;
	stripe = lock_stripe_of(t, worker, inode);
	found = forgotten_is_let_go(inode) && (place == ANY_PLACE || inode->place == place);
	if (found) {
		inode_hash_unlink(t, hash_of(inode_key_of(inode)), inode);
		__atomic_store_n(&inode->retired_by, (uint8_t)(worker + 1), __ATOMIC_RELEASE);
		__atomic_sub_fetch(&t->forgotten.count, 1, __ATOMIC_RELAXED);
	}
	owner_unlock(stripe);
	return found;
}

/* With the ring's lock: take the oldest entry, which there must be. Return: the inode that is to be
 * retired, or NULL. */
static struct inode *remove_oldest(struct inode_table *t, uint32_t worker)
{
	struct forgotten *f = &t->forgotten;
	uint32_t place = f->first % FORGOTTEN_MAX;
	uint32_t slot = f->slots[place];
	struct inode *inode = is_taken(t, slot) ? slot_at(t, slot) : NULL;

	if (inode && !try_remove(t, worker, inode, place))
		inode = NULL;
	__atomic_store_n(&f->first, f->first + 1, __ATOMIC_RELEASE);
	return inode;
}

/* Write an entry, in the place of the oldest if the ring is full. Return: its place. */
static uint32_t add_entry(struct inode_table *t, struct reclaim *reclaim, uint32_t slot)
{
	struct forgotten *f = &t->forgotten;
	struct inode *oldest = NULL;
	uint32_t place;

	owner_lock(&f->lock, reclaim->slot);
	if (f->end - f->first >= FORGOTTEN_MAX)
		oldest = remove_oldest(t, reclaim->slot);
	place = f->end % FORGOTTEN_MAX;
	f->slots[place] = slot;
	__atomic_store_n(&f->end, f->end + 1, __ATOMIC_RELEASE);
	owner_unlock(&f->lock);
	if (oldest)
		inode_slots_retire(t, reclaim, oldest);
	return place;
}

/* Return: false if the ring is empty. */
static bool give_up_oldest(struct inode_table *t, struct reclaim *reclaim)
{
	struct forgotten *f = &t->forgotten;
	struct inode *oldest = NULL;
	bool any;

	owner_lock(&f->lock, reclaim->slot);
	any = f->end != f->first;
	if (any)
		oldest = remove_oldest(t, reclaim->slot);
	owner_unlock(&f->lock);
	if (oldest)
		inode_slots_retire(t, reclaim, oldest);
	return any;
}

/*
 * Slots that are wanted beyond those that are free, and those of ours that will be soon. The table
 * has room for what memory and --inode-limit allow. Forgotten inodes leave before that becomes
 * short, and before four fifths are reported: the guest does not know them.
 */
static uint64_t lack(const struct inode_table *t, const struct reclaim *reclaim)
{
	uint64_t slots = inode_slots_count(t), in_use = table_count(&t->in_use);
	uint64_t reserve = slots / RESERVE_PART + 1;
	uint64_t have = (slots > in_use ? slots - in_use : 0) + reclaim->count;

	return have < reserve ? reserve - have : 0;
}

void forgotten_make_room(struct inode_table *t, struct reclaim *reclaim)
{
	uint64_t wanted = table_count(&t->forgotten.count) ? lack(t, reclaim) : 0;

	if (wanted > REMOVALS_MAX)
		wanted = REMOVALS_MAX;
	while (wanted-- && give_up_oldest(t, reclaim))
		continue;
}

void forgotten_remove(struct inode_table *t, struct reclaim *reclaim, struct inode *inode)
{
	if (try_remove(t, reclaim->slot, inode, ANY_PLACE))
		inode_slots_retire(t, reclaim, inode);
}

/* ---- one inode ---- */

/* With its stripe locked. Return: the fd that is to be closed, or -1. */
static int take_fd(struct inode_table *t, struct inode *inode)
{
	int fd = inode->lender ? -1 : inode->fd;

	inode->is_readable = 0;
	__atomic_store_n(&inode->fd, -1, __ATOMIC_RELEASE);
	if (fd >= 0)
		__atomic_sub_fetch(&t->held, 1, __ATOMIC_RELAXED);
	return fd;
}

static bool is_forgotten(const struct inode *inode, uint32_t generation)
{
	return inode->generation == generation && inode->handle.len &&
	       !__atomic_load_n(&inode->lookup_count, __ATOMIC_ACQUIRE);
}

void forgotten_let_go(struct inode_table *t, struct reclaim *reclaim, struct inode *inode,
		      uint32_t generation)
{
	uint32_t place = add_entry(t, reclaim, slot_of(t, inode));
	uint32_t *stripe = stripe_of(t, hash_of(inode_key_of(inode)));
	int fd = -1;

	owner_lock(stripe, reclaim->slot);
	if (is_forgotten(inode, generation)) {
		fd = take_fd(t, inode);
		__atomic_store_n(&inode->retired_by, LET_GO, __ATOMIC_RELEASE);
		__atomic_store_n(&inode->place, place, __ATOMIC_RELEASE);
		__atomic_store_n(&inode->generation, generation + 1, __ATOMIC_RELEASE);
		__atomic_add_fetch(&t->forgotten.count, 1, __ATOMIC_RELAXED);
	}
	owner_unlock(stripe);
	if (fd >= 0)
		reclaim_retire(reclaim, (struct retired){.fd = fd});
}

void forgotten_revive(struct inode_table *t, struct inode *inode)
{
	if (!forgotten_is_let_go(inode))
		return; /* but by half: it is in use still */
	__atomic_store_n(&inode->lender, 0, __ATOMIC_RELEASE);
	__atomic_store_n(&inode->generation, inode->generation - 1, __ATOMIC_RELEASE);
	__atomic_store_n(&inode->retired_by, 0, __ATOMIC_RELEASE);
	__atomic_sub_fetch(&t->forgotten.count, 1, __ATOMIC_RELAXED);
}

/* ---- LOOKUP of "." ---- */

static struct inode *slot_of_nodeid(struct inode_table *t, uint64_t nodeid)
{
	uint32_t slot = (uint32_t)nodeid;

	return nodeid >> 32 & 1 && is_taken(t, slot) ? slot_at(t, slot) : NULL;
}

bool forgotten_find(struct inode_table *t, uint32_t worker, uint64_t nodeid, struct inode *ret)
{
	struct inode *inode = slot_of_nodeid(t, nodeid);
	uint32_t generation = (uint32_t)(nodeid >> 32);
	uint32_t *stripe;
	bool found;

	if (!inode || !forgotten_is_let_go(inode))
		return false;
	stripe = lock_stripe_of(t, worker, inode);
	found = forgotten_is_let_go(inode) && inode->generation == generation + 1;
	if (found)
		*ret = *inode;
	owner_unlock(stripe);
	return found;
}

struct inode *forgotten_recall(struct inode_table *t, uint32_t worker, uint64_t nodeid)
{
	struct inode *inode = slot_of_nodeid(t, nodeid);
	uint32_t generation = (uint32_t)(nodeid >> 32);
	uint32_t *stripe;
	bool is_back;

	if (!inode)
		return NULL;
	stripe = lock_stripe_of(t, worker, inode);
	is_back = inode->generation == generation;
	if (is_back || (forgotten_is_let_go(inode) && inode->generation == generation + 1))
		__atomic_add_fetch(&inode->lookup_count, 1, __ATOMIC_RELAXED);
	else
		inode = NULL;
	if (inode && !is_back)
		forgotten_revive(t, inode);
	owner_unlock(stripe);
	return inode;
}
