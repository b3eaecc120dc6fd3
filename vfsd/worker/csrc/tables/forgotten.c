/* SPDX-License-Identifier: Apache-2.0 */
/*
 * THEORY
 *
 * Purpose. A guest may export the share (as an NFS server, or to programs that use
 * open_by_handle_at(2)). It then gives out nodeids, which must last as long as their files. When
 * it needs a nodeid that it has forgotten, it sends LOOKUP of "." for that nodeid, and accepts no
 * other nodeid in the reply. So the last FORGOTTEN_MAX inodes that such a guest has forgotten stay
 * in the table. They keep their file handles, but neither an fd nor a mount; so only inodes of the
 * share's own mount stay, whose fd stays as well. An inode that stays in this way does not keep
 * alive a file that the host deletes. It is called "let go" below.
 *
 * States of a slot. In use: the generation is odd. Let go: the generation is even, retired_by is
 * LET_GO, and the slot is in the ring below and in its hash chain (unless another file has taken
 * its key over). Retired and free: as in inode_table.c. A nodeid contains an odd generation, so
 * every op finds an inode that was let go as stale, without an extra check. Only forgotten_find()
 * looks for the generation that follows. An inode comes back by LOOKUP of ".", and by LOOKUP of a
 * name that leads to the same file; its generation then is the same odd number as before. When the
 * slot of an inode that was let go becomes free, its generation stays even, and the next inode in
 * that slot has another generation.
 *
 * The ring holds the slots in the order in which their inodes were let go. An inode that was let
 * go knows its place in the ring. An inode that came back leaves its entry behind, and may get a
 * later one. So an entry counts only if its inode is let go and has this place.
 *
 * Readers that found the inode before it was let go may use it until their quiescent point: the
 * key and the handle stay, the fd is closed only then (reclaim.h), and a slot that leaves the ring
 * also becomes free only then. The slot's page is not given back before that (inode_slots.c). But
 * the ring may name a slot that has been free for a long time, so the bit of the slot is checked
 * before the slot is read. forgotten_find() copies the inode under the stripe's lock. So only a
 * worker that found an inode in use can hold a pointer to that inode after it was let go.
 *
 * Identity. Before an inode comes back by its nodeid, the file that its handle opens is compared
 * with the inode, birth time included (inode_forget.c). An inode comes back by a name under the
 * same conditions under which any inode is found that only its handle holds (inode_table.c).
 *
 * Locks. A stripe's lock is taken under the ring's lock, never the reverse, and only to remove the
 * oldest inode.
 *
 * Death of a worker at any store:
 * - an entry of the ring is written before its inode is let go, and does not count until then. The
 *   oldest inode is removed before its entry is removed.
 * - let go: the stores are fd, LET_GO, place, generation. Before the last store the inode is in
 *   use and has no lookups, and LET_GO shows that it was about to be let go: the next worker in
 *   the slot removes it.
 * - come back: the stores are lookup count, place, generation, retired_by. After the third store
 *   the inode is in use, and the next worker in the slot clears LET_GO.
 * - removal: the inode leaves its chain, and then names the worker that is to free it. Between the
 *   two stores the ring still has the inode. If another worker overwrites the ring's entry at that
 *   time, the slot is lost until the session ends.
 * - the counts are estimates (table_count.h).
 */
#include "worker/csrc/tables/forgotten.h"

#include "worker/csrc/tables/inode_hash.h"
#include "worker/csrc/tables/inode_layout.h"
#include "worker/csrc/tables/inode_slots.h"
#include "worker/csrc/tables/table_count.h"

enum {
	RESERVE_PART = 4,    /* one slot in this number is kept free of forgotten inodes */
	REMOVALS_MAX = 1024, /* removals between two batches of requests */
	ANY_PLACE = FORGOTTEN_MAX,
};

/* Lock the stripe of an inode that was just seen to be let go. Its slot is not given to another
 * inode before this worker's next quiescent point, so the key that is read without the lock is the
 * right one. */
static uint32_t *lock_stripe_of(struct inode_table *t, uint32_t worker, const struct inode *inode)
{
	uint32_t *stripe = stripe_of(t, hash_of(inode_key_of(inode)));

	owner_lock(stripe, worker);
	return stripe;
}

/* ---- the ring ---- */

/* Take the inode out of its chain if it is let go and has this place (ANY_PLACE: every place is
 * accepted). Return: true if the caller is to retire the inode. */
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

/* Take the oldest entry out of the ring, which must not be empty. The caller holds the ring's lock.
 * Return: the inode that the caller is to retire, or NULL. */
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

/* Write an entry into the ring. In a full ring it replaces the oldest entry. Return: the entry's
 * place. */
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

/* Remove the inode of the oldest entry. Return: false if the ring is empty. */
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
 * The number of slots that are missing from the reserve. Slots that are free, and slots that this
 * worker will free soon, count towards the reserve. The table has as many slots as memory and
 * --inode-limit allow. Forgotten inodes leave before slots become scarce, and before INODES_MANY
 * (four fifths) is reported, since the guest does not know these inodes.
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

/* Take the fd away from an inode. The caller holds the stripe's lock. Return: the fd to be closed,
 * or -1. */
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
		return; /* a worker died before it had let the inode go: the inode is still in use
			 */
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
