# SPDX-License-Identifier: Apache-2.0
"""Writes the device into the segment that pool and workers read (device_state.h).

THEORY

Nothing is read back. Workers hold the segment's fd, so the supervisor never decides anything by the
content of the segment: the options say how many vrings there are, and generations are counted
elsewhere.

Writers. The keeper makes the segment, maps it and then seals it with F_SEAL_FUTURE_WRITE.
From then on no process can map the segment writable again, and write(2) fails for every holder of
the fd. A supervisor, and each of its successors, is cloned from the keeper and inherits the
mapping; the pool is executed and so does not have the mapping. There is one segment for the whole
life of the daemon, and every pool is given that segment. By the time that a pool is given the
segment, the workers of the pool before have been killed, and those could only read the segment.

Generations. Generations are even, and grow over all pools and supervisors. A supervisor may have
died after it published a device and before it saved that it did. Therefore a generation is noted
before it is used (StateFile.next_generation), and a successor publishes under a larger one. If two
devices had the same generation, a worker could read one half of each and take the two halves for
one device.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from vfsd.supervisor.effects import Device, DeviceVring
from vfsd.transport.native import ffi, lib
from vfsd.transport.shared_memory import create_published, unmap_segment
from vfsd.transport.vhost_user_payloads import Region

DEVICE_BYTES = ffi.sizeof("struct device_state")


class DeviceSegment:
    """The segment, its fd and the one writable mapping of it; see THEORY."""

    def __init__(self, next_generation: Callable[[], int]) -> None:
        """Make the segment, in the process from which supervisors will be cloned."""
        self._next_generation = next_generation
        self.fd, self._addr = create_published("vfsd-device", DEVICE_BYTES)
        self._state: Any = ffi.cast("struct device_state *", self._addr)

    def close(self) -> None:
        unmap_segment(self._addr, DEVICE_BYTES)

    def reset(self, vring_count: int) -> None:
        """Publish a device without memory, with all of its vrings stopped."""
        state, generation = self._state, self._next_generation()
        lib.device_state_write_begin(state, generation)
        state.layout = lib.DEVICE_STATE_LAYOUT
        state.features = state.region_count = 0
        state.vring_count = vring_count
        for rows in (state.regions, state.vrings):
            ffi.buffer(rows)[:] = bytes(ffi.sizeof(rows))
        for row in state.vrings:
            row.inflight_fd = row.kick_fd = row.call_fd = row.err_fd = -1
        lib.device_state_write_end(state, generation)

    def write(self, device: Device, numbers: Mapping[int, int], slots: Iterable[int]) -> int:
        """Publish `device`. `numbers` maps each fd of the supervisor to its number in the pool;
        `slots` has the worker slot of each vring of the device, running or not.

        A vring that is not in `device` is marked as not running; its other fields stay, since a
        worker may still be draining it. Returns the generation.
        """
        state, generation = self._state, self._next_generation()
        lib.device_state_write_begin(state, generation)
        state.features = device.features
        state.region_count = len(device.regions)
        for row, (region, fd) in zip(state.regions, device.regions, strict=False):
            _fill_region(row, region, numbers[fd])
        for row, slot in zip(state.vrings, slots, strict=False):
            row.running = 0
            row.worker = slot
        for vring in device.vrings:
            _fill_vring(state.vrings[vring.index], vring, numbers)
        lib.device_state_write_end(state, generation)
        return generation


def _fill_region(row: Any, region: Region, fd: int) -> None:
    row.gpa, row.size, row.uva, row.offset = region.gpa, region.size, region.uva, region.offset
    row.fd = fd


def _fill_vring(row: Any, vring: DeviceVring, numbers: Mapping[int, int]) -> None:
    for field in ("desc", "avail", "used", "inflight_offset", "size"):
        setattr(row, field, getattr(vring, field))
    for field in ("inflight_fd", "kick_fd", "call_fd", "err_fd"):
        fd = getattr(vring, field)
        setattr(row, field, -1 if fd is None else numbers[fd])
    row.start = vring.starts
    row.running = 1
