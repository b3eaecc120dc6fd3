# SPDX-License-Identifier: Apache-2.0
"""Completion in bash: the words that are offered for an unfinished command line."""

import os
import subprocess
from pathlib import Path
from typing import Final

import pytest

FOLDER: Final = Path(__file__).resolve().parents[2] / "contrib/completion"
SCRIPT: Final = """
source "$0"
COMP_WORDS=("$@")
COMP_CWORD=$(($# - 1))
_$1
printf '%s\\n' "${COMPREPLY[@]}"
"""


def completed(*words: str, cwd: Path = FOLDER.parent) -> list[str]:
    """The completions of a command line. `words` are its words as bash splits them, from the
    command to the word that is to be completed."""
    done = subprocess.run(
        ["bash", "-c", SCRIPT, FOLDER / words[0], *words], capture_output=True, text=True,
        check=True, cwd=cwd,
    )  # fmt: skip
    assert not done.stderr
    return list(filter(None, done.stdout.splitlines()))


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["virtiofsd", "--cac"], ["--cache="]),
        (["virtiofsd", "--readonly", "--no-xa"], ["--no-xattr"]),
        (["virtiofsd", "--posix-a"], ["--posix-acl"]),
        (["virtiofsd", "--cache", "=", ""], ["never", "metadata", "auto", "always"]),
        (["virtiofsd", "--cache", "="], ["never", "metadata", "auto", "always"]),
        (["virtiofsd", "--cache", "m"], ["metadata"]),
        (["virtiofsd", "--posix-acl", "=", "al"], ["always"]),
        (["virtiofsd", "--shared-dir", "=", "completio"], ["completion"]),
        (["virtiofsd", "--shared-dir", "=", "man/virtio"], []),
        (["virtiofsd", "--config", "=", "man/virtio"], ["man/virtiofsd.1"]),
        (["virtiofsd", "", "--cac"], ["--cache="]),
        (["vfsd", "", "--so"], []),
        (["vfsd", "mo"], ["mount"]),
        (["vfsd", "status", "--js"], ["--json"]),
        (["vfsd", "set", "vm1", "log-l"], ["log-level"]),
        (["vfsd", "set", "vm1", "log-level", "deb"], ["debug"]),
        (["vfsd", "worker", "rest"], ["restart"]),
        (["vfsd", "--ver"], ["--version"]),
        (["vfsd", "mount", "--so"], ["--source"]),
        (["vfsd", "bench", "--so"], []),
        (["vfsd", "bench", "--mark"], ["--markdown"]),
    ],
)
def test_completion(words: list[str], offered: list[str]) -> None:
    assert completed(*words) == offered


def test_the_names_of_instances_are_offered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "vfsd"
    tool.write_text("#!/bin/sh\n[ \"$*\" = 'list --names' ] && printf 'web1\\nweb2\\ndb\\n'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert completed("vfsd", "status", "we") == ["web1", "web2"]
    assert completed("vfsd", "stop", "d") == ["db"]
    assert completed("vfsd", "mount", "we") == []


def test_a_folder_whose_name_has_a_space_is_one_offer(tmp_path: Path) -> None:
    (tmp_path / "my share").mkdir()
    assert completed("virtiofsd", "--shared-dir", "my", cwd=tmp_path) == ["my share"]
