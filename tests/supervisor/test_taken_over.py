# SPDX-License-Identifier: Apache-2.0
"""Attacks of a worker that was taken over on the supervisor. The attacks are in hostile_pool.py.

After each attack the supervisor is the same process, with as many fds and hardly more memory than
before, and the share is either served or has ended in order.
"""

import json
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.waiting import HANG
from vfsd.transport.vhost_user import Number
from vfsd.transport.vhost_user_payloads import VringFd

from .daemon import Daemon, has_ended, wait_until
from .frontend import Frontend

QUEUES = 3
MIB = 1 << 20
MARGIN = 4 * MIB  # bytes by which the heap of a Python process may grow
NO_PENANCE = (
    "--set=worker_link.PENANCE_MIN=0.0005",
    "--set=worker_link.PENANCE_MAX=0.0005",
    "--set=backend.VIOLATIONS=1000000",
)


class Attacked(Daemon):
    """A daemon with a front-end; its worker 1 can be taken over."""

    def __init__(self, folder: Path, *options: str) -> None:
        super().__init__(folder, "--pool=hostile_pool.py", "--request-queues=4", *options)
        self.frontend = Frontend(self.path)
        self.frontend.socket.socket.settimeout(HANG)
        self.frontend.realize(QUEUES)
        self.frontend.driver_ok(QUEUES)
        assert self.is_served()  # earlier messages, which have no reply, are done
        self.victim = self.supervisor()

    def __exit__(self, *exception: object) -> None:
        self.frontend.close()
        super().__exit__(*exception)

    def worker(self, slot: int) -> psutil.Process:
        """The process of the worker that reported last for a slot."""
        pids = [row["pid"] for row in self.report() if row.get("slot") == slot and "pid" in row]
        return psutil.Process(pids[-1])

    def memory(self) -> int:
        """The supervisor's anonymous memory, in bytes."""
        status = Path(f"/proc/{self.victim.pid}/status").read_text()
        return int(status.partition("RssAnon:")[2].split()[0]) * 1024

    def attack(self, name: str) -> None:
        """Kill worker 1, so that its successor finds the attack in the share and makes it."""
        (self.share / "attack-1").write_text(name)
        self.worker(1).kill()

    def outcome(self, name: str) -> dict[str, Any]:
        """Wait for the end of the attack; returns its report."""
        wait_until(lambda: self.outcomes(name))
        return self.outcomes(name)[0]

    def outcomes(self, name: str) -> list[dict[str, Any]]:
        return [row for row in self.report() if row.get("attack") == name]

    def is_served(self) -> bool:
        return self.frontend.set_mem_table() == 0


@pytest.fixture
def attacked(tmp_path: Path) -> Iterator[Attacked]:
    with Attacked(tmp_path, *NO_PENANCE) as running:
        yield running


@pytest.mark.parametrize("name", ["parts", "greeting", "frame", "command"])
def test_what_never_ends_takes_no_memory(attacked: Attacked, name: str) -> None:
    fds, peak = attacked.victim.num_fds(), attacked.memory()
    before = peak
    attacked.attack(name)
    deadline = time.monotonic() + HANG
    while not attacked.outcomes(name) and time.monotonic() < deadline:
        peak = max(peak, attacked.memory())
        time.sleep(0.02)
    assert attacked.outcome(name)["sent"] >= 50 * MIB
    assert peak - before < MARGIN
    assert attacked.is_served()
    assert attacked.supervisor() == attacked.victim
    assert attacked.victim.num_fds() == fds


@pytest.mark.parametrize("name", ["answers", "logs"])
def test_what_is_valid_and_never_ends_takes_no_time(attacked: Attacked, name: str) -> None:
    before, memory = sum(attacked.victim.cpu_times()[:2]), attacked.memory()
    attacked.attack(name)
    assert attacked.outcome(name)["connections"] == 1
    assert sum(attacked.victim.cpu_times()[:2]) - before < 2.0  # s; the attack takes 4 s
    assert attacked.memory() - memory < MARGIN
    assert attacked.is_served()
    assert attacked.supervisor() == attacked.victim
    assert attacked.log.stat().st_size < 32768


def test_thousands_of_generated_inputs(attacked: Attacked) -> None:
    fds, memory = attacked.victim.num_fds(), attacked.memory()
    attacked.attack("inputs")
    outcome = attacked.outcome("inputs")
    assert outcome["sent"] >= 10000
    assert outcome["connections"] > 1000
    assert attacked.is_served()
    assert attacked.supervisor() == attacked.victim
    assert attacked.victim.num_fds() == fds
    assert attacked.memory() - memory < MARGIN
    assert attacked.log.stat().st_size < 32768
    assert "the supervisor" not in attacked.text()


def test_no_segment_decides_anything(attacked: Attacked) -> None:
    attacked.attack("scribble")
    assert attacked.outcome("scribble") == {"attack": "scribble", "refused": 4}
    for _ in range(3):
        assert attacked.is_served()
    attacked.kill_supervisor()
    assert attacked.is_served()
    assert [row["running"] for row in attacked.last_seen(1)["vrings"]] == [1, 1, 1, 0, 0]


@pytest.mark.parametrize("name", ["empty", "fds", "failed", "ready", "slot", "json", "packets"])
def test_a_forged_packet_ends_the_pool_and_no_more(attacked: Attacked, name: str) -> None:
    """The pool was taken over, so the daemon ends the share in order."""
    attacked.attack(name)
    assert attacked.end() == 1
    text = attacked.text()
    assert re.search("error: the pool (broke the protocol|closed its channel)", text)
    assert "so it was taken over, and the share ends" in text
    assert "invented" not in text
    assert "supervisor" not in text
    assert attacked.log.stat().st_size < 32768
    assert has_ended(attacked.victim)


