# SPDX-License-Identifier: Apache-2.0
"""--daemonize: the launched process ends when a VMM can connect, or ends with an error message."""

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.waiting import HANG

from .daemon import FAKE, ROOT, has_ended, wait_until
from .test_bad_input import VIRTIOFSD


class Launch:
    """Runs virtiofsd --daemonize in a folder, and ends the processes that it has started."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / f"{folder.name[:20]}.sock"
        (folder / "share").mkdir()
        (folder / "run").mkdir()

    def run(
        self, *options: str, program: tuple[str, ...] = FAKE
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*program, f"--socket-path={self.path.name}", "--shared-dir=share", *options],
            cwd=self.folder,
            capture_output=True,  # reads until every process has closed these fds
            text=True,
            timeout=HANG,
            check=False,
            env=os.environ
            | {"RUNTIME_DIRECTORY": str(self.folder / "run"), "PYTHONPATH": str(ROOT)},
        )

    def keeper(self) -> psutil.Process | None:
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if "".join(process.cmdline()) == f"vfsd: {self.path.stem} keeper":
                    return process
        return None

    def close(self) -> None:
        keeper = self.keeper()
        if keeper is None:
            return
        family = [keeper, *keeper.children(recursive=True)]
        keeper.terminate()
        wait_until(lambda: all(map(has_ended, family)))
        assert not self.path.exists()
        assert list((self.folder / "run").iterdir()) == []


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launch]:
    launched = Launch(tmp_path)
    yield launched
    launched.close()


def test_it_returns_when_a_vmm_can_connect(launch: Launch) -> None:
    done = launch.run("--daemonize")
    assert done.returncode == 0, done.stderr
    with socket.socket(socket.AF_UNIX) as vmm:
        vmm.connect(str(launch.path))
    keeper = launch.keeper()
    assert keeper
    assert os.getsid(keeper.pid) == keeper.pid != os.getsid(0)
    assert Path(keeper.cwd()).parent == launch.folder / "run"  # not the starter's folder
    supervisor = next(p for p in keeper.children() if "supervisor" in "".join(p.cmdline()))
    for process in (keeper, supervisor):
        for fd in (0, 1, 2):
            assert os.readlink(f"/proc/{process.pid}/fd/{fd}") == "/dev/null"  # noqa: PTH115


def test_the_log_goes_on_on_stderr_if_it_shall(launch: Launch) -> None:
    with (launch.folder / "log").open("wb") as log:
        subprocess.run(
            [*FAKE, f"--socket-path={launch.path}", f"--shared-dir={launch.folder}/share",
             "--daemonize", "--no-syslog"],
            stderr=log, timeout=HANG, check=True,
            env=os.environ | {"RUNTIME_DIRECTORY": str(launch.folder / "run"),
                              "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
    wait_until(lambda: "Waiting for vhost-user" in (launch.folder / "log").read_text())


def test_a_wrong_option_is_reported_and_no_process_stays(launch: Launch) -> None:
    done = launch.run("--daemonize", "--cache=some", program=VIRTIOFSD)
    assert done.returncode == 2
    assert done.stderr.startswith("virtiofsd: --cache: 'some' is not one of")
    assert launch.keeper() is None


def test_a_start_that_fails_later_is_reported_too(launch: Launch) -> None:
    done = launch.run("--daemonize", "--modcaps=+fly", program=VIRTIOFSD)
    assert done.returncode == 1
    assert "--modcaps: there is no capability 'fly'" in done.stderr
    assert launch.keeper() is None
    assert not launch.path.exists()


def test_f_stays(launch: Launch) -> None:
    process = subprocess.Popen(
        [*FAKE, "--daemonize", "-f", f"--socket-path={launch.path}",
         f"--shared-dir={launch.folder}/share"],
        stderr=subprocess.DEVNULL,
        env=os.environ | {"RUNTIME_DIRECTORY": str(launch.folder / "run"), "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    try:
        wait_until(launch.keeper)
        keeper = launch.keeper()
        assert keeper
        assert keeper.pid == process.pid
    finally:
        process.terminate()
        process.wait(HANG)
