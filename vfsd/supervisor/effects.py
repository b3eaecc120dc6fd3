# SPDX-License-Identifier: Apache-2.0
"""What a session asks the service to do, and the device that the workers are to serve.

Effects are plain values: they can be stored, and carried out by another supervisor (resume.py).
"""

from dataclasses import asdict, astuple, dataclass
from typing import Any, Final

from vfsd.transport.vhost_user_payloads import Inflight, Region


@dataclass(frozen=True)
class DeviceVring:
    """A vring that runs. The addresses are those of the front-end; the fds are those of the
    supervisor."""

    index: int
    size: int
    desc: int
    avail: int
    used: int
    starts: int
    kick_fd: int | None
    call_fd: int | None
    err_fd: int | None
    inflight_fd: int | None
    inflight_offset: int

    def fds(self) -> set[int]:
        fds = (self.kick_fd, self.call_fd, self.err_fd, self.inflight_fd)
        return {fd for fd in fds if fd is not None}


@dataclass(frozen=True)
class Device:
    """The device that the workers serve: features, memory, and the vrings that run."""

    features: int = 0
    regions: tuple[tuple[Region, int], ...] = ()
    vrings: tuple[DeviceVring, ...] = ()

    def fds(self) -> set[int]:
        return {fd for _, fd in self.regions}.union(*(vring.fds() for vring in self.vrings))


@dataclass(frozen=True)
class Prepare:
    """A vring is about to run: create its worker, but do not wait for it."""

    index: int


@dataclass(frozen=True)
class Apply:
    """Make every worker adopt the session's device before the next effect."""


@dataclass(frozen=True)
class EndFuseSession:
    """No vring runs, and the guest's driver has gone: close its files, and release its locks."""


@dataclass(frozen=True)
class Close:
    """Close fds that nothing refers to any more."""

    fds: tuple[int, ...]


@dataclass(frozen=True)
class Reply:
    """Send this encoded message to the front-end."""

    data: bytes


@dataclass(frozen=True)
class ReplyBase:
    """Answer GET_VRING_BASE with the index at which the vring stopped."""

    index: int


@dataclass(frozen=True)
class ReplyInflight:
    """Answer GET_INFLIGHT_FD with a new, zeroed segment of `inflight.mmap_size` bytes."""

    inflight: Inflight


@dataclass(frozen=True)
class Log:
    """Write a line to the log, for the operator."""

    level: str
    text: str


Effect = Prepare | Apply | EndFuseSession | Close | Reply | ReplyBase | ReplyInflight | Log
ORDER: Final = (Log, Prepare, Apply, EndFuseSession, Close, Reply, ReplyBase, ReplyInflight)


def encode_effect(effect: Effect) -> dict[str, Any]:
    """The effect as values that JSON can represent."""
    fields = asdict(effect)
    if isinstance(effect, Reply):
        fields["data"] = effect.data.hex()
    elif isinstance(effect, ReplyInflight):
        fields["inflight"] = list(astuple(effect.inflight))
    return {"effect": type(effect).__name__, **fields}


def decode_effect(content: dict[str, Any]) -> Effect:
    """The effect that encode_effect() encoded as `content`."""
    fields = dict(content)
    kind = {cls.__name__: cls for cls in ORDER}[fields.pop("effect")]
    if kind is Reply:
        return Reply(bytes.fromhex(fields["data"]))
    if kind is ReplyInflight:
        return ReplyInflight(Inflight(*fields["inflight"]))
    if kind is Close:
        return Close(tuple(fields["fds"]))
    effect: Effect = kind(**fields)
    return effect
