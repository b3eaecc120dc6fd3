# SPDX-License-Identifier: Apache-2.0
"""Log lines: their form, their level, and what happens when no process reads them."""

import json
import os
import socket
from collections.abc import Sequence
from pathlib import Path

from vfsd.supervisor.control_facts import latest
from vfsd.supervisor.log_collector import (
    MAX_LINE,
    RECENT,
    VMM,
    LogCollector,
    RecentLine,
    SyslogSink,
    stderr_sink,
)


def test_lines_name_instance_source_and_urgency() -> None:
    lines: list[tuple[str, bytes]] = []

    def sink(level: str, line: bytes) -> bool:
        lines.append((level, line))
        return True

    log = LogCollector("vm001", "info", sink)
    log.write("info", "hello")
    log.write("error", "bad", "worker 2")
    log.write("warn", "odd")
    log.write("debug", "too much")
    assert lines == [
        ("info", b"vm001: hello"),
        ("error", b"vm001: worker 2: error: bad"),
        ("warn", b"vm001: warning: odd"),
    ]


def test_off_logs_nothing() -> None:
    def sink(_level: str, line: bytes) -> bool:
        raise AssertionError(line)

    LogCollector("vm001", "off", sink).write("error", "bad")


def test_lost_lines_are_counted_and_reported() -> None:
    lines: list[bytes] = []
    working = True

    def sink(_level: str, line: bytes) -> bool:
        if working:
            lines.append(line)
        return working

    log = LogCollector("vm", "info", sink)
    working = False
    log.write("info", "one")
    log.write("info", "two")
    working = True
    log.write("info", "three")
    assert lines == [b"vm: warning: 2 log lines were lost", b"vm: three"]


def test_a_line_is_cut_and_made_printable_bytes() -> None:
    lines: list[bytes] = []

    def sink(_level: str, line: bytes) -> bool:
        lines.append(line)
        return True

    log = LogCollector("vm", "info", sink)
    log.write("info", "x" * 10000)
    log.write("info", "odd \udc80 name")
    assert len(lines[0]) == MAX_LINE
    assert lines[1] == b"vm: odd \\udc80 name"


def test_syslog_gets_datagrams_with_priority(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as daemon:
        path = str(tmp_path / "log")
        daemon.bind(path)
        sink = SyslogSink(path)
        assert sink("error", b"vm: text")
        sink.close()
        assert daemon.recv(1000) == f"<27>virtiofsd[{os.getpid()}]: vm: text".encode()


def test_syslog_without_a_daemon_loses_lines_and_nothing_else(tmp_path: Path) -> None:
    sink = SyslogSink(str(tmp_path / "nobody"))
    assert not sink("info", b"text")
    sink.close()


def test_a_full_stderr_does_not_stop_the_supervisor() -> None:
    reader, writer = os.pipe()
    saved = os.dup(2)
    os.dup2(writer, 2)
    try:
        results = [stderr_sink("info", b"x" * 1000) for _ in range(200)]
        assert results[0]
        assert not results[-1]  # the pipe is full, and writing would block
        assert os.read(reader, 6) == b"vfsd: "
    finally:
        os.dup2(saved, 2)
        for fd in (saved, reader, writer):
            os.close(fd)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def flooded(level: str, sources: Sequence[str], minutes: int) -> tuple[LogCollector, list[bytes]]:
    """A log that all sources write to for some minutes; no two lines are the same."""
    lines: list[bytes] = []

    def sink(_level: str, line: bytes) -> bool:
        lines.append(line)
        return True

    clock = Clock()
    log = LogCollector("vm", level, sink, clock)
    for _ in range(minutes):
        for number in range(100):
            word = "".join(chr(97 + int(digit)) for digit in str(number))
            for source in sources:
                log.write("error", f"{word} {'x' * 500}", source)
        clock.now += 60
        log.report_left_out()
    return log, lines


def test_the_sandbox_and_the_vmm_write_a_few_kib_a_minute() -> None:
    sources = [VMM, "pool", *(f"worker {slot}" for slot in range(20))]
    _, lines = flooded("info", sources, 10)
    assert sum(map(len, lines)) < 16384 + 10 * 4200 + 10 * 60
    assert any(b"log lines like earlier ones were left out" in line for line in lines)


def test_the_debug_level_is_more_generous_and_has_an_end() -> None:
    _, lines = flooded("debug", ["worker 0"], 10)
    size = sum(map(len, lines))
    assert 10 * 8192 < size < 40 * (8192 + 10 * 2100)


def test_what_the_daemon_says_of_itself_is_not_held_back_by_others() -> None:
    log, lines = flooded("info", ["worker 0", VMM], 1)
    log.write("error", "the pool died; the guest's open files are lost, so the share ends")
    assert lines[-1].endswith(b"so the share ends")


def test_a_line_of_the_daemon_in_a_loop_is_held_back() -> None:
    lines: list[bytes] = []

    def sink(_level: str, line: bytes) -> bool:
        lines.append(line)
        return True

    clock = Clock()
    log = LogCollector("vm", "info", sink, clock)
    for number in range(1000):
        log.write("error", f"worker {number} died (signal 11); created again")
    assert len(lines) == 10
    assert log.report_left_out() == float("inf")
    assert lines[-1] == b"vm: warning: 990 log lines like earlier ones were left out"
    log.write("error", "worker 1 died (signal 11); created again")
    assert 0 < log.report_left_out() <= 60
    clock.now += 60
    log.write("error", "worker 1 died (signal 11); created again")
    assert lines[-1].endswith(b"created again (1 lines like this were left out)")
    assert log.report_left_out() == float("inf")


def test_the_latest_lines_are_kept_and_followed() -> None:
    log = LogCollector("vm001", "info", lambda _level, _line: True)
    followed: list[RecentLine] = []
    log.follow = followed.append
    for number in range(RECENT + 5):
        log.write("warn", f"{'x' * number} happened")
    log.write("debug", "not logged")
    assert [line.text for line in log.recent] == [line.text for line in followed[-RECENT:]]
    assert len(followed) <= RECENT + 5
    assert {line.level for line in followed} == {"warn"}


def test_another_level_is_in_force_at_once() -> None:
    lines: list[bytes] = []

    def sink(_level: str, line: bytes) -> bool:
        lines.append(line)
        return True

    log = LogCollector("vm001", "error", sink)
    log.write("debug", "one")
    log.set_level("debug")
    log.write("debug", "two")
    log.set_level("off")
    log.write("error", "three")
    assert lines == [b"vm001: debug: two"]


def test_lines_that_do_not_fit_a_packet_are_left_out() -> None:
    lines = [RecentLine(1.0, "warn", "", "\U0001f600" * 100 * n) for n in range(1, 30)]
    found = latest(lines, 60000)
    assert [content["text"] for content in found] == [line.text for line in lines[-len(found) :]]
    assert 0 < len(found) < len(lines)
    assert len(json.dumps(found)) <= 60000
    assert latest(lines, 100) == []
