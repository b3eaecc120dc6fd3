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
class SavedState:
    """The whole state. The defaults stand for a supervisor that died before it saved a state."""

    reply_start: int = 0  # where in the outbox the reply belongs
    frontend: int | None = None  # the socket of the VMM
    has_spoken: bool = False  # the VMM has sent a message
    ended: int | None = None  # the exit status, once the share has ended
    session: Mapping[str, Any] = field(default_factory=dict)  # Session.snapshot()
    pool: SavedPool | None = None
    lost: Segments | None = None  # the tables of a sandbox that is gone, with which to go on
    labels: Mapping[int, int] = field(default_factory=dict)  # FdStore.labels
    effects: tuple[Effect, ...] = ()  # effects that have still to be carried out
    message: SavedMessage | None = None

    def tables(self) -> Segments | None:
        """The tables of the sandbox, also if the sandbox is gone."""
        return self.pool.segments if self.pool else self.lost

    def kept_fds(self) -> set[int]:
        """The fds that the VM which is connected cannot do without."""
        if self.frontend is None:
            return set()
        tables = self.tables()
        session = Session.restore(self.session)
        return {self.frontend, *session.fds(), *(tables.own_fds() if tables else ())}

    def encode(self) -> dict[str, Any]:
        """The fields as values that JSON can represent."""
        return vars(self) | {
            "pool": self.pool and self.pool.encode(),
            "lost": self.lost and vars(self.lost),
            "labels": list(self.labels.items()),
            "effects": [encode_effect(effect) for effect in self.effects],
            "message": self.message and self.message.encode(),
        }

    @classmethod
    def decode(cls, content: Mapping[str, Any]) -> "SavedState":
        """Make the object again from the values that encode() returned."""
        pool, message = content["pool"], content["message"]
        changed = {
            "pool": pool and SavedPool.decode(pool),
            "lost": content["lost"] and Segments(**content["lost"]),
            "labels": dict(content["labels"]),
            "effects": tuple(map(decode_effect, content["effects"])),
            "message": message and SavedMessage.decode(*message),
        }
        return cls(**{**content, **changed})
