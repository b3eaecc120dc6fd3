# SPDX-License-Identifier: Apache-2.0
"""The state of a supervisor for its successor: plain values and numbers of fds. See resume.py."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from vfsd.supervisor.effects import Effect, decode_effect, encode_effect
from vfsd.supervisor.segments import Segments
from vfsd.supervisor.session import Session


class SavedMessage(NamedTuple):
    """The vhost-user message that a supervisor is handling."""

    number: int
    flags: int
    payload: bytes

    def encode(self) -> tuple[int, int, str]:
        """The fields as values that JSON can represent."""
        return self.number, self.flags, self.payload.hex()

    @classmethod
    def decode(cls, number: int, flags: int, payload: str) -> "SavedMessage":
        """Make the object again from the values that encode() returned."""
        return cls(number, flags, bytes.fromhex(payload))


@dataclass(frozen=True)
class SavedPool:
    """The state of a pool that is ready."""

    channel: int
    stderr: int
    pid: int
    pidfd: int
    segments: Segments
    listeners: tuple[tuple[str, int], ...]  # by slot: path, fd
    opens_handles: bool
    numbers: Mapping[int, int]  # an fd of the supervisor -> its number in the pool
    spawned: frozenset[int]  # slots that have a worker
    ended: frozenset[int]  # slots whose worker died and is not created again

    def fds(self) -> set[int]:
        listeners = (fd for _, fd in self.listeners)
        return {self.channel, self.stderr, self.pidfd, *self.segments.fds(), *listeners}

    def encode(self) -> dict[str, Any]:
        """The fields as values that JSON can represent."""
        return vars(self) | {
            "segments": vars(self.segments),
            "numbers": list(self.numbers.items()),
            "spawned": sorted(self.spawned),
            "ended": sorted(self.ended),
        }

    @classmethod
    def decode(cls, content: Mapping[str, Any]) -> "SavedPool":
        """Make the object again from the values that encode() returned."""
        changed = {
            "segments": Segments(**content["segments"]),
            "listeners": tuple((str(path), int(fd)) for path, fd in content["listeners"]),
            "numbers": dict(content["numbers"]),
            "spawned": frozenset(content["spawned"]),
            "ended": frozenset(content["ended"]),
        }
        return cls(**{**content, **changed})


@dataclass(frozen=True)
class LostPool:
    """What is left of a pool that died while a guest had a session: its tables, and what the next
    pool is to know."""

    segments: Segments
    spawned: frozenset[int]  # slots that had a worker
    ended: frozenset[int]  # slots whose worker is not created again

    def encode(self) -> list[Any]:
        """The fields as values that JSON can represent."""
        return [vars(self.segments), sorted(self.spawned), sorted(self.ended)]

    @classmethod
    def decode(
        cls, segments: Mapping[str, int], spawned: list[int], ended: list[int]
    ) -> "LostPool":
        """Make the object again from the values that encode() returned."""
        return cls(Segments(**segments), frozenset(spawned), frozenset(ended))


@dataclass(frozen=True)
class SavedState:
    """The whole state. The defaults stand for a supervisor that died before it saved a state."""

    reply_start: int = 0  # where in the outbox the reply belongs
    frontend: int | None = None  # the socket of the VMM
    has_spoken: bool = False  # the VMM has sent a message
    ended: int | None = None  # the exit status, once the share has ended
    has_had_pool: bool = False  # a pool of this daemon was ready once
    # Sockets between two versions (upgrade.py). `heir`: to the daemon that is to serve, or serves,
    # in our place. `former`: to the daemon that serves; we are to take its place.
    heir: int | None = None
    former: int | None = None
    session: Mapping[str, Any] = field(default_factory=dict)  # Session.snapshot()
    pool: SavedPool | None = None
    lost: LostPool | None = None  # a pool that died and is to be replaced
    labels: Mapping[int, int] = field(default_factory=dict)  # FdStore.labels
    effects: tuple[Effect, ...] = ()  # effects that have still to be carried out
    message: SavedMessage | None = None

    def without_pool(self) -> LostPool | None:
        """What is left of the session if the pool is gone, or when it will be; None if no pool has
        had a session."""
        pool = self.pool
        return LostPool(pool.segments, pool.spawned, pool.ended) if pool else self.lost

    def kept_fds(self) -> set[int]:
        """The fds that the VM which is connected cannot do without."""
        lost = self.without_pool() if self.frontend is not None else None
        return {*self._frontend_fds(), *(lost.segments.own_fds() if lost else ())}

    def fds(self) -> set[int]:
        """Every fd that this state names."""
        pool = self.pool.fds() if self.pool else set()
        lost = self.lost.segments.own_fds() if self.lost else []
        other = {fd for fd in (self.heir, self.former) if fd is not None}
        return {*pool, *lost, *other, *self._frontend_fds()}

    def _frontend_fds(self) -> set[int]:
        if self.frontend is None:
            return set()
        return {self.frontend, *Session.restore(self.session).fds()}

    def encode(self) -> dict[str, Any]:
        """The fields as values that JSON can represent."""
        return vars(self) | {
            "pool": self.pool and self.pool.encode(),
            "lost": self.lost and self.lost.encode(),
            "labels": list(self.labels.items()),
            "effects": [encode_effect(effect) for effect in self.effects],
            "message": self.message and self.message.encode(),
        }

    @classmethod
    def decode(cls, content: Mapping[str, Any]) -> "SavedState":
        """Make the object again from the values that encode() returned."""
        pool, lost, message = content["pool"], content["lost"], content["message"]
        changed = {
            "pool": pool and SavedPool.decode(pool),
            "lost": lost and LostPool.decode(*lost),
            "labels": dict(content["labels"]),
            "effects": tuple(map(decode_effect, content["effects"])),
            "message": message and SavedMessage.decode(*message),
        }
        return cls(**{**content, **changed})
