# SPDX-License-Identifier: Apache-2.0
"""What an operator sees of a daemon is so."""

import json
import os
import re
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

from tests.hostile.daemon import OURS, Daemon
from tests.hostile.fuse import ROOT
from tests.sandbox_modes import SandboxMode, in_every_mode
from tests.waiting import HANG, wait_until
from vfsd.control.client import Client
from vfsd.control.instances import instance_of
from vfsd.transport.errors import OperatorError
from vfsd.transport.fuse_features import NAMES
from vfsd.worker.init import FEATURES

from .conftest import VFSD, Operated, run_tool


def test_the_share_and_its_guest(operated: Operated) -> None:
    (operated.daemon.share / "file").write_bytes(b"x")
    entry = operated.guest.lookup(ROOT, b"file")
    handle = operated.guest.open(entry.nodeid)
    with operated.client() as client:
        status = client.status()
    assert status.name == "socket"
    assert status.share == str(operated.daemon.share)
    assert status.socket == operated.daemon.socket
    assert status.vmm
    assert (status.vmm.pid, status.vmm.uid) == (os.getpid(), os.getuid())
    assert status.guest
    assert status.guest.minor == 41
    assert [(queue.index, queue.slot) for queue in status.queues] == [(0, 0), (1, 0), (2, 1)]
    assert (status.inodes, status.files) == (1, 1)
    assert [(worker.slot, worker.starts) for worker in status.workers] == [(0, 1), (1, 1)]
    operated.guest.release(entry.nodeid, handle)


def test_its_processes_and_what_confines_them(operated: Operated) -> None:
    with operated.client() as client:
        status = client.status()
    processes = {process.pid: process for process in status.processes}
    privileged = ("launcher", "deputy", "template")
    roles = ("keeper", "supervisor", *privileged, "holder", "pool", "worker 0", "worker 1")
    for role in roles:
        process = processes[operated.daemon.the(f"socket {role}")]
        assert process.role.startswith(role)
        assert process.seccomp == (role not in privileged)
    assert processes[operated.daemon.the("socket supervisor")].capabilities == 0
    assert processes[operated.daemon.the("socket launcher")].capabilities != 0
    (own,) = operated.daemon.titled("socket control")
    assert own not in processes


def test_processes_of_a_launcher_that_died_are_seen(operated: Operated) -> None:
    daemon = operated.daemon
    deputy = daemon.the("socket deputy")
    os.kill(daemon.the("socket launcher"), signal.SIGKILL)
    wait_until(lambda: daemon.the("socket launcher") == deputy, 10, "the deputy has taken over")
    with operated.client() as client:
        status = client.status()
    assert status.pids.launcher == deputy
    seen = {process.pid for process in status.processes}
    assert {daemon.the(f"socket {role}") for role in ("launcher", "holder", "worker 1")} <= seen


@in_every_mode
def test_a_daemon_answers_in_each_mode(sandbox_mode: SandboxMode) -> None:
    with Daemon(mode=sandbox_mode) as daemon:
        daemon.await_pool()
        with Client(instance_of(str(daemon.process.pid)), HANG) as client:
            status = client.status()
            assert client.counters().ops == []
        assert status.guest is None
        assert status.vmm is None
        assert status.queues == []
        assert status.protections.sandbox in ("namespace", "chroot", "none")


def test_requests_are_counted(operated: Operated) -> None:
    with operated.client() as client:
        before = client.counters()
        for _ in range(50):
            operated.guest.getattr(ROOT)
        after = client.counters()
    (counted,) = [op for op in after.ops if op.op == "GETATTR"]
    assert counted.count - sum(op.count for op in before.ops if op.op == "GETATTR") == 50
    assert sum(counted.latency) == counted.count
    assert counted.ns > 0
    assert after.ns > before.ns
    asked = {queue.index: queue.requests for queue in before.queues}
    assert [queue.requests - asked[queue.index] for queue in after.queues] == [0, 50, 0]
    (worker,) = [worker for worker in after.workers if worker.slot == 0]
    assert worker.count >= 50


