# SPDX-License-Identifier: Apache-2.0
"""File systems that belong to a single test, each in an image that is mounted."""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tests.conftest import require

from .daemon import wait_until

IMAGE_BYTES: Final = 512 << 20  # the image is sparse; mkfs.xfs wants at least 300 MiB


@contextlib.contextmanager
def file_system(kind: str, folder: Path) -> Iterator[Path]:
    """A new file system of this kind, mounted at folder/KIND for as long as the context lives."""
    require("root")
    mount_point = folder / kind
    mount_point.mkdir()
    if kind == "tmpfs":
        _run("mount", "-t", "tmpfs", "-o", "size=64m", "test", str(mount_point))
    else:
        image = folder / f"{kind}.image"
        with image.open("wb") as file:
            file.truncate(IMAGE_BYTES)
        _run(require(f"mkfs.{kind}"), "-q", str(image))
        _run("mount", "-o", "loop", str(image), str(mount_point))
    try:
        yield mount_point
    finally:
        wait_until(lambda: _is_unmounted(mount_point), 10, f"umount of {kind}")


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr.strip()}"


def _is_unmounted(path: Path) -> bool:
    """Unmount it. Return: False while a process that is about to end has a file open there."""
    return subprocess.run(["umount", str(path)], capture_output=True, check=False).returncode == 0
