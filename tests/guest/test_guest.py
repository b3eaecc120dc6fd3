# SPDX-License-Identifier: Apache-2.0
"""A Linux guest in QEMU works in a shared directory, through 1 and through 4 request queues."""

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from guest import check, daemon, machine

pytestmark = pytest.mark.guest

CPUS = 4
TAG = "share"
FILES = 5000
# `scripts/demo --check` has more steps and a smaller tree; it mostly runs programs of the guest.
STEPS: dict[str, check.Step] = {
    "tar -x": check.unpack,
    "sha256sum": check.checksum,
    "find": check.find,
    "fsync": check.fsync,
    "mmap": check.mapped,
    "fio": check.verify,
    "queues": check.queues,
    "mv": lambda session: check.rename_tree(session, "tree"),
    "rm": check.remove,
}


@dataclass(frozen=True)
class Session(check.Session):
    back_end: daemon.Daemon

    def workers(self) -> list[psutil.Process]:
        """The daemon's worker processes."""
        family = psutil.Process(self.back_end.process.pid).children(recursive=True)
        return [process for process in family if " worker " in title(process)]


def title(process: psutil.Process) -> str:
    """The command line of a process; empty if the process has died."""
    with suppress(psutil.NoSuchProcess):
        return " ".join(process.cmdline())
    return ""


@pytest.fixture(autouse=True)
def nothing_left_behind() -> None:
    """Override the check of tests/conftest.py: tests here kill workers, and the workers that
    replace them stay until the back-end is stopped."""


@pytest.fixture(scope="module", params=[1, 4], ids=["1-queue", "4-queues"])
def session(request: pytest.FixtureRequest) -> Iterator[Session]:
    """A booted guest that has mounted the share, and the tree to compare the share with."""
    queues: int = request.param
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vfsd-guest-test-")))
        shared = folder / "share"
        shared.mkdir()
        back_end = stack.enter_context(daemon.serve(daemon.command(""), shared, folder))
        share = machine.Share(back_end.socket, TAG, queues)
        guest = stack.enter_context(machine.boot([share], machine.Hardware(CPUS)))
        guest.mount(TAG)
        (shared / "work").mkdir()
        original = folder / "original"
        original.mkdir()
        tree = check.prepare(original, shared / "work", FILES)
        yield Session(guest, shared / "work", "/mnt/work", tree, queues, CPUS, back_end)
        guest.power_off()


@pytest.mark.parametrize("step", STEPS)
def test_a_large_tree(session: Session, step: str) -> None:
    """A tree is unpacked, read, renamed, listed and removed. Each step is compared with the
    host."""
    assert STEPS[step](session)


def test_one_worker_process_per_request_queue(session: Session) -> None:
    assert len(session.workers()) == session.queues


def test_killed_workers_are_not_noticed(session: Session) -> None:
    """Workers get SIGKILL while the guest works. The guest sees no error, and the host has the
    same bytes."""
    (session.host / "kill").mkdir()
    session.run(
        "(for i in $(seq 300); do mkdir kill/$i && echo $i >kill/$i/f && "
        "mv kill/$i/f kill/$i/g && cat kill/$i/g || echo FAILED; done) >kill.log 2>&1 &"
    )
    for _ in range(20):
        for worker in session.workers():
            with suppress(psutil.NoSuchProcess):
                worker.kill()
        session.run("sleep 0.2")
    session.run(
        "wait; for n in $(seq 400); do [ $(wc -l <kill.log) = 300 ] && break; sleep 0.5; done"
    )
    said = (session.host / "kill.log").read_text().splitlines()
    assert [line for line in said if not line.isdigit()] == []
    assert said == [str(i) for i in range(1, 301)]
    for i in range(1, 301):
        assert (session.host / f"kill/{i}/g").read_text() == f"{i}\n"


def test_a_rebooted_guest_finds_its_share_again(session: Session) -> None:
    (session.host / "before").write_text("still here")
    session.machine.reboot()
    session.machine.mount(TAG)
    assert session.run("cat before") == "still here"
