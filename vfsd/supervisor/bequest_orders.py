# SPDX-License-Identifier: Apache-2.0
"""The orders by which a pool leaves its session to another sandbox (upgrade.py)."""

from vfsd.supervisor.pool_client import PoolClient, refusal_of


def show(pool: PoolClient, sock: int) -> None:
    """Have the pool show its namespaces to the sandbox at the other end of `sock`."""
    pool.demand({"op": "show"}, [sock])


def halt(pool: PoolClient) -> bool:
    """Have all workers killed until resume(); False if one of them does not end."""
    return pool.demand({"op": "halt"}).get("halted") is True


def bequeath(pool: PoolClient, sock: int, image: int) -> str | None:
    """Have the pool send files and image to that sandbox; returns what went wrong."""
    return refusal_of(pool.ask({"op": "bequeath"}, [sock, image]))


def resume(pool: PoolClient) -> None:
    """Have the workers created again. No effect if they are not halted."""
    pool.demand({"op": "resume"})
    for slot in sorted(pool.spawned - pool.ended):
        pool.spawn(slot)
