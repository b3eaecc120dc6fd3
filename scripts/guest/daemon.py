# SPDX-License-Identifier: Apache-2.0
"""Start and stop a virtio-fs back-end: this project's, or one of its two peers."""

import shlex
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from . import packages

PROJECT = Path(__file__).resolve().parents[2]
START_SECONDS = 20.0
STOP_SECONDS = 5.0
LISTENING = "00010000"  # __SO_ACCEPTCON in /proc/net/unix


class DaemonError(Exception):
    """The back-end did not start; the message ends with what it printed."""


@dataclass(frozen=True)
class Daemon:
    """A running back-end."""

    process: subprocess.Popen[bytes]
    socket: Path
    log_path: Path

    def log(self) -> str:
        """Return what the back-end has printed up to now."""
        return self.log_path.read_text(errors="replace")

    def stop(self) -> int:
        """End the back-end if it is still running, and return its exit status."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
        return self.process.wait()


def command(name: str) -> list[str]:
    """Return the command line of a back-end, in which {socket} and {dir} are to be replaced.

    `name` is empty for this project's virtiofsd, "c" or "rust" for a peer, or a command line.
    """
    c_syntax = ["--socket-path={socket}", "-o", "source={dir}"]
    if name == "":
        return [str(PROJECT / ".venv/bin/virtiofsd"), *c_syntax]
    if name == "c":
        return [*packages.c_virtiofsd().argv, *c_syntax]
    if name == "rust":
        return [*packages.rust_virtiofsd().argv, "--socket-path={socket}", "--shared-dir={dir}"]
    argv = shlex.split(name)
    return argv if "{socket}" in name else [*argv, *c_syntax]


def is_listening(socket: Path) -> bool:
    """Return whether a process listens on a socket, without using up the socket's only
    connection."""
    for line in Path("/proc/net/unix").read_text().splitlines():
        fields = line.split(maxsplit=7)
        if len(fields) == 8 and fields[7] == str(socket) and fields[3] == LISTENING:
            return True
    return False


@contextmanager
def serve(argv: Sequence[str], shared_dir: Path, folder: Path) -> Iterator[Daemon]:
    """Run a back-end on `shared_dir` until the block ends; the socket and the log go into
    `folder`."""
    socket = folder / "virtiofsd.sock"
    log_path = folder / "virtiofsd.log"
    filled = [
        part.replace("{socket}", str(socket)).replace("{dir}", str(shared_dir)) for part in argv
    ]
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            filled, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
        )
    daemon = Daemon(process, socket, log_path)
    try:
        _wait_listening(daemon)
        yield daemon
    finally:
        daemon.stop()


def _wait_listening(daemon: Daemon) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not is_listening(daemon.socket):
        status = daemon.process.poll()
        if status is not None:
            raise DaemonError(f"virtiofsd ended with {status}\n{daemon.log()}")
        if time.monotonic() > deadline:
            raise DaemonError(f"virtiofsd does not listen on {daemon.socket}\n{daemon.log()}")
        time.sleep(0.02)
