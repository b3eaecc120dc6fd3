# SPDX-License-Identifier: Apache-2.0
"""The whole control plane with a pool that serves no guest; processes and sockets are real."""

import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.waiting import HANG, LOADED
from vfsd.transport.vhost_user import Number, decode_reply, encode_message
from vfsd.transport.vhost_user_payloads import U64, MemoryRegion, Region, VringFd, VringState

from .daemon import Daemon, has_ended, wait_until
from .frontend import QEMU_FEATURES, REGION, Frontend

QUEUES = 3
DELAYS = (0, 0.0003, 0.0006, 0.001, 0.0015, 0.002, 0.003, 0.005, 0.01)  # seconds


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with Daemon(tmp_path, "--request-queues=4") as running:
        yield running


@pytest.fixture
def frontend(daemon: Daemon) -> Iterator[Frontend]:
    """A front-end whose vrings run."""
    connected = Frontend(daemon.path)
    connected.realize(QUEUES)
    connected.driver_ok(QUEUES)
    yield connected
    connected.close()


def test_workers_see_what_the_frontend_set_up(daemon: Daemon, frontend: Frontend) -> None:
    assert frontend.set_mem_table() == 0
    for slot in (0, 1):
        seen = daemon.last_seen(slot)
        assert seen["regions"] == [0]
        running = [row for row in seen["vrings"] if row["running"]]
        assert [row["index"] for row in running] == [0, 1, 2]
        assert [row["worker"] for row in running] == [0, 0, 1]
        assert [row["size"] for row in running] == [128] * 3
        assert all(row["kick_fd"] > 2 for row in running)


def test_only_workers_that_have_something_to_serve_are_created(
    daemon: Daemon, frontend: Frontend
) -> None:
    del frontend
    slots = [row["slot"] for row in daemon.report() if row.get("op") == "spawn"]
    assert slots == [0, 1]


def test_a_stopped_vring_reports_where_it_stopped(daemon: Daemon, frontend: Frontend) -> None:
    assert frontend.stop(QUEUES) == [17, 17, 17]
    assert not any(row["running"] for row in daemon.last_seen(0)["vrings"])
    frontend.driver_ok(0)
    frontend.start_vring(1)
    assert frontend.ack(Number.SET_VRING_ENABLE, VringState(1, 1)) == 0
    assert frontend.ack(Number.SET_OWNER) == 0
    wait_until(lambda: daemon.last_seen(1)["vrings"][1]["start"] == 2)


def test_a_new_call_fd_reaches_a_running_vring(daemon: Daemon, frontend: Frontend) -> None:
    assert frontend.ack(Number.SET_OWNER) == 0
    old = daemon.last_seen(0)["vrings"][1]["call_fd"]
    assert frontend.ack(Number.SET_VRING_CALL, VringFd(1, True), (frontend.eventfd(),)) == 0
    assert daemon.last_seen(0)["vrings"][1]["call_fd"] != old
    assert any(old in row["fds"] for row in daemon.report() if row.get("op") == "drop")


def test_what_the_pool_was_given_is_taken_back(daemon: Daemon, frontend: Frontend) -> None:
    for _ in range(3):
        frontend.stop(QUEUES)
        assert frontend.ack(Number.REM_MEM_REG, MemoryRegion(REGION)) == 0
        given = sum(len(row["received"]) for row in daemon.report() if row.get("op") == "adopt")
        taken = sum(len(row["fds"]) for row in daemon.report() if row.get("op") == "drop")
        assert given == taken > 0
        frontend.driver_ok(QUEUES)


def test_a_second_vmm_waits_until_the_first_one_is_gone(tmp_path: Path) -> None:
    with Daemon(tmp_path, "--keep-listening") as daemon:
        first, second = Frontend(daemon.path), Frontend(daemon.path)
        first.realize(QUEUES)
        first.driver_ok(QUEUES)
        second.socket.send(encode_message(Number.GET_FEATURES))
        second.socket.socket.settimeout(0.3)
        with pytest.raises(TimeoutError):
            second.socket.receive()
        second.socket.socket.settimeout(HANG)
        first.close()
        reply = second.socket.receive()
        assert reply is not None
        second.realize(QUEUES)
        second.driver_ok(QUEUES)
        starts = daemon.last_seen(0)["vrings"][0]["start"]
        assert starts == 1  # the connection has a new pool
        second.close()


