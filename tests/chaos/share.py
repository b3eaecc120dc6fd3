# SPDX-License-Identifier: Apache-2.0
"""A daemon of its own, its mount, and what its processes hold open."""

import os
import re
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from shutil import rmtree
from typing import Final, Self

from tests.hostile.daemon import OURS, listens
from tests.system.mounted import Mounted
from tests.waiting import HANG, wait_until

from .memory_group import MemoryGroup
from .roles import ROLES, processes
from .users import User, Workload
from .workloads import WORKLOADS

OPTIONS: Final = ("-o", "xattr,flock,posix_lock", "--log-level=debug")
# A process for each table of fds. Supervisors have the table of the keeper, workers the holder's.
TABLES: Final = ("keeper", "holder", "launcher", "guard")
LASTING: Final = ("keeper", "supervisor")  # one of the two lives as long as the share
STOP_SECONDS: Final = 30.0  # for a daemon that ends by itself
SETTLE_SECONDS: Final = 60.0  # until the fds of dead processes have been found and closed
_NUMBERS: Final = re.compile(r"\d+")
_SHARED: Final = re.compile(rf"/({'|'.join(WORKLOADS)})-")  # as the sandbox sees these files


class Share:
    """A daemon, and its mount at `mount`. `host` is the shared directory.

    `name` is in the title of each process of the daemon; no other daemon has the name. `looks`: how
    many look-ups a probe may have in flight in the mount.
    """

    def __init__(self, queues: int, options: Sequence[str] = (), group: MemoryGroup | None = None):
        self._stack = ExitStack()
        self.folder = Path(tempfile.mkdtemp(prefix="vfsd-chaos-"))
        self._stack.callback(rmtree, self.folder, ignore_errors=True)
        self.name = self.folder.name
        self.host = self.folder / "share"
        self.host.mkdir()
        self.log = self.folder / "log"
        try:
            self._start(queues, options, group)
        except BaseException:
            self.close()
            raise

    def _start(self, queues: int, options: Sequence[str], group: MemoryGroup | None) -> None:
        self._attach(queues, self._launch(options, group))

    def _attach(self, queues: int, socket: Path) -> None:
        """Mount the share whose daemon listens on `socket`."""
        self._mounted = Mounted(self.folder, str(socket), "--queues", str(queues))
        self._stack.callback(self._mounted.close)
        self.mount, self.looks = self._mounted.path, queues
        with suppress(FileNotFoundError):
            (self.mount / "missing").stat()

    def work(self, names: Sequence[str], seed: int, seconds: float) -> Sequence[User]:
        """Start workloads in the mount."""
        places = (self.folder, self.mount, self.host)
        return [Workload(name, *places, seed, seconds) for name in names]

    def problem(self) -> str:
        """What has ended and should not have ended; "" if nothing has."""
        if not self.is_served():
            return "the daemon ended"
        if self._mounted.process.poll() is not None:
            return f"vfsd mount ended: {self._mounted.errors()}"
        return ""

    def _launch(self, options: Sequence[str], group: MemoryGroup | None) -> Path:
        """Start the daemon; returns the path of its socket."""
        socket = self.folder / "sock"  # a name that says nothing: the folder names the daemon
        argv = [*OURS, f"--socket-path={socket}", "-o", f"source={self.host}", *OPTIONS, *options]
        with self.log.open("wb") as log:
            self.daemon = subprocess.Popen(
                [*group.enter(), *argv] if group else argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._stack.callback(self._end)
        wait_until(lambda: self.daemon.poll() is not None or listens(str(socket)), 20, "it listens")
        return socket

    @property
    def ends(self) -> Mapping[str, Callable[[], None]]:
        """The ways in which all processes end at once while the guest goes on."""
        return {}

    def output(self) -> bytes:
        """What the daemon has written to its log."""
        return self.log.read_bytes()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._stack.close()

    def is_served(self) -> bool:
        """Is the daemon alive? The first keeper, which was launched here, may be dead."""
        return any(process.title.split()[0] in LASTING for process in processes(self.name))

    def _end(self) -> None:
        """End the daemon, whatever is left of it."""
        if self.daemon.poll() is None:
            self.daemon.terminate()  # it may not have its title yet
        for pid in ROLES["keeper"].pids(self.name):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        soft, hard = time.monotonic() + STOP_SECONDS, time.monotonic() + HANG
        while left := processes(self.name):
            now = time.monotonic()
            for process in left if now > soft or not self.is_served() else ():
                with suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL)
            assert now < hard, f"processes stay behind: {left}"
            time.sleep(0.02)
        self.daemon.wait(HANG)

    def titles(self) -> Counter[str]:
        """The titles of the living processes."""
        return Counter(process.title for process in processes(self.name))

    def fds(self) -> Counter[str]:
        """What the fds of each table refer to. Numbers are left out, because a file that was opened
        again has another number. The files of the workloads are left out as well: held() counts
        those that should be closed."""
        found: Counter[str] = Counter()
        for table in TABLES:
            for pid in ROLES[table].pids(self.name)[:1]:
                links = [link for link in _links(pid) if not _SHARED.match(link)]
                found.update(f"{table}: {_NUMBERS.sub('N', link)}" for link in links)
        return found

    def held(self) -> list[str]:
        """The files without a name that the sandbox has open, although each process that used them
        has ended, and the kernel's client forgets a file without a name at once."""
        pids = ROLES["holder"].pids(self.name)
        links = [link for pid in pids for link in _links(pid)]
        return [link for link in links if _SHARED.match(link) and link.endswith(" (deleted)")]

    def left_over(self, fds: Counter[str], titles: Counter[str]) -> list[str]:
        """Wait until the daemon has the fds and the processes that it had before; what differs in
        the end."""
        deadline = time.monotonic() + SETTLE_SECONDS
        while True:
            left = _difference(self.fds(), fds) + _difference(self.titles(), titles)
            if not left or time.monotonic() > deadline:
                return left
            time.sleep(0.2)


def _links(pid: int) -> list[str]:
    links = []
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            links.append(str(path.readlink()))
    return links


def _difference(now: Counter[str], before: Counter[str]) -> list[str]:
    changes = {what: now[what] - before[what] for what in {*now, *before}}
    return [f"{change:+d} {what}" for what, change in sorted(changes.items()) if change]
