# SPDX-License-Identifier: Apache-2.0
"""A back-end that does not answer for a while: `vfsd mount` waits, says for what, and ends on a
signal or with the back-end."""

import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from tests.conftest import require
from tests.system.mounted import is_mount_point
from tests.waiting import HANG, wait_until
from vfsd.transport.vhost_user import Message, Number
from vfsd.transport.vhost_user_payloads import Payload

from .backend import INIT, INIT_OUT, Backend, Request, reply
from .device import Device

DESTROY = 38
IMPATIENT = """
import sys
from vfsd.frontend import slow_wait
slow_wait.SLOW_SECONDS = 0.1
from vfsd.tool.commands import main
sys.exit(main())
"""
AT_THE_START = [
    Number.GET_FEATURES, Number.GET_QUEUE_NUM, Number.SET_FEATURES, Number.SET_MEM_TABLE,
    Number.SET_VRING_KICK, Number.SET_VRING_ENABLE, INIT,
]  # fmt: skip
AT_THE_END = [DESTROY, Number.GET_VRING_BASE]
INTERRUPTED = 130


class GoneError(Exception):
    """The back-end dies."""


class StuckBackend(Backend):
    """Does not answer a message, or an op, until go_on is set; `is_gone`: dies then."""

    def __init__(self, path: Path, stuck: int) -> None:
        super().__init__(path, {INIT: self._answer, DESTROY: self._answer}, {})
        self._stuck = stuck
        self.go_on = threading.Event()
        self.is_gone = False

    def _serve(self) -> None:
        with suppress(GoneError, ConnectionError):  # the mount may have ended before an answer
            super()._serve()

    def _handle(self, message: Message) -> Payload:
        if isinstance(self._stuck, Number):
            self._wait(message.kind.number)
        return super()._handle(message)

    def _answer(self, _backend: Backend, device: Device, request: Request) -> int:
        if not isinstance(self._stuck, Number):
            self._wait(request.opcode)
        return reply(device, request, INIT_OUT if request.opcode == INIT else b"")

    def _wait(self, what: int) -> None:
        if what == self._stuck:
            self.go_on.wait(HANG)
            if self.is_gone:
                raise GoneError


class Mounting:
    """A `vfsd mount` that may not have come far."""

    def __init__(self, folder: Path, path: str) -> None:
        self.target = folder / "mnt"
        self.target.mkdir()
        self._errors = folder / "errors"
        with self._errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-c", IMPATIENT, "mount", path, str(self.target)],
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    def errors(self) -> str:
        return self._errors.read_text()

    def has_said(self, words: str) -> bool:
        assert self.process.poll() is None, self.errors()
        return words in self.errors()

    def wait_mounted(self) -> None:
        assert self.process.stdout
        assert self.process.stdout.readline().startswith("mounted "), self.errors()

    def unmount(self) -> None:
        self.wait_mounted()
        subprocess.run(["umount", self.target], check=True, timeout=HANG)


@contextmanager
def mounting(folder: Path, path: str) -> Iterator[Mounting]:
    with ExitStack() as stack:
        mounting = Mounting(folder, path)
        stack.enter_context(mounting.process)
        stack.callback(mounting.process.kill)
        yield mounting
        assert not is_mount_point(mounting.target)


def name(stuck: int) -> str:
    ops = {INIT: "FUSE_INIT", DESTROY: "FUSE_DESTROY"}
    return stuck.name if isinstance(stuck, Number) else ops[stuck]


@pytest.mark.parametrize("ending", ["answers", "signal", "dies"])
@pytest.mark.parametrize("stuck", AT_THE_START + AT_THE_END, ids=name)
def test_it_waits_as_long_as_it_takes(tmp_path: Path, stuck: int, ending: str) -> None:
    for what in ("root", "/dev/fuse"):
        require(what)
    with (
        StuckBackend(tmp_path / "s", stuck) as backend,
        mounting(tmp_path, backend.path) as mount,
    ):
        try:
            if stuck in AT_THE_END:
                mount.unmount()
            wait_until(lambda: mount.has_said(f" has not answered {name(stuck)}"), 10)
            if ending == "signal":
                mount.process.send_signal(signal.SIGTERM)
                assert mount.process.wait(HANG) == INTERRUPTED
        finally:
            backend.is_gone = ending == "dies"
            backend.go_on.set()
        if ending == "answers" and stuck in AT_THE_START:
            mount.unmount()
        wanted = {"answers": 0, "signal": INTERRUPTED, "dies": 1}
        assert mount.process.wait(HANG) == wanted[ending]
        others = [line for line in mount.errors().splitlines() if "still waiting" not in line]
        assert len(others) == (ending == "dies"), others


@pytest.mark.parametrize("stuck", AT_THE_END, ids=name)
def test_after_a_signal_it_waits_briefly(tmp_path: Path, stuck: int) -> None:
    with (
        StuckBackend(tmp_path / "s", stuck) as backend,
        mounting(tmp_path, backend.path) as mount,
    ):
        mount.wait_mounted()
        mount.process.send_signal(signal.SIGTERM)
        assert mount.process.wait(HANG) == INTERRUPTED
        backend.go_on.set()
        (line,) = mount.errors().splitlines()
        assert f" has not answered {name(stuck)}" in line


def test_a_full_queue_of_connections(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with ExitStack() as stack:
        listener, *others = (stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(3))
        listener.bind(path)
        listener.listen(0)
        others[0].connect(path)
        mount = stack.enter_context(mounting(tmp_path, path))
        wait_until(lambda: mount.has_said(f"'{path}' accepts no connection"), 10)
        listener.accept()[0].close()  # that of the test
        listener.accept()[0].close()  # that of the mount
        assert mount.process.wait(HANG) == 1
        assert "closed the connection" in mount.errors() or "is lost" in mount.errors()


def test_a_daemon_of_its_own_that_does_not_end(tmp_path: Path) -> None:
    """A signal kills it."""
    for what in ("root", "/dev/fuse"):
        require(what)
    (tmp_path / "share").mkdir()
    with mounting(tmp_path, f"--source={tmp_path / 'share'}") as mount:
        mount.wait_mounted()
        (daemon,) = psutil.Process(mount.process.pid).children()
        daemon.suspend()
        subprocess.run(["umount", mount.target], check=True, timeout=HANG)
        wait_until(lambda: mount.has_said(f"process {daemon.pid}, has not ended"), 10)
        mount.process.send_signal(signal.SIGTERM)
        assert mount.process.wait(HANG) == INTERRUPTED
        assert not daemon.is_running()