def test_the_daemon_ends_with_the_vmm(daemon: Daemon, frontend: Frontend) -> None:
    frontend.socket.socket.shutdown(socket.SHUT_RDWR)
    assert daemon.end() == 0
    assert not daemon.path.exists()
    assert list(daemon.runtime.iterdir()) == []
    assert "the VMM went away" in daemon.text()


def test_a_connection_without_a_word_is_no_vmm(daemon: Daemon) -> None:
    for _ in range(3):
        with socket.socket(socket.AF_UNIX) as probe:
            probe.connect(str(daemon.path))
    connected = Frontend(daemon.path)
    connected.realize(QUEUES)
    connected.close()
    assert daemon.end() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("is_connected", [True, False])
def test_a_signal_ends_everything_within_a_second(
    tmp_path: Path, number: int, is_connected: bool
) -> None:
    with Daemon(tmp_path) as daemon:
        connected = Frontend(daemon.path) if is_connected else None
        if connected:
            connected.realize(QUEUES)
            connected.driver_ok(QUEUES)
        children = daemon.process_group.children(recursive=True)
        start = time.monotonic()
        daemon.process.send_signal(number)
        assert daemon.end() == 0
        assert time.monotonic() - start < LOADED
        assert not any(child.is_running() for child in children)
        assert not daemon.path.exists()
        assert list(daemon.runtime.iterdir()) == []
        if connected:
            connected.close()


def test_a_supervisor_that_does_not_end_is_ended(daemon: Daemon) -> None:
    daemon.supervisor().suspend()
    daemon.process.terminate()
    assert daemon.end() == 0
    assert not daemon.path.exists()


def test_processes_are_called_by_what_they_do(daemon: Daemon, frontend: Frontend) -> None:
    del frontend
    assert daemon.find("keeper") == psutil.Process(daemon.process.pid)
    assert daemon.supervisor().ppid() == daemon.process.pid
    launcher = daemon.find("launcher")
    assert launcher
    groups = {os.getpgid(p.pid) for p in daemon.process_group.children(recursive=True)}
    assert groups == {os.getpgid(daemon.process.pid), launcher.pid}


def test_logs_of_workers_come_out_of_the_supervisor(daemon: Daemon, frontend: Frontend) -> None:
    del frontend
    wait_until(lambda: "vfsd: vm001: worker 1: here I am\n" in daemon.text())
    assert "debug" not in daemon.text()


def test_a_worker_that_dies_is_reported_and_its_successor_is_asked(
    daemon: Daemon, frontend: Frontend
) -> None:
    pids = [row for row in daemon.report() if row.get("op") == "spawn"]
    assert len(pids) == 2
    workers = [c for c in daemon.process_group.children(recursive=True) if is_fake_worker(c)]
    assert len(workers) == 2
    for worker in workers:
        worker.kill()
        assert frontend.set_mem_table() == 0
    wait_until(lambda: daemon.text().count("died (status 1); created again") == 2)


def is_fake_worker(process: psutil.Process) -> bool:
    parent = process.parent()
    return parent is not None and "fake pool" in " ".join(parent.cmdline())


def test_a_worker_that_does_not_listen_is_replaced(daemon: Daemon, frontend: Frontend) -> None:
    worker = next(c for c in daemon.process_group.children(recursive=True) if is_fake_worker(c))
    worker.suspend()
    frontend.socket.socket.settimeout(HANG)
    assert frontend.set_mem_table() == 0
    assert "did not acknowledge a change of the device in time; killed" in daemon.text()


# Messages of the front-end that make no sense.


def test_nonsense_that_is_to_be_acknowledged_is_refused(daemon: Daemon, frontend: Frontend) -> None:
    assert frontend.ack(Number.SET_VRING_NUM, VringState(9, 128)) == 1
    assert frontend.ack(Number.SET_VRING_ENABLE, VringState(1, 7)) == 1
    assert frontend.set_mem_table() == 0
    assert "queue 9; this device has queues 0 to 4" in daemon.text()


