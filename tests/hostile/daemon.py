# SPDX-License-Identifier: Apache-2.0
"""Run a virtiofsd, ours or a peer, and look at its processes."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from shutil import rmtree
from typing import Self

import psutil

from tests.sandbox_modes import NAMESPACE, SandboxMode
from tests.waiting import HANG, wait_until

__all__ = ["OURS", "Daemon", "as_user", "wait_until"]

OURS = (str(Path(sys.executable).parent / "virtiofsd"),)


def _parent(pid: int) -> int | None:
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).ppid()
    return None


def as_user(uid: int, *capabilities: str) -> list[str]:
    """A command to put in front of another command, which then runs as `uid`. The interpreter may
    be in a folder that this user must not search, so the user may search every folder; the pool
    gives up this capability when it isolates itself."""
    kept = ",".join(f"+{name.lower()}" for name in {"dac_read_search", *capabilities})
    ids = [f"--reuid={uid}", f"--regid={uid}", "--clear-groups"]
    return ["setpriv", *ids, f"--inh-caps={kept}", f"--ambient-caps={kept}"]


def listens(path: str) -> bool:
    """Does a socket listen at `path`? Connecting would use up the one connection that peers
    accept."""
    with suppress(OSError):
        return any(
            line.split()[-1] == path and line.split()[3] == "00010000"
            for line in Path("/proc/net/unix").read_text().splitlines()[1:]
        )
    return False


class Daemon:
    """A virtiofsd called `name` that serves a new directory, or `share`, until close().

    `mode`: its sandbox, and the user that starts the daemon. `is_shared_mount`: the directory is a
    mount point from which mounts spread, as / is on a host with systemd.
    """

    def __init__(
        self,
        *options: str,
        program: Sequence[str] = OURS,
        mode: SandboxMode = NAMESPACE,
        is_shared_mount: bool = False,
        share: Path | None = None,
        name: str = "socket",
    ) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="vfsd-hostile-"))
        self.folder.chmod(0o755)
        self.share = share or self.folder / "share"
        self.share.mkdir(exist_ok=True)
        self._is_mount = is_shared_mount
        if is_shared_mount:
            subprocess.run(["mount", "--bind", self.share, self.share], check=True)
            subprocess.run(["mount", "--make-shared", self.share], check=True)
        self.socket = str(self.folder / name)
        self.log = self.folder / "log"
        self.mode = mode
        if mode.uid is not None:
            program = [*as_user(mode.uid, *mode.capabilities), *program]
        self.give(self.folder)
        self.give(self.share)
        arguments = [f"--socket-path={self.socket}", "-o", f"source={self.share}"]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*program, *arguments, *mode.options, *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            wait_until(lambda: self.exited() or listens(self.socket), 20, "the daemon listens")
            assert not self.exited(), f"the daemon did not start:\n{self.log.read_text()}"
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def give(self, path: Path) -> Path:
        """Give a file or directory to the user that has started the daemon."""
        if self.mode.uid is not None:
            os.chown(path, self.mode.uid, self.mode.uid, follow_symlinks=False)
        return path

    def exited(self) -> bool:
        return self.process.poll() is not None

    def await_pool(self) -> None:
        """Wait until the daemon has its first pool and waits for a VMM."""
        wait_until(lambda: "Waiting for" in self.log.read_text(), 20, "the daemon waits for a VMM")

    def processes(self) -> list[psutil.Process]:
        """Keeper, supervisor, pool and workers; in the order in which they were created."""
        keeper = psutil.Process(self.process.pid)
        family = [keeper, *keeper.children(recursive=True)]
        return sorted(family, key=lambda p: (p.create_time(), p.pid))

    def pids(self) -> dict[int, str]:
        """The pids of living processes with their titles."""
        found = {}
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                if process.status() != psutil.STATUS_ZOMBIE:
                    found[process.pid] = " ".join(process.cmdline()).strip()
        return found

    def titled(self, *words: str) -> list[int]:
        """The pids of the processes whose title contains these words."""
        return [pid for pid, title in self.pids().items() if all(w in title for w in words)]

    def the(self, *words: str) -> int:
        """The pid of the one process with these words in its title, as soon as that process exists.
        A process that has just been forked has the title of its parent for a moment, also if it
        will be a worker or will close files; it is not counted."""
        found: list[int] = []

        def is_there() -> bool:
            pids = self.titled(*words)
            found[:] = [pid for pid in pids if _parent(pid) not in pids]
            return len(found) == 1

        wait_until(is_there, 30, f"there is one {' '.join(words)}")
        return found[0]

    def lose_launcher(self) -> None:
        """Kill launcher and deputy, so that neither takes the place of the other."""
        launcher, deputy = self.the(" launcher"), self.the(" deputy")
        os.kill(launcher, signal.SIGSTOP)
        for pid in (deputy, launcher):
            os.kill(pid, signal.SIGKILL)

    def fd_counts(self) -> dict[int, int]:
        counts = {}
        for pid in self.pids():
            with suppress(OSError):
                counts[pid] = sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
        return counts

    def close(self) -> None:
        """End the daemon, and check that no process stays."""
        family = self.processes() if not self.exited() else []
        try:
            if not self.exited():
                self.process.terminate()
            self.process.wait(HANG)
            left = psutil.wait_procs(family, HANG)[1]
            assert not left, f"processes stay behind: {left}"
        finally:
            for process in family:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            self.process.wait(HANG)
            if self._is_mount:
                subprocess.run(["umount", "-l", self.share], check=True)
            rmtree(self.folder, ignore_errors=True)
