# SPDX-License-Identifier: Apache-2.0
"""The command lines of tools that start a virtiofsd, each as it is written in the tool.

Each command line runs under the user and with the rights and limits that the tool gives it;
docs/tools.md has the table.
"""

import os
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.conftest import require
from tests.waiting import HANG, wait_until

from .daemon import OURS, as_user, listens
from .driver import Frontend
from .fuse import MKDIR_IN, ROOT, Guest, Op, names

DOCS = Path(__file__).resolve().parents[2] / "docs/tools.md"
DENYING = (sys.executable, str(Path(__file__).with_name("denying.py")))
NO_NEW_PRIVILEGES = ("setpriv", "--no-new-privs")
FEW_FILES = (
    "prlimit", "--nofile=1024:4096",
    "setpriv", "--bounding-set=-sys_resource", "--inh-caps=-sys_resource",
)  # fmt: skip


class Tool(NamedTuple):
    """How a tool starts virtiofsd.

    `arguments`: S is the path of the socket, N the fd of a socket that listens there, D the shared
    directory. `uid`: the user that starts the daemon; `around`: a command that limits it. `ready`:
    what the tool waits for: the socket, a line on stderr, or the file with the pid.
    """

    arguments: str
    uid: int = 0
    around: Sequence[str] = ()
    ready: str = "socket"


TOOLS = {
    "KubeVirt": Tool(
        "--socket-path=S --shared-dir=D --sandbox=none --cache=auto"
        " --migration-on-error=guest-error --migration-mode=find-paths", 107, NO_NEW_PRIVILEGES,
    ),
    "KubeVirt, storage": Tool(
        "--socket-path=S --shared-dir=D --sandbox=none --cache=auto"
        " --migration-on-error=guest-error --migration-mode=find-paths"
        " --migration-verify-handles --translate-uid=host:107:0:1", 107, NO_NEW_PRIVILEGES,
    ),
    "Kata Containers, Go": Tool(
        "--syslog --cache=auto --shared-dir=D --fd=N --thread-pool-size=1 --announce-submounts"
    ),
    "Kata Containers, runtime-rs": Tool(
        "--socket-path S --shared-dir D --cache auto --sandbox none --seccomp none"
        " --inode-file-handles never --thread-pool-size=1 -o announce_submounts --xattr",
        ready="line",
    ),
    "Incus": Tool("--fd=N --cache=never --shared-dir=D --posix-acl=auto"),
    "Incus, raw.idmap": Tool(
        "--fd=N --cache=metadata --shared-dir=D"
        " --translate-uid=map:0:1000:1 --translate-uid=forbid-guest:0:0"
        " --translate-gid=map:0:1000:1 --translate-gid=forbid-guest:0:0"
        " --translate-uid=forbid-guest:1:4294967294 --translate-gid=forbid-guest:1:4294967294"
    ),
    "LXD": Tool(
        "--fd=N --shared-dir D --cache auto --allow-direct-io --thread-pool-size 4 --xattr"
    ),
    "Proxmox VE": Tool(
        "--fd=N --shared-dir=D --xattr --posix-acl --announce-submounts --allow-direct-io"
        " --cache=auto --inode-file-handles=prefer --syslog"
    ),
    "libvirt": Tool(
        "--fd=N --shared-dir D --cache always --sandbox namespace --xattr --thread-pool-size=8"
        " --rlimit-nofile=4096 --log-level debug"
    ),
    "libvirt, user session": Tool(
        "--fd=N --shared-dir D --uid-map=:0:1000:1: --gid-map=:0:1000:1:", 1000
    ),
    "libvirt, `-o`": Tool("--fd=N -o source=D,cache=always,xattr,sandbox=namespace"),
    "microvm.nix": Tool(
        "--socket-path=S --socket-group=root --shared-dir=D --rlimit-nofile 1048576"
        " --thread-pool-size 2 --posix-acl --xattr --cache=auto --inode-file-handles=prefer",
        around=FEW_FILES,
    ),
    "Lima": Tool("--socket-path S --shared-dir D", 1000),
    "Podman machine, coreos-assembler": Tool(
        "--sandbox none --socket-path S --shared-dir . --modcaps=-mknod:-setfcap --seccomp=none",
        1000,
    ),
    "Cloud Hypervisor": Tool(
        "--log-level debug --socket-path=S --shared-dir=D --cache=never --thread-pool-size=2"
        " --tag myfs"
    ),
    "Apple containerization": Tool(
        "--socket-path S --shared-dir D --sandbox none", around=DENYING
    ),
    "Unraid": Tool(
        "--syslog --inode-file-handles=mandatory --announce-submounts --fd=N --shared-dir=D"
        " --cache=never --xattr --sandbox=namespace"
    ),
    "systemd-vmspawn": Tool(
        "--shared-dir D --xattr --fd N --no-announce-submounts"
        " --translate-uid map:0:1000:65536 --translate-gid map:0:1000:65536"
    ),
    "mkosi": Tool(
        "--shared-dir D --xattr --no-announce-submounts --sandbox=chroot"
        " --inode-file-handles=prefer --log-level=error --modcaps=-mknod --fd N"
    ),
    "virtme-ng": Tool(
        "--syslog --no-announce-submounts --posix-acl --socket-path S --shared-dir D"
        " --sandbox none --cache always", 1000, ready="pid",
    ),
    "bcvk": Tool(
        "--socket-path S --shared-dir D --cache=never --allow-mmap --sandbox=none"
        " --inode-file-handles=fallback"
    ),
    "cocoon": Tool(
        "--socket-path S --shared-dir D --migration-mode find-paths --migration-on-error abort"
    ),
}  # fmt: skip


