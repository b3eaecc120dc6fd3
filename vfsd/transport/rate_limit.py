# SPDX-License-Identifier: Apache-2.0
"""Limits on how much is let through: token buckets, and log lines by their kind. Does no I/O.

THEORY

Purpose. A guest, a VMM or a worker that was taken over must not fill the host's log by repeating an
action. So each source of lines has a LineLimit, at both ends of the channel: in the worker
(LogForward), where holding a line back costs least, and in the supervisor (LogCollector), against a
worker that was taken over and ignores its own limit.

Kinds. Two lines are of one kind if they have the same level, and the same text apart from numbers
and quoted names. So one call site has one kind, and a line about something new is let through while
the thousandth line about something old is held back. A source that makes up texts can have any
number of kinds; the other buckets, which count the bytes of all lines of a source, limit it.

Lines that are held back are counted: per kind for the KINDS kinds seen last, and in one sum for all
other kinds. The count of a kind is added to the next line of that kind that is let through.
"""

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

KINDS: Final = 64  # per source
KIND_CHARACTERS: Final = 60
LINE_OVERHEAD: Final = 40  # bytes of a line besides its text: time, names
_VARIABLE: Final = re.compile(r"'[^']*'|\"[^\"]*\"|0x[0-9a-fA-F]+|[0-9]+")


@dataclass(frozen=True)
class Rate:
    """`burst` tokens at once, and from then on `per_second` more."""

    burst: float
    per_second: float

    def times(self, factor: float) -> "Rate":
        return Rate(self.burst * factor, self.per_second * factor)


class Bucket:
    """A token bucket, full at first. Times are in seconds of a clock that does not go back."""

    def __init__(self, rate: Rate) -> None:
        self._rate = rate
        self._tokens = rate.burst
        self._at = 0.0

    def has(self, tokens: float, now: float) -> bool:
        """Are at least `tokens` tokens in the bucket?"""
        gained = max(0.0, now - self._at) * self._rate.per_second
        self._tokens, self._at = min(self._rate.burst, self._tokens + gained), now
        return self._tokens >= tokens

    def seconds_until(self, tokens: float, now: float) -> float:
        """Seconds until `tokens` tokens are in the bucket; 0 if they are there."""
        return 0.0 if self.has(tokens, now) else (tokens - self._tokens) / self._rate.per_second

    def take(self, tokens: float, now: float) -> bool:
        """Take `tokens` tokens; if there are fewer, take none and return False."""
        if not self.has(tokens, now):
            return False
        self._tokens -= tokens
        return True


LINES: Final = Rate(burst=10, per_second=1 / 60)  # per kind
BYTES: Final = Rate(burst=8192, per_second=2048 / 60)  # all lines of one source together
GENEROUS: Final = 30  # the factor for both where the operator asked for debug lines


@dataclass
class _Kind:
    """Lines of one kind."""

    bucket: Bucket
    left_out: int = 0


class LineLimit:
    """Limits the lines of one source. Each kind of line has a bucket with the rate `lines`, and
    each of `buckets`, which several sources may share, must have a token for every byte of every
    line."""

    def __init__(
        self,
        lines: Rate,
        buckets: Sequence[Bucket],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._lines = lines
        self._buckets = buckets
        self._clock = clock
        self._kinds: dict[tuple[str, str], _Kind] = {}  # the kind seen last is at the end
        self._forgotten = 0  # lines held back, of kinds that have been dropped from _kinds

    def admit(self, level: str, text: str) -> str | None:
        """The text to write, followed by the number of earlier lines left out; None to leave it
        out."""
        kind, now = self._kind(level, text), self._clock()
        if not (kind.bucket.has(1, now) and self._pay(len(text) + LINE_OVERHEAD, now)):
            kind.left_out += 1
            return None
        kind.bucket.take(1, now)
        left_out, kind.left_out = kind.left_out, 0
        return f"{text} ({left_out} lines like this were left out)" if left_out else text

    def take_left_out(self) -> int:
        """The number of lines that were left out and not reported yet; from now on they count as
        reported."""
        total, self._forgotten = self._forgotten, 0
        for kind in self._kinds.values():
            total, kind.left_out = total + kind.left_out, 0
        return total

    def _pay(self, size: int, now: float) -> bool:
        if not all(bucket.has(size, now) for bucket in self._buckets):
            return False
        return all(bucket.take(size, now) for bucket in self._buckets)

    def _kind(self, level: str, text: str) -> _Kind:
        key = level, _VARIABLE.sub("#", text[: 4 * KIND_CHARACTERS])[:KIND_CHARACTERS]
        kind = self._kinds.pop(key, None) or _Kind(Bucket(self._lines))
        self._kinds[key] = kind
        if len(self._kinds) > KINDS:
            oldest = self._kinds.pop(next(iter(self._kinds)))
            self._forgotten += oldest.left_out
        return kind