def test_nonsense_without_acknowledgement_ends_the_session(
    daemon: Daemon, frontend: Frontend
) -> None:
    """The daemon ends with a status that makes systemd start it again (Restart=on-failure)."""
    frontend.send(Number.SET_VRING_NUM, VringState(9, 128))
    assert frontend.is_closed()
    assert daemon.end() == 1
    (line,) = [line for line in daemon.text().splitlines() if "disconnected the VMM" in line]
    assert line.startswith("vfsd: vm001: error: ")
    assert line.endswith("start virtiofsd with a larger --request-queues")


@pytest.mark.parametrize("need_reply", [True, False])
def test_a_vmm_that_shares_no_memory_is_refused(daemon: Daemon, need_reply: bool) -> None:
    """QEMU without share=on is such a VMM. Newer versions wait for an acknowledgement, and print
    that it failed. Older versions have sent every message by then, and print the errors of
    vrings."""
    frontend = Frontend(daemon.path)
    frontend.realize(QUEUES)
    frontend.send(Number.SET_FEATURES, U64(QEMU_FEATURES))
    for index in range(QUEUES):
        frontend.start_vring(index)
    if need_reply:
        assert frontend.ack(Number.SET_VRING_ENABLE, VringState(0, 1)) == 1
        frontend.socket.socket.shutdown(socket.SHUT_RDWR)
    else:
        frontend.send(Number.SET_VRING_ENABLE, VringState(0, 1))
        assert frontend.is_closed()
        assert [os.eventfd_read(fd) for fd in frontend.err_fds] == [1] * QUEUES
    assert daemon.end() == (0 if need_reply else 1)
    frontend.close()
    (line,) = [line for line in daemon.text().splitlines() if "shares no memory" in line]
    assert "error: " in line
    assert "QEMU needs memory-backend-memfd,…,share=on" in line


def test_a_vmm_that_is_killed_has_gone_away(daemon: Daemon, frontend: Frontend) -> None:
    """A VMM that has not read everything when it ends resets the connection."""
    for _ in range(100):
        frontend.socket.send(encode_message(Number.GET_QUEUE_NUM))
    frontend.socket.close()
    assert daemon.end() == 0
    assert "the VMM went away" in daemon.text()
    assert "disconnected" not in daemon.text()


def test_memory_beyond_the_end_of_its_file_is_refused(daemon: Daemon, frontend: Frontend) -> None:
    beyond = MemoryRegion(Region(1 << 30, 4096, 1 << 40, REGION.size))
    assert frontend.ack(Number.ADD_MEM_REG, beyond, (frontend.memory,)) == 1
    read_end, write_end = os.pipe()
    assert frontend.ack(Number.ADD_MEM_REG, beyond, (read_end,)) == 1
    assert frontend.ack(Number.SET_VRING_CALL, VringFd(1, True), (write_end,)) == 1
    for fd in (read_end, write_end):
        os.close(fd)
    assert "is not an eventfd" in daemon.text()


def test_nothing_is_kept_of_refused_messages(daemon: Daemon, frontend: Frontend) -> None:
    frontend.set_mem_table()
    supervisor = daemon.supervisor()
    before = supervisor.num_fds()
    for _ in range(20):
        assert frontend.ack(Number.SET_VRING_CALL, VringFd(99, True), (frontend.memory,)) == 1
        assert frontend.ack(Number.SET_VRING_CALL, VringFd(1, True), (frontend.eventfd(),)) == 0
    assert supervisor.num_fds() == before


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        encode_message(Number.SET_FEATURES, U64(1 << 55)),
        encode_message(Number.SET_MEM_TABLE, U64(9)),
        encode_message(Number.GET_VRING_BASE, VringState(0, 0)),
        bytes(12),
        b"\xff" * 300,
    ],
)
def test_a_session_of_nonsense_leaves_the_daemon_ready(tmp_path: Path, data: bytes) -> None:
    with Daemon(tmp_path, "--keep-listening") as daemon:
        connected = Frontend(daemon.path)
        connected.socket.send(data)
        assert connected.is_closed()
        connected.close()
        after = Frontend(daemon.path)
        after.realize(QUEUES)
        after.driver_ok(QUEUES)
        after.close()
        assert "Traceback" not in daemon.text()


# The supervisor dies.


