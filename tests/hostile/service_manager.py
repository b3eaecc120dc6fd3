# SPDX-License-Identifier: Apache-2.0
"""A service manager with an fd store, as sd_notify(3) describes it: starts a daemon, kills all of
its processes, and starts it again with the fds that the daemon has stored."""

import array
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from shutil import rmtree
from typing import Final, Self

import psutil

from tests.killing import kill_family
from tests.waiting import HANG, wait_until
from vfsd.transport.native import lib

from .daemon import OURS, as_user, listens

ROOM: Final = socket.CMSG_SPACE(253 * 4)
# Executes a command with the fds argv[1] ("7,9") as fds 3, 4, and so on, as systemd does.
_START: Final = """
import fcntl, os, sys
passed = [fcntl.fcntl(int(fd), fcntl.F_DUPFD, 900) for fd in sys.argv[1].split(",") if fd]
os.closerange(3, 900)
for place, fd in enumerate(passed, 3):
    os.dup2(fd, place)
    os.close(fd)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(passed)))
os.execv(sys.argv[2], sys.argv[2:])
"""


class Service:
    """A virtiofsd that is started by a service manager. `stored`: the fds in the store, each with
    its name, in the order in which they were stored."""

    def __init__(self, *options: str, keeps_state: bool = True, uid: int | None = None) -> None:
        """`keeps_state`: the service manager keeps the state; otherwise a state holder does, in the
        folder `state`. `uid`: the user of the service; None: root."""
        self.folder = Path(tempfile.mkdtemp(prefix="vfsd-service-"))
        self.share = self.folder / "share"
        self.share.mkdir()
        self.socket = str(self.folder / "socket")
        self.log = self.folder / "log"
        self.stored: list[tuple[str, int]] = []
        self.ready = 0  # how often the daemon has reported READY=1
        self.state = self.folder / "state"
        self.state.mkdir()
        where = "systemd" if keeps_state else self.state
        self._options = (f"--keep-state={where}", *options)
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notify.bind(str(self.folder / "notify"))
        self._as_user = [] if uid is None else as_user(uid)
        if uid is not None:
            for path in (self.folder, *self.folder.iterdir()):
                os.chown(path, uid, uid)
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        self.process = self._start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> "subprocess.Popen[bytes]":
        names, fds = [name for name, _ in self.stored], [fd for _, fd in self.stored]
        before = self.ready
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [*self._as_user, sys.executable, "-c", _START, ",".join(map(str, fds)), *OURS,
                 f"--socket-path={self.socket}", f"--shared-dir={self.share}",
                 "--keep-listening", *self._options],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=fds,
                env=os.environ | {
                    "NOTIFY_SOCKET": str(self.folder / "notify"),
                    "LISTEN_FDNAMES": ":".join(names),
                },
            )  # fmt: skip
        wait_until(lambda: self.ready > before or process.poll() is not None, 20, "READY=1")
        assert process.poll() is None, self.log.read_text()
        return process

    def _read(self) -> None:
        """Read messages until the socket is shut down."""
        while True:
            data, ancillary, _, _ = self._notify.recvmsg(4096, ROOM)
            fds = array.array("i")
            for _, _, content in ancillary:
                fds.frombytes(content)
            if data == b"END":
                return
            self._obey(dict(line.split("=", 1) for line in data.decode().split("\n")), list(fds))

    def _obey(self, fields: dict[str, str], fds: list[int]) -> None:
        name = fields.get("FDNAME", "stored")
        if "FDSTORE" in fields:
            (fd,) = fds
            if not any(lib.process_is_same_file(fd, other) for _, other in self.stored):
                self.stored.append((name, fd))
                fds.clear()
        if "FDSTOREREMOVE" in fields:
            fds += [fd for other, fd in self.stored if other == name]
            self.stored = [row for row in self.stored if row[0] != name]
        for fd in fds:  # also that of BARRIER=1
            os.close(fd)
        self.ready += "READY" in fields

    def holders(self) -> list[psutil.Process]:
        """The state holders, which are not children of the daemon."""
        path = str(self.state / "holder")
        rows = [row.split() for row in Path("/proc/net/unix").read_text().splitlines()[1:]]
        inodes = {row[6] for row in rows if row[-1] == path}
        return [p for p in psutil.process_iter() if inodes & _sockets(p.pid)]

    def processes(self) -> list[psutil.Process]:
        keeper = psutil.Process(self.process.pid)
        return [keeper, *keeper.children(recursive=True)]

    def titled(self, role: str) -> list[psutil.Process]:
        """The processes of this role."""
        found = []
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                title = " ".join(process.cmdline())
                if title.startswith("vfsd:") and role in title:
                    found.append(process)
        return found

    def kill(self) -> None:
        """Kill all processes of the service at once."""
        kill_family(self.process.pid)
        self.process.wait(HANG)

    def restart(self) -> None:
        """Start the service again after it has ended."""
        self.process.wait(HANG)
        self.process = self._start()

    def stop(self) -> int:
        """End the service as `systemctl stop` does; returns its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(HANG)

    def listens(self) -> bool:
        return listens(self.socket)

    def close(self) -> None:
        if self.process.poll() is None:
            self.kill()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"END", str(self.folder / "notify"))
        self._reader.join()
        self._notify.close()
        for _, fd in self.stored:
            os.close(fd)
        print(self.log.read_text())  # shown if the test fails
        rmtree(self.folder)


def _sockets(pid: int) -> set[str]:
    """The inode numbers of the sockets that a process has open."""
    found = set()
    with suppress(OSError):
        for path in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                target = str(path.readlink())
                found.add(target.removeprefix("socket:[").rstrip("]"))
    return found
