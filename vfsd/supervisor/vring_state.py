# SPDX-License-Identifier: Apache-2.0
"""One vring as the front-end set it up. THEORY in session.py explains the states of a vring."""

from dataclasses import asdict, astuple, dataclass
from typing import Any, Final

from vfsd.supervisor.effects import DeviceVring
from vfsd.transport.errors import ProtocolError
from vfsd.transport.native import lib
from vfsd.transport.vhost_user_payloads import U64_MAX, VringAddr

# The bytes of the largest descriptor table, which is the largest area of a ring.
_LARGEST: Any = lib.split_ring_areas(lib.VRING_SIZE_MAX, True)
LARGEST_TABLE: Final = int(_LARGEST.desc)


@dataclass
class Vring:
    """The state of a vring. `started` and `enabled` are set by messages of the front-end; `runs` is
    the result that the workers get."""

    size: int = 0
    addr: VringAddr | None = None
    base: int = 0
    kick_fd: int | None = None
    call_fd: int | None = None
    err_fd: int | None = None
    started: bool = False
    enabled: bool = False
    runs: bool = False
    draining: bool = False  # has stopped, at an index that is not reported yet
    starts: int = 0

    def areas(self) -> tuple[tuple[int, int], ...]:
        """(user address, bytes) of descriptor table, avail and used ring; empty while they are
        unknown."""
        if self.addr is None or not self.size:
            return ()
        areas: Any = lib.split_ring_areas(self.size, True)
        return (
            (self.addr.desc, areas.desc),
            (self.addr.avail, areas.avail),
            (self.addr.used, areas.used),
        )

    def run(self, runs: bool) -> None:
        """Enter or leave the running state."""
        self.starts += runs and not self.runs
        self.draining = not runs and (self.runs or self.draining)
        self.runs = runs

    def stop(self) -> tuple[int, ...]:
        """Leave the started state; returns the fds that are out of use."""
        self.started = False
        return self.set_fd("kick_fd", ())

    def set_fd(self, name: str, fds: tuple[int, ...]) -> tuple[int, ...]:
        """Replace kick_fd, call_fd or err_fd by the fd in `fds`, or by None; returns the old fd."""
        old = getattr(self, name)
        setattr(self, name, fds[0] if fds else None)
        return () if old is None else (old,)

    def set_size(self, size: int) -> None:
        if not 1 <= size <= lib.VRING_SIZE_MAX or size & (size - 1):
            raise ProtocolError(
                f"SET_VRING_NUM: size is {size}; expected a power of 2, at most"
                f" {lib.VRING_SIZE_MAX}"
            )
        self.size = size

    def set_base(self, base: int) -> None:
        if base > 0xFFFF:
            raise ProtocolError(f"SET_VRING_BASE: index is {base}; expected at most {0xFFFF}")
        self.base = base

    def set_addr(self, addr: VringAddr) -> None:
        if self.started and addr != self.addr:
            raise ProtocolError(f"SET_VRING_ADDR moves vring {addr.index}, which is started")
        if addr.flags:
            raise ProtocolError("SET_VRING_ADDR asks for dirty logging, which is not offered")
        if addr.desc % 16 or addr.avail % 2 or addr.used % 4:
            raise ProtocolError(f"SET_VRING_ADDR: an area of vring {addr.index} is not aligned")
        if max(addr.desc, addr.avail, addr.used) > U64_MAX - LARGEST_TABLE:
            raise ProtocolError(f"SET_VRING_ADDR: an area of vring {addr.index} wraps around")
        self.addr = addr

    def device_vring(self, index: int, inflight: tuple[int | None, int]) -> DeviceVring:
        """The vring as the workers need it; `inflight` is the fd and offset of its record."""
        assert self.addr is not None
        return DeviceVring(
            index=index,
            size=self.size,
            desc=self.addr.desc,
            avail=self.addr.avail,
            used=self.addr.used,
            starts=self.starts,
            kick_fd=self.kick_fd,
            call_fd=self.call_fd,
            err_fd=self.err_fd,
            inflight_fd=inflight[0],
            inflight_offset=inflight[1],
        )

    def fds(self) -> list[int]:
        return [fd for fd in (self.kick_fd, self.call_fd, self.err_fd) if fd is not None]

    def snapshot(self) -> dict[str, Any]:
        return asdict(self) | {"addr": astuple(self.addr) if self.addr else None}

    @classmethod
    def restore(cls, row: dict[str, Any]) -> "Vring":
        return cls(**row | {"addr": VringAddr(*row["addr"]) if row["addr"] else None})