class Started(NamedTuple):
    process: "subprocess.Popen[bytes]"
    path: Path  # the path of the socket
    share: Path
    log: Path


@contextmanager
def started(tool: Tool, folder: Path) -> Iterator[Started]:
    """The daemon as the tool starts it, once there is what the tool waits for."""
    path, share, log = folder / "socket", folder / "share", folder / "log"
    share.mkdir()
    for one in (folder, share):
        os.chown(one, tool.uid, tool.uid)
    share.chmod(0o777)
    listener = socket.socket(socket.AF_UNIX)
    fds = []
    if re.search(r"\bN\b", tool.arguments):
        listener.bind(str(path))
        listener.listen()
        fds = [listener.fileno()]
    values = {"S": str(path), "D": str(share), "N": str(listener.fileno())}
    arguments = re.sub(r"\b[SDN]\b", lambda match: values[match[0]], tool.arguments).split()
    user = as_user(tool.uid) if tool.uid else []
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [*user, *tool.around, *OURS, *arguments],
            stdin=subprocess.DEVNULL, stderr=stderr, cwd=share, pass_fds=fds,
        )  # fmt: skip
    listener.close()
    running = Started(process, path, share, log)
    try:
        wait_until(lambda: process.poll() is not None or is_ready(tool, running), 20)
        assert process.poll() is None, log.read_text()
        if tool.ready == "pid":
            assert path.with_name("socket.pid").read_text() == f"{process.pid}\n"
        yield running
    finally:
        process.terminate()
        process.wait(HANG)


def is_ready(tool: Tool, running: Started) -> bool:
    if tool.ready == "line":
        return "Waiting for vhost-user socket connection" in running.log.read_text()
    path = running.path.with_name("socket.pid")
    if tool.ready == "pid" and not path.exists():
        return False
    return listens(str(running.path))


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder in which an ordinary user may work."""
    require("root")
    with tempfile.TemporaryDirectory() as made:
        Path(made).chmod(0o755)
        yield Path(made)


@pytest.mark.parametrize("name", TOOLS)
def test_a_daemon_that_the_tool_starts_does_work(name: str, folder: Path) -> None:
    tool = TOOLS[name]
    with started(tool, folder) as running, Frontend(str(running.path)) as frontend:
        guest = Guest(frontend.setup(1))
        guest.init()
        guest.call(Op.MKDIR, ROOT, MKDIR_IN.pack(0o755, 0) + names(b"made"))
        (running.share / "file").write_bytes(b"content")
        nodeid = guest.lookup(ROOT, b"file").nodeid
        fh = guest.open(nodeid, os.O_RDONLY)
        assert guest.read(nodeid, fh, 0, 100) == b"content"
        assert (running.share / "made").is_dir()
        frontend.close()
        assert running.process.wait(HANG) == 0, "the daemon ends with its VMM"
    assert "Traceback" not in running.log.read_text()


def test_every_tool_is_in_the_table_of_the_documentation() -> None:
    rows = re.findall(r"^\| ([^|]+?) \|", DOCS.read_text(), re.MULTILINE)
    assert set(TOOLS) <= set(rows)
