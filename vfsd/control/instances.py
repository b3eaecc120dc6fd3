# SPDX-License-Identifier: Apache-2.0
"""Finds the daemons of this host, by their processes.

The working directory of a keeper and of a supervisor is the runtime folder of their daemon, where
the socket for operators is. /proc/PID/cwd leads there also if the daemon is in another mount
namespace (PrivateTmp= of systemd, a container). A daemon of another user is found by root alone.

Trust. Any process can have the title of a keeper, and a folder with a socket. So the owner of the
socket is part of an instance, and is shown: a daemon belongs to the user that owns its socket.
"""

import os
import re
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vfsd.transport.control_messages import printable
from vfsd.transport.errors import OperatorError
from vfsd.transport.operator_protocol import SOCKET_NAME
from vfsd.transport.socket_path import ADDRESS_MAX

_TITLE: Final = re.compile(r"vfsd: (.*) (keeper|supervisor)")


@dataclass(frozen=True, order=True)
class Instance:
    """A daemon: its name, the pid of its keeper (of its supervisor while it has no keeper), the
    user that owns it, and the path of its socket for operators."""

    name: str
    pid: int
    uid: int
    path: str


def instances() -> list[Instance]:
    """The daemons of this host that this process may see, by name."""
    found: dict[tuple[int, int], Instance] = {}  # by device and inode of the socket
    for pid, name, role in _titled():
        path = f"/proc/{pid}/cwd/{SOCKET_NAME}"
        with suppress(OSError):
            info = os.stat(path, follow_symlinks=False)  # noqa: PTH116 - one call, any path
            if stat.S_ISSOCK(info.st_mode):
                key = info.st_dev, info.st_ino
                if role == "keeper" or key not in found:
                    found[key] = Instance(name, pid, info.st_uid, _lasting(path, key))
    return sorted(found.values())


def _lasting(path: str, key: tuple[int, int]) -> str:
    """A path of the same socket that does not end with the keeper, where there is such a path."""
    with suppress(OSError):
        real = str(Path(path).parent.readlink() / SOCKET_NAME)
        info = os.stat(real, follow_symlinks=False)  # noqa: PTH116 - as above
        if (info.st_dev, info.st_ino) == key and len(os.fsencode(real)) <= ADDRESS_MAX:
            return real
    return path


def instance_of(name: str) -> Instance:
    """The daemon that has this name, or this pid. OperatorError unless there is exactly one."""
    found = [one for one in instances() if name in (one.name, str(one.pid))]
    if not found:
        raise OperatorError(f"there is no instance '{name}' that you may see; try: vfsd list")
    if len(found) > 1:
        pids = " or ".join(str(one.pid) for one in found)
        raise OperatorError(f"'{name}' is the name of {len(found)} instances; give a pid: {pids}")
    return found[0]


def only_instance() -> Instance:
    """The daemon of this host. OperatorError unless there is exactly one."""
    found = instances()
    if len(found) != 1:
        names = ", ".join(one.name for one in found)
        raise OperatorError(f"name one of the instances: {names}" if found else "no daemon runs")
    return found[0]


def _titled() -> Iterator[tuple[int, str, str]]:
    """The processes with the title of a keeper or a supervisor: pid, name and role."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                title = (entry / "cmdline").read_text(errors="replace").strip("\0 ")
                if match := _TITLE.fullmatch(title):
                    yield int(entry.name), printable(match[1]), match[2]
