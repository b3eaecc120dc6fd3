# SPDX-License-Identifier: Apache-2.0
"""The daemon's copy of the dynamic loader, which executes the interpreter of the pool."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vfsd.supervisor.loader import copy_loader


def test_it_executes_a_program_and_cannot_be_changed() -> None:
    fd = copy_loader(sys.executable)
    assert fd is not None
    try:
        said = "import os; print(os.readlink('/proc/self/exe'), 6 * 7)"
        command = [f"/proc/self/fd/{fd}", sys.executable, "-c", said]
        done = subprocess.run(command, pass_fds=[fd], capture_output=True, text=True, check=True)
        assert done.stdout == "/memfd:vfsd-loader (deleted) 42\n"
        for write in (lambda: os.pwrite(fd, b"x", 0), lambda: os.ftruncate(fd, 0)):
            with pytest.raises(PermissionError):
                write()
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    "content",
    [b"", b"#!/bin/sh\n", b"\x7fELF\x01" + bytes(200), b"\x7fELF\x02" + bytes(200)],
    ids=["empty", "script", "32 bits", "no program headers"],
)
def test_what_has_no_loader_gets_none(tmp_path: Path, content: bytes) -> None:
    program = tmp_path / "program"
    program.write_bytes(content)
    assert copy_loader(str(program)) is None


def test_what_is_not_there_gets_none(tmp_path: Path) -> None:
    assert copy_loader(str(tmp_path / "missing")) is None
