# SPDX-License-Identifier: Apache-2.0
"""Readers of option values: each turns text into a checked value, or raises ValueError.

The text of the error continues the sentence "--option: 'value' …". A reader accepts any text as its
argument.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vfsd.transport import idmap
from vfsd.transport.option_types import (
    CPU_MAX,
    ID_MAX,
    MICROSECONDS_MAX,
    POLL_AUTO,
    SECONDS_MAX,
    IdRange,
)
from vfsd.transport.xattrmap import parse as parse_xattrmap

FOR_EVER: Final = math.inf  # seconds


@dataclass(frozen=True)
class Choice:
    """Reads one of `names`, in upper or lower case; an alias stands for one of the names."""

    names: tuple[str, ...]
    aliases: dict[str, str]

    def __call__(self, value: str) -> str:
        value = self.aliases.get(value.lower(), value.lower())
        if value not in self.names:
            raise ValueError(f"is not one of {', '.join(self.names)}")
        return value


def choice(*names: str, **aliases: str) -> Choice:
    return Choice(names, aliases)


def id_rule(value: str) -> str:
    """A rule of --translate-uid or --translate-gid: checked, and returned as text."""
    idmap.parse(value)
    return value


def xattrmap(value: str) -> str:
    """The rules of --xattrmap: checked, and returned as text. XattrmapError has the place of a
    mistake."""
    parse_xattrmap(value)
    return value


def number(low: int, high: int) -> Callable[[str], int]:
    def read(value: str) -> int:
        if not re.fullmatch(r"[0-9]{1,18}", value) or not low <= int(value) <= high:
            raise ValueError(f"is not a whole number from {low} to {high}")
        return int(value)

    return read


def poll(value: str) -> int:
    return POLL_AUTO if value == "auto" else number(0, MICROSECONDS_MAX)(value)


def seconds(value: str) -> float:
    if not re.fullmatch(r"[0-9]{1,12}(\.[0-9]{0,9})?", value) or float(value) > SECONDS_MAX:
        raise ValueError("is not a number of seconds, 0 or more")
    return float(value)


def seconds_or_none(value: str) -> float:
    if value == "none":
        return FOR_EVER
    try:
        return seconds(value)
    except ValueError as error:
        raise ValueError(f"{error}, or none") from None


def path(value: str) -> str:
    if not value or "\0" in value:
        raise ValueError("is not a path")
    return value


def state_place(value: str) -> str:
    """The value of --keep-state: "systemd", or the absolute path of a folder."""
    return value if value == "systemd" else str(Path(path(value)).absolute())


def tag(value: str) -> str:
    if not 1 <= len(value.encode(errors="surrogateescape")) <= 36:
        raise ValueError("is not 1 to 36 bytes long")
    value.encode()  # UnicodeEncodeError is a ValueError
    return value


def modcaps(value: str) -> str:
    if not re.fullmatch(r"([+-][A-Za-z_]+)(:[+-][A-Za-z_]+)*", value):
        raise ValueError("is not a list like +sys_admin:-chown")
    return value.lower()


def cpus(value: str) -> tuple[int, ...]:
    """The CPUs of a list like 0-3,8, in the order of the list."""
    found: list[int] = []
    for item in value.split(","):
        match = re.fullmatch(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", item)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not first <= last <= CPU_MAX:
            raise ValueError("is not a list of CPUs like 0-3,8")
        found += range(first, last + 1)
    if len(set(found)) != len(found):
        raise ValueError("names a CPU twice")
    return tuple(found)


def id_range(value: str) -> IdRange:
    """A range :inside:outside:count: as in the Rust virtiofsd; the first character is the
    separator."""
    numbers = value[1:-1].split(value[0]) if value and value[0] == value[-1] else []
    if len(numbers) != 3 or not all(re.fullmatch("[0-9]{1,10}", text) for text in numbers):
        raise ValueError("is not of the form :INSIDE:OUTSIDE:COUNT:")
    inside, outside, count = map(int, numbers)
    if count < 1 or max(inside, outside) + count - 1 > ID_MAX:
        raise ValueError(f"has a COUNT of 0, or an id above {ID_MAX}")
    return IdRange(inside, outside, count)