def test_a_frontend_does_not_notice_that_the_supervisor_dies(
    daemon: Daemon, frontend: Frontend
) -> None:
    for round_number in range(40):
        call_fd = frontend.eventfd()
        frontend.send(Number.SET_VRING_CALL, VringFd(1, True), (call_fd,))
        frontend.socket.send(encode_message(Number.GET_QUEUE_NUM))
        time.sleep(DELAYS[round_number % len(DELAYS)])
        daemon.kill_supervisor()
        reply = frontend.socket.receive()
        assert reply is not None, f"round {round_number}:\n{daemon.text()}"
        assert decode_reply(Number.GET_QUEUE_NUM, reply.header, reply.payload) == U64(5)
        assert frontend.set_mem_table() == 0
    assert frontend.stop(QUEUES) == [17] * 3
    supervisor = daemon.supervisor()
    assert supervisor.num_fds() < 60
    assert "failed" not in daemon.text()


def test_a_supervisor_that_dies_before_a_vmm_comes_is_replaced(daemon: Daemon) -> None:
    for _ in range(3):
        daemon.kill_supervisor()
        daemon.supervisor()
    connected = Frontend(daemon.path)
    connected.realize(QUEUES)
    connected.driver_ok(QUEUES)
    connected.close()
    assert daemon.end() == 0


def test_the_keeper_gives_up_if_it_has_to(tmp_path: Path) -> None:
    with Daemon(tmp_path, "--pauses", "--give-up-after=5") as daemon:
        while daemon.process.poll() is None:
            if victim := daemon.find("supervisor"):
                victim.kill()
            time.sleep(0.05)
        assert daemon.end() == 1
        assert "the supervisor died 5 times within 10 s; giving up" in daemon.text()
        assert not daemon.path.exists()


def test_the_keeper_ends_at_once_by_a_signal_while_it_pauses(tmp_path: Path) -> None:
    with Daemon(tmp_path, "--pauses", "--set=restart_policy.LONGEST_PAUSE=3600",
                "--set=restart_policy.FIRST_PAUSE=3600") as daemon:  # fmt: skip
        for _ in range(4):
            daemon.kill_supervisor()
        wait_until(lambda: "takes over in 3600 s, after 4 deaths in a row" in daemon.text())
        daemon.process.terminate()
        assert daemon.end() == 0
        assert not daemon.path.exists()


def test_a_share_whose_keeper_was_killed_ends_with_its_vmm(
    daemon: Daemon, frontend: Frontend
) -> None:
    family = daemon.process_group.children(recursive=True)
    daemon.process.kill()
    daemon.end()
    wait_until(lambda: "another keeper takes over" in daemon.text())
    assert frontend.set_mem_table() == 0
    frontend.socket.socket.shutdown(socket.SHUT_RDWR)
    wait_until(lambda: all(has_ended(process) for process in family))
    wait_until(lambda: not daemon.path.exists())


@pytest.mark.parametrize("probed", [False, True])
def test_a_share_for_one_vmm_ends_with_its_keeper_before_that_vmm(
    daemon: Daemon, probed: bool
) -> None:
    """Kata Containers ends a daemon with a SIGKILL to the process that Kata has started."""
    family = [daemon.process_group, *daemon.process_group.children(recursive=True)]
    if probed:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.connect(str(daemon.path))
            daemon.process.kill()
    daemon.process.kill()
    daemon.end()
    wait_until(lambda: all(has_ended(process) for process in family))
    wait_until(lambda: not daemon.path.exists())


# Inherited sockets.


def titles(daemon: Daemon) -> list[str]:
    return ["".join(daemon.process_group.cmdline())]


def test_a_listening_socket_is_inherited(tmp_path: Path) -> None:
    path = str(tmp_path / "vm001.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(1)
        fd = listener.fileno()
        with Daemon(tmp_path, f"--fd={fd}", pass_fds=[fd]) as daemon:
            listener.close()
            connected = Frontend(path)
            connected.realize(QUEUES)
            connected.driver_ok(QUEUES)
            assert any(f"{tmp_path.name}/vm001 keeper" in title for title in titles(daemon))
            connected.close()
            assert daemon.end() == 0
            assert Path(path).exists()  # an inherited socket is not removed


def test_a_connected_socket_is_inherited(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    with Daemon(tmp_path, f"--fd={theirs.fileno()}", pass_fds=[theirs.fileno()]) as daemon:
        theirs.close()
        connected = Frontend(ours)
        connected.realize(QUEUES)
        connected.driver_ok(QUEUES)
        connected.close()
        assert daemon.end() == 0