def test_a_worker_that_breaks_the_protocol_five_times_is_killed(tmp_path: Path) -> None:
    with Attacked(tmp_path, "--set=worker_link.PENANCE_MAX=0.05") as attacked:
        attacked.attack("inputs")  # this worker would attack for longer than five times
        wait_until(lambda: "broke the protocol 5 times; killed" in attacked.text())
        assert attacked.is_served()
        assert attacked.outcomes("inputs") == []
        assert attacked.text().count("broke the protocol; its connection is closed") <= 10


# Wrong acknowledgements.

FORGED = {
    "an older generation": {"generation": 2, "vrings": {}},
    "no generation": {"vrings": {}},
    "a vring there is not": {"generation": 1 << 30, "vrings": {"5": {"last_avail": 0}}},
    "no object": {"generation": 1 << 30, "vrings": []},
}


@pytest.mark.parametrize("name", sorted(FORGED))
def test_a_wrong_acknowledgement_is_none(tmp_path: Path, name: str) -> None:
    """A wrong acknowledgement breaks the link. The command is repeated, and the next answer is
    right."""
    with Attacked(tmp_path) as attacked:
        (attacked.share / "answers-1").write_text(json.dumps([FORGED[name]]))
        call_fd = attacked.frontend.eventfd()
        before = len(attacked.report())
        assert attacked.frontend.ack(Number.SET_VRING_CALL, VringFd(1, True), (call_fd,)) == 0
        rows = attacked.report()[before:]
        asked = [row.get("op") or f"seen by {row['slot']}" for row in rows]
        assert asked.index("drop") > asked.index("seen by 1")
        assert "broke the protocol; its connection is closed" in attacked.text()
        assert attacked.supervisor() == attacked.victim


def test_an_answer_of_a_worker_that_was_given_up_is_passed_over(tmp_path: Path) -> None:
    """A worker reports its own death in the pool's name, and then answers the command that it was
    sent."""
    with Attacked(tmp_path) as attacked:
        before = len(attacked.report())
        (attacked.share / "buried-1").touch()
        assert attacked.is_served()
        wait_until(lambda: "queue 2 is stopped" in attacked.text())
        wait_until(lambda: any(row.get("slot") == 1 for row in attacked.report()[before:]))
        assert attacked.is_served()
        assert attacked.supervisor() == attacked.victim


# A worker or a pool that hangs.


def test_a_worker_that_hangs_is_waited_for(tmp_path: Path) -> None:
    with Attacked(tmp_path, "--set=worker_links.ADOPT_SECONDS=0.5") as attacked:
        fifo = attacked.share / "hang-1"
        os.mkfifo(fifo)
        worker = attacked.worker(1)
        answered = threading.Event()

        def change() -> None:
            assert attacked.is_served()
            answered.set()

        thread = threading.Thread(target=change)
        thread.start()
        wait_until(lambda: "is in state D" in attacked.text())
        assert not answered.wait(1.5)
        release(fifo)
        thread.join(HANG)
        assert answered.is_set()
        assert worker.is_running()
        assert "killed" not in attacked.text()


def release(fifo: Path) -> None:
    """Let the worker that hangs go on, and remove the FIFO so that no worker hangs again."""
    with fifo.open("wb"):
        fifo.unlink()


IMPATIENT = "--set=pool_client.SLOW_SECONDS=0.5"


def suspended_pool(attacked: Attacked) -> psutil.Process:
    """Suspend the pool, which then answers no order until it is resumed."""
    wait_until(lambda: attacked.worker(0).is_running())
    pool = attacked.worker(0).parent()
    assert pool is not None
    pool.suspend()
    return pool


def test_a_pool_that_hangs_is_waited_for(tmp_path: Path) -> None:
    with Attacked(tmp_path, IMPATIENT) as attacked:
        pool = suspended_pool(attacked)
        timer = threading.Timer(3, pool.resume)
        timer.start()
        call_fd = attacked.frontend.eventfd()
        assert attacked.frontend.ack(Number.SET_VRING_CALL, VringFd(1, True), (call_fd,)) == 0
        timer.join()
        text = attacked.text()
        assert re.search("the pool's answer to 'adopt': still waiting after .* is in state T", text)
        assert "the pool's answer to 'adopt': done after" in text
        assert text.count("'adopt': still waiting") <= 2
        assert attacked.is_served()
        assert attacked.supervisor() == attacked.victim


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_wait_for_a_pool(tmp_path: Path, number: int) -> None:
    with Attacked(tmp_path, IMPATIENT) as attacked:
        suspended_pool(attacked)
        call_fd = attacked.frontend.eventfd()
        attacked.frontend.send(Number.SET_VRING_CALL, VringFd(1, True), (call_fd,))
        wait_until(lambda: "is in state T" in attacked.text())
        attacked.process.send_signal(number)
        assert attacked.end() == 0


def test_a_front_end_that_goes_away_ends_the_wait_for_a_pool(tmp_path: Path) -> None:
    with Attacked(tmp_path, IMPATIENT) as attacked:
        suspended_pool(attacked)
        call_fd = attacked.frontend.eventfd()
        attacked.frontend.send(Number.SET_VRING_CALL, VringFd(1, True), (call_fd,))
        wait_until(lambda: "is in state T" in attacked.text())
        attacked.frontend.socket.socket.shutdown(2)
        assert attacked.end() == 0
        assert "the VMM went away while the sandbox was slow" in attacked.text()
