# SPDX-License-Identifier: Apache-2.0
"""UEFI firmware works in a share with its own driver, before an operating system starts."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from guest import daemon, firmware, machine

pytestmark = pytest.mark.guest

TEXT = "hello firmware\n" * 300


@pytest.fixture(scope="module", params=["", "--cache=never", "--cache=always"])
def folder(request: pytest.FixtureRequest) -> Iterator[tuple[firmware.Shell, Path]]:
    """The firmware shell of a virtual machine, and the shared directory on the host."""
    options = request.param.split()
    with tempfile.TemporaryDirectory(prefix="vfsd-firmware-test-") as name:
        shared = Path(name) / "share"
        shared.mkdir()
        (shared / "hello.txt").write_text(TEXT)
        command = [*daemon.command(""), *options]
        with (
            daemon.serve(command, shared, Path(name)) as back_end,
            firmware.boot(machine.Share(back_end.socket, "share")) as shell,
        ):
            yield shell, shared


def names(listing: str) -> set[str]:
    """The names of files and folders in the output of the shell's `ls`."""
    lines = [line.split() for line in listing.splitlines()[1:]]
    return {words[-1] for words in lines if words and "(s)" not in " ".join(words)}


def test_the_share_is_a_volume(folder: tuple[firmware.Shell, Path]) -> None:
    shell, _ = folder
    assert "PciRoot" in shell.run("map -r")
    assert "Volume share (rw)" in shell.run("vol")


def test_files_are_listed_and_read(folder: tuple[firmware.Shell, Path]) -> None:
    shell, _ = folder
    assert names(shell.run("ls")) >= {"hello.txt"}
    assert shell.run("type hello.txt") == TEXT


def test_files_are_copied_moved_and_removed(folder: tuple[firmware.Shell, Path]) -> None:
    shell, shared = folder
    shell.run("mkdir sub")
    assert (shared / "sub").is_dir()
    assert "[ok]" in shell.run(r"cp hello.txt sub\copy.txt")
    assert (shared / "sub/copy.txt").read_text() == TEXT
    assert "[ok]" in shell.run(r"mv sub\copy.txt sub\moved.txt")
    assert {path.name for path in (shared / "sub").iterdir()} == {"moved.txt"}
    assert names(shell.run("ls sub")) >= {"moved.txt"}
    assert shell.run(r"type sub\moved.txt") == TEXT
    shell.run(r"rm -q sub\moved.txt")
    assert not any((shared / "sub").iterdir())
    shell.run("rm -q sub")
    assert not (shared / "sub").exists()


def test_a_file_is_written_again(folder: tuple[firmware.Shell, Path]) -> None:
    """The shell writes UTF-16 with a byte order mark."""
    shell, shared = folder
    for text in ("a long line", "short"):
        shell.run(f"echo {text} > new.txt")
        written = (shared / "new.txt").read_bytes().decode("utf-16")
        assert written.splitlines()[0] == text
    shell.run("rm -q new.txt")
    assert not (shared / "new.txt").exists()


def test_what_is_not_there_is_an_error(folder: tuple[firmware.Shell, Path]) -> None:
    shell, _ = folder
    assert "not found" in shell.run("rm -q nothing").lower()