def test_the_tool_shows_it(operated: Operated) -> None:
    found = operated.json("status", operated.name)
    assert found["instance"]["pid"] == operated.daemon.process.pid
    assert found["features"]
    memory = {row["pid"]: row["pss_kib"] for row in found["processes"]}
    assert memory[operated.daemon.the("socket supervisor")] > 1000
    text = operated.tool("status", operated.name)
    assert max(map(len, text.splitlines())) <= 90
    assert "worker 1: queue 2 (128 entries)" in " ".join(text.split())
    assert re.search(r"^  guest +FUSE 7\.41: ", text, re.MULTILINE)
    assert "\nPID" in re.sub(" +", "", text)


def test_top_shows_one_interval_in_80_columns(operated: Operated) -> None:
    for _ in range(20):
        operated.guest.getattr(ROOT)
    text = operated.tool("top", "--once", "--interval", "0.1", operated.name)
    assert max(map(len, text.splitlines())) <= 80
    assert text.startswith("socket: ")
    loads = operated.json("top", "--once", "--interval", "0.1", operated.name)
    assert [queue["index"] for queue in loads["queues"]] == [0, 1, 2]


def test_top_refreshes_a_terminal_and_gives_it_back(operated: Operated) -> None:
    ours, theirs = os.openpty()
    command = [VFSD, "top", "--interval", "0.1", operated.name]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs) as tool:
        os.close(theirs)
        shown = b""
        try:
            while shown.count(b"ops/s") < 3:
                operated.guest.getattr(ROOT)
                shown += os.read(ours, 4096)
            tool.send_signal(signal.SIGINT)
            with suppress(OSError):  # EIO: the tool has closed its end
                while data := os.read(ours, 4096):
                    shown += data
            assert tool.wait(HANG) == 0
        finally:
            tool.kill()
            os.close(ours)
    assert shown.startswith(b"\x1b[?1049h")
    assert shown.endswith(b"\x1b[?1049l")
    assert b"GETATTR" in shown


def test_the_log(operated: Operated) -> None:
    texts = [line["text"] for line in map(_object, _log(operated))]
    assert any("the guest has mounted the share" in text for text in texts)
    assert "the guest has mounted the share" in operated.tool("logs", operated.name)


def _log(operated: Operated) -> list[str]:
    return operated.tool("logs", "--json", operated.name).splitlines()


def _object(line: str) -> dict[str, str]:
    content: dict[str, str] = json.loads(line)
    return content


def test_instances_are_listed(operated: Operated) -> None:
    found = [one for one in operated.json("list") if one["pid"] == operated.daemon.process.pid]
    assert [(one["name"], one["uid"]) for one in found] == [("socket", os.getuid())]
    assert "socket" in operated.tool("list", "--names").splitlines()
    assert re.search(rf"^socket +{operated.name} +root$", operated.tool("list"), re.MULTILINE)


def test_two_instances_of_one_name(operated: Operated) -> None:
    with Daemon() as other:
        other.await_pool()
        with pytest.raises(OperatorError, match="give a pid") as raised:
            instance_of("socket")
        assert str(other.process.pid) in str(raised.value)
        assert operated.name in str(raised.value)
        run_tool("status", "socket", status=3)


def test_a_name_without_an_instance() -> None:
    assert "vfsd list" in run_tool("status", "no such name", status=3).stderr


def test_a_socket_without_a_daemon_gets_no_answer(tmp_path: Path) -> None:
    with Client(str(tmp_path / "control"), 0.3) as client:
        with pytest.raises(OperatorError, match=r"has not answered for 0\.3 s"):
            client.status()
        with pytest.raises(OperatorError, match="has not answered"):
            client.stop()


def test_a_daemon_in_another_mount_namespace_is_found(tmp_path: Path) -> None:
    """As with PrivateTmp= of systemd: the path of the runtime folder leads elsewhere here."""
    hiding = (
        "unshare",
        "--mount",
        "sh",
        "-c",
        f'mount -t tmpfs tmpfs {tmp_path} && exec "$0" "$@"',
    )
    with Daemon(program=("env", f"TMPDIR={tmp_path}", *hiding, *OURS)) as daemon:
        daemon.await_pool()
        instance = instance_of(str(daemon.process.pid))
        assert instance.path.startswith("/proc/")
        assert not list(tmp_path.iterdir())
        with Client(instance, HANG) as client:
            assert client.status().share == str(daemon.share)


def test_each_feature_has_a_name() -> None:
    assert {feature.name for feature in FEATURES} <= set(NAMES)
