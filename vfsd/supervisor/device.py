# SPDX-License-Identifier: Apache-2.0
"""Writes the device into the segment that pool and workers read (device_state.h)."""

from collections.abc import Callable, Mapping
from typing import Any

from vfsd.supervisor.effects import Device, DeviceVring
from vfsd.transport.native import ffi, lib
from vfsd.transport.shared_memory import map_segment, unmap_segment
from vfsd.transport.vhost_user import Region

DEVICE_BYTES = ffi.sizeof("struct device_state")


class DeviceSegment:
    """A mapping of the segment `fd`, of which the supervisor is the only writer."""

    def __init__(self, fd: int) -> None:
        self._addr = map_segment(fd, DEVICE_BYTES)
        self._state: Any = ffi.cast("struct device_state *", self._addr)

    def close(self) -> None:
        unmap_segment(self._addr, DEVICE_BYTES)

    def prepare(self, vring_count: int) -> None:
        """Make a zeroed segment describe a device whose vrings are all stopped."""
        self._state.layout = lib.DEVICE_STATE_LAYOUT
        self._state.vring_count = vring_count
        for row in self._state.vrings:
            row.inflight_fd = row.kick_fd = row.call_fd = row.err_fd = -1
        self.write(Device(), {}, lambda _: 0)

    def write(
        self, device: Device, numbers: Mapping[int, int], slot_of: Callable[[int], int]
    ) -> int:
        """Publish `device`; `numbers` maps the supervisor's fds to the pool's.

        A vring that is not in `device` is marked as not running; its other fields stay, since a
        worker may still be draining it. Returns the generation (even).
        """
        state = self._state
        lib.device_state_write_begin(state)
        state.features = device.features
        state.region_count = len(device.regions)
        for row, (region, fd) in zip(state.regions, device.regions, strict=False):
            _fill_region(row, region, numbers[fd])
        for index in range(state.vring_count):
            state.vrings[index].running = 0
            state.vrings[index].worker = slot_of(index)
        for vring in device.vrings:
            _fill_vring(state.vrings[vring.index], vring, numbers)
        lib.device_state_write_end(state)
        return int(lib.device_state_generation(state))


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
