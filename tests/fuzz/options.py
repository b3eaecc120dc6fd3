# SPDX-License-Identifier: Apache-2.0
"""Fuzz target: any command line, any configuration file.

Input: arguments, each of them an option's spelling with a value, or plain text. If the first byte
is odd the rest is a configuration file, and the command line names this file and nothing else.

What must hold: the input is refused with OperatorError, or gives Options that have what serving
needs.
"""

import os
from typing import Final

from tests.fuzz.reader import Reader
from vfsd.supervisor.command_line import parse
from vfsd.supervisor.option_help import spellings
from vfsd.supervisor.options import KEYS, OPTIONS
from vfsd.transport.errors import OperatorError

SPELLINGS: Final = sorted(name for row in OPTIONS for name, _ in spellings(row))
NAMES: Final = sorted(KEYS)
VALUES: Final = (
    "0", "1", "64", "-1", "1e9", "inf", "nan", "/", "/tmp", "auto", "never", "always", "namespace",
    "chroot", "none", "true", "false", ":ok:all:::", "map:0:1000:1", ":0:1000:1:", "", "x" * 300,
    "٣",
)  # fmt: skip
TOML_WORDS: Final = (
    "true",
    "false",
    "1",
    "1.5",
    '"x"',
    "[]",
    '["a", "b"]',
    "{}",
    "''",
    "1979-05-27",
)


def _argument(reader: Reader) -> str:
    kind = reader.number() % 4
    if kind == 0:
        return reader.text()
    spelling = reader.choice(SPELLINGS).removeprefix("-o ")
    if kind == 1:
        return spelling
    value = reader.choice(VALUES) if reader.number() % 2 else reader.text()
    return f"{spelling}={value}" if kind == 2 else f"-o{spelling}={value},{spelling}"


def _file(reader: Reader) -> bytes:
    lines = []
    while reader:
        if reader.number() % 4 == 0:
            lines.append(reader.bytes(reader.number()))
        else:
            lines.append(f"{reader.choice(NAMES)} = {reader.choice(TOML_WORDS)}".encode())
    return b"\n".join(lines)


def _parse(arguments: list[str]) -> None:
    try:
        options = parse(arguments)
    except OperatorError:
        return
    assert options.action != "serve" or options.shared_dir is not None


def run(data: bytes) -> None:
    """Parse the options of one start of the daemon."""
    reader = Reader(data)
    if not reader.number() & 1:
        _parse([_argument(reader) for _ in range(reader.number() % 12)])
        return
    fd = os.memfd_create("config")
    try:
        os.write(fd, _file(reader))
        path = f"/proc/self/fd/{fd}"
        _parse(["--shared-dir=/", "--socket-path=/run/x", f"--config={path}"])
    finally:
        os.close(fd)
