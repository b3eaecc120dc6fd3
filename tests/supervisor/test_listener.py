# SPDX-License-Identifier: Apache-2.0
"""The socket file in a folder that other users may write to."""

import grp
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from vfsd.supervisor import listener
from vfsd.supervisor.listener import open_listener
from vfsd.supervisor.options import Options
from vfsd.transport.errors import OperatorError


def _symlink(path: Path, victim: Path) -> None:
    path.unlink()
    path.symlink_to(victim)


def _hard_link(path: Path, victim: Path) -> None:
    path.unlink()
    os.link(victim, path)


@pytest.mark.parametrize("swap", [_symlink, _hard_link])
def test_the_group_of_what_took_the_sockets_place_stays(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    requires: Callable[[str], str],
    swap: Callable[[Path, Path], None],
) -> None:
    """The owner of the folder replaces the new socket by a link to a file of the host."""
    requires("root")
    path, victim = tmp_path / "socket", tmp_path / "victim"
    victim.touch()
    real = listener._change_group  # noqa: SLF001 - the moment of the race

    def swapped(*arguments: object) -> None:
        swap(path, victim)
        real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(listener, "_change_group", swapped)
    group = next(g.gr_name for g in grp.getgrall() if g.gr_gid not in (0, os.getegid()))
    with pytest.raises(OperatorError, match="--socket-group: "):
        open_listener(Options(socket_path=str(path), socket_group=group))
    assert victim.stat().st_gid == os.getegid()
    assert stat.S_ISREG(victim.stat().st_mode)
