# SPDX-License-Identifier: Apache-2.0
"""Run `vfsd mount` as an operator does, and look at its mount point and output."""

import os
import select
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

from tests.waiting import HANG

VFSD = str(Path(sys.executable).parent / "vfsd")


class Mounted:
    """A running `vfsd mount`, with its mount point and its output.

    `folder` is a shared mount as long as this object lives. A mount namespace that another process
    creates in that time has a copy of the mount, and the kernel's client goes on until the copy is
    gone as well. Since `folder` is shared, an unmount also reaches the copy.
    """

    def __init__(self, folder: Path, *arguments: str, passed_on: Sequence[str] = ()) -> None:
        self._folder = folder
        self.path = folder / "mnt"
        self.path.mkdir()
        subprocess.run(["mount", "--bind", "--make-shared", folder, folder], check=True)
        self._errors = folder / "vfsd-mount.log"
        rest = ["--", *passed_on] if passed_on else []
        with self._errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [VFSD, "mount", *arguments, str(self.path), *rest],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
            )
        try:
            self.line = self._first_line()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _first_line(self) -> str:
        assert self.process.stdout
        ready, _, _ = select.select([self.process.stdout], [], [], HANG)
        line = self.process.stdout.readline().decode() if ready else ""
        assert line.startswith("mounted "), f"not mounted: {line!r}\n{self.errors()}"
        return line.rstrip("\n")

    def errors(self) -> str:
        return self._errors.read_text()

    def wait(self) -> int:
        return self.process.wait(HANG)

    def unmount(self) -> int:
        """Run umount(8); returns the exit status of `vfsd mount`, which ends then."""
        umount = ["umount", str(self.path)]
        done = subprocess.run(umount, capture_output=True, timeout=HANG, check=False)
        assert done.returncode == 0, done.stderr.decode()
        return self.wait()

    def is_mounted(self) -> bool:
        """Is the mount in the kernel's table? Reading the table needs no answer of the back-end."""
        return is_mount_point(self.path)

    def close(self) -> None:
        """End `vfsd mount` in whatever state it is, and leave no mount behind."""
        with suppress(ProcessLookupError):
            self.process.terminate()
        try:
            self.process.wait(HANG)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(HANG)
        if self.process.stdout:
            self.process.stdout.close()
        while self.is_mounted():
            subprocess.run(["umount", "-l", str(self.path)], timeout=HANG, check=True)
        # `folder` may hold several mounts. The first close() unmounts `folder` with all of them.
        while is_mount_point(self._folder):
            subprocess.run(["umount", "-l", self._folder], check=True)


def is_mount_point(path: Path) -> bool:
    return any(line.split()[4] == str(path) for line in _mountinfo())


def _mountinfo() -> list[str]:
    return Path("/proc/self/mountinfo").read_text().splitlines()


def mounts() -> list[str]:
    """The mount points of all mounts of `vfsd mount`."""
    return [line.split()[4] for line in _mountinfo() if " fuse.virtiofs " in line]


def run(script: str, folder: Path, seconds: float = 60) -> str:
    """Run a shell script in a folder. A process of its own enters the folder, because a dead mount
    would block this process."""
    done = subprocess.run(
        ["bash", "-euc", script],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=seconds,
        check=False,
        env=os.environ | {"LC_ALL": "C.UTF-8"},
    )
    assert done.returncode == 0, f"{script}\n{done.stdout.decode()}{done.stderr.decode()}"
    return done.stdout.decode()
