# SPDX-License-Identifier: Apache-2.0
"""Log lines: their form, their level, and what happens when nobody reads them."""

import os
import socket
from pathlib import Path

from vfsd.supervisor.log_collector import MAX_LINE, LogCollector, SyslogSink, stderr_sink


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


def test_lost_lines_are_counted_and_told() -> None:
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
        assert not results[-1]  # would have blocked
        assert os.read(reader, 6) == b"vfsd: "
    finally:
        os.dup2(saved, 2)
        for fd in (saved, reader, writer):
            os.close(fd)
