# SPDX-License-Identifier: Apache-2.0
"""--keep-state=DIR: two daemons with one folder, folders of other users, and a state holder that
does not answer."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from time import monotonic

import pytest

from tests.conftest import require
from tests.waiting import HANG, LOADED, wait_until
from vfsd.supervisor.state_holder_watch import HOLDER_DIED

from .daemon import OURS
from .driver import GET_FEATURES, Frontend
from .service_manager import Service

MESSAGES = 100  # each would take a second or more


@pytest.fixture
def held() -> Iterator[Service]:
    with Service(keeps_state=False) as running:
        yield running


def start(share: Path, state: Path, socket: Path) -> tuple[int, str]:
    """Exit status and stderr of a daemon that cannot start."""
    ended = subprocess.run(
        [*OURS, f"--shared-dir={share}", f"--keep-state={state}", f"--socket-path={socket}"],
        stderr=subprocess.PIPE, text=True, timeout=HANG, check=False,
    )  # fmt: skip
    return ended.returncode, ended.stderr


@pytest.mark.parametrize("name", ["socket", "other"])
def test_a_second_daemon_leaves_the_vm_to_the_first(held: Service, name: str) -> None:
    with Frontend(held.socket) as frontend:
        frontend.setup(1)
        status, said = start(held.share, held.state, held.folder / name)
        assert status != 0
        assert said.count("\n") == 1, said
        assert "in use" in said
        frontend.send(GET_FEATURES)
        assert frontend.receive().number == GET_FEATURES
        held.kill()
        held.restart()
        frontend.send(GET_FEATURES)
        assert frontend.receive().number == GET_FEATURES


def test_a_holder_gives_nothing_while_a_daemon_lives(held: Service) -> None:
    """The launcher has the lock, and may have been killed."""
    with Frontend(held.socket) as frontend:
        frontend.setup(1)
        (held.state / "lock").unlink()
        status, said = start(held.share, held.state, held.folder / "other")
        assert status != 0
        assert "in use" in said


@pytest.mark.parametrize("what", ["missing", "file", "writable", "link", "another user's"])
def test_a_folder_that_is_not_ours_is_refused(tmp_path: Path, what: str) -> None:
    state = tmp_path / "state"
    share = tmp_path / "share"
    share.mkdir()
    match what:
        case "file":
            state.touch()
        case "writable":
            state.mkdir()
            state.chmod(0o777)
        case "link":
            state.mkdir()
            (state / "lock").symlink_to("/etc/hostname")
        case "another user's":
            require("root")
            state.mkdir()
            os.chown(state, 1, 1)
    status, said = start(share, state, tmp_path / "socket")
    assert status != 0
    assert said.count("\n") == 1, said
    assert f"'{state}" in said
    assert sorted(path.name for path in tmp_path.iterdir() if path != state) == ["share"]


def test_a_holder_that_does_not_answer_does_not_hold_up_a_vm(held: Service) -> None:
    with Frontend(held.socket) as frontend:
        (holder,) = held.holders()
        holder.suspend()
        begun = monotonic()
        frontend.setup(2)
        for _ in range(MESSAGES):
            frontend.set_memory()
        assert monotonic() - begun < 5 * LOADED
        holder.resume()


def test_a_holder_that_does_not_answer_is_named(held: Service) -> None:
    with Frontend(held.socket) as frontend:
        frontend.setup(1)
        held.kill()
        (holder,) = held.holders()
        holder.suspend()
        status, said = start(held.share, held.state, Path(held.socket))
        assert status != 0
        assert said.count("\n") == 1, said
        assert "does not answer" in said
        holder.resume()
        held.restart()
        frontend.send(GET_FEATURES)
        assert frontend.receive().number == GET_FEATURES


def test_the_death_of_a_holder_is_logged_once_and_the_vm_goes_on(held: Service) -> None:
    with Frontend(held.socket) as frontend:
        frontend.setup(1)
        (holder,) = held.holders()
        holder.kill()

        def is_logged() -> bool:
            return HOLDER_DIED in held.log.read_text()

        wait_until(is_logged, 10, "the death is logged")
        (supervisor,) = held.titled("supervisor")
        supervisor.kill()
        frontend.send(GET_FEATURES)  # the next supervisor answers
        assert frontend.receive().number == GET_FEATURES
        assert held.log.read_text().count(HOLDER_DIED) == 1


def test_a_holder_ends_at_a_signal(held: Service) -> None:
    (holder,) = held.holders()
    holder.terminate()
    holder.wait(HANG)


def test_few_files_may_be_open(tmp_path: Path) -> None:
    """The hard limit is smaller than the number that the lock has otherwise."""
    (tmp_path / "state").mkdir(mode=0o700)
    options = (
        f"--socket-path={tmp_path}/sock",
        f"--shared-dir={tmp_path}",
        f"--keep-state={tmp_path}/state",
    )
    limited = ["sh", "-c", 'ulimit -n 512; exec "$@"', "sh", *OURS, *options]
    with subprocess.Popen(limited, stderr=subprocess.DEVNULL) as daemon:
        try:
            wait_until((tmp_path / "sock").exists)
        finally:
            daemon.terminate()
    assert daemon.returncode == 0
