# SPDX-License-Identifier: Apache-2.0
"""The cost of an operation that no back-end can avoid: its bare system calls, measured without a
back-end, and the same number of requests that do nothing."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vfsd.bench.load_ops import CACHED_BYTES
from vfsd.transport.native import check, ffi, lib


@dataclass(frozen=True)
class Floor:
    """The system calls and requests of one operation."""

    kind: int  # enum floor_kind
    requests: float = 1
    names: int = 1  # the number of names that the system calls take in turn


def bare_calls_us(floor: Floor, block: int, folder: Path | None, seconds: float) -> float:
    """CPU microseconds of the bare system calls, in a new directory in `folder`. Raises OSError."""
    with tempfile.TemporaryDirectory(dir=folder) as name, _target(Path(name), floor, block) as made:
        cpu_ns = ffi.new("uint64_t *")
        done = check(lib.floor_run(floor.kind, made, int(seconds * 1e9), cpu_ns))
        return int(cpu_ns[0]) / 1000 / max(1, done)


@contextmanager
def _target(top: Path, floor: Floor, block: int) -> Iterator[Any]:
    """A struct floor_target: folders of files, and a file of blocks."""
    with ExitStack() as stack:
        folders = []
        for index in range(lib.FLOOR_FOLDERS):
            folder = top / str(index)
            folder.mkdir()
            for number in range(floor.names):
                (folder / f"f{number:07}").touch()
            folders.append(os.open(folder, os.O_RDONLY | os.O_DIRECTORY))
            stack.callback(os.close, folders[-1])
        fd = os.open(top / "file", os.O_RDWR | os.O_CREAT)
        stack.callback(os.close, fd)
        # Not bytes(n): when zero pages must be faulted in, the kernel fills small folios.
        os.write(fd, b"\1" * CACHED_BYTES)
        if floor.kind == lib.FLOOR_GETXATTR:
            os.setxattr(fd, "user.vfsd", b"12345678")
        blocks = CACHED_BYTES // block
        yield ffi.new(
            "struct floor_target *",
            {"folders": folders, "names": floor.names, "fd": fd, "block": block, "blocks": blocks},
        )
