# SPDX-License-Identifier: Apache-2.0
"""How much of something is let through: token buckets, and log lines by their kind. Does no I/O.

THEORY

Purpose. Whatever a guest, a VMM or a worker that was taken over does again and again may not fill
the host's log. So each source of lines has a LineLimit, at both ends of the channel: in the worker
(LogForward), where a line that is held back costs least, and in the supervisor (LogCollector), for
the worker that was taken over and ignores its own.

Kinds. Two lines are of one kind if they have the same level and the same text but for numbers and
quoted names: so one call site has one kind, and a line about something new is let through while the
thousandth line about something old is held back. A source that makes up texts has as many kinds as
it likes: against that there are the other buckets, of the bytes of all lines of a source.

What is held back is counted, by kind for the KINDS kinds seen last and in one sum for all others.
The count goes out with the next line of the kind that is let through.
"""

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

KINDS: Final = 64  # of one source
KIND_CHARACTERS: Final = 60
LINE_OVERHEAD: Final = 40  # bytes of a line that are not its text: time, names
_VARIABLE: Final = re.compile(r"'[^']*'|\"[^\"]*\"|0x[0-9a-fA-F]+|[0-9]+")


@dataclass(frozen=True)
class Rate:
    """`burst` at once, and `per_second` more of them from then on."""

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
        """Are there as many tokens?"""
        gained = max(0.0, now - self._at) * self._rate.per_second
        self._tokens, self._at = min(self._rate.burst, self._tokens + gained), now
        return self._tokens >= tokens

    def seconds_until(self, tokens: float, now: float) -> float:
        """How long it takes until there are as many tokens; 0 if they are there."""
        return 0.0 if self.has(tokens, now) else (tokens - self._tokens) / self._rate.per_second

    def take(self, tokens: float, now: float) -> bool:
        """Take tokens; False, and none is taken, if there are fewer."""
        if not self.has(tokens, now):
            return False
        self._tokens -= tokens
        return True


LINES: Final = Rate(burst=10, per_second=1 / 60)  # of one kind
BYTES: Final = Rate(burst=8192, per_second=2048 / 60)  # of all lines of one source
GENEROUS: Final = 30  # times as much where the operator asked for debug lines


@dataclass
class _Kind:
    """Lines of one kind."""

    bucket: Bucket
    left_out: int = 0


class LineLimit:
    """Decides about the lines of one source: each kind may have `lines`, and the bytes of all must
    be there in each of `buckets`, which several sources may share."""

    def __init__(
        self,
        lines: Rate,
        buckets: Sequence[Bucket],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._lines = lines
        self._buckets = buckets
        self._clock = clock
        self._kinds: dict[tuple[str, str], _Kind] = {}  # the one seen last is the last
        self._forgotten = 0  # lines of kinds that are not known any more

    def admit(self, level: str, text: str) -> str | None:
        """The text to write, with what was left out before it; None if it is to be left out."""
        kind, now = self._kind(level, text), self._clock()
        if not (kind.bucket.has(1, now) and self._pay(len(text) + LINE_OVERHEAD, now)):
            kind.left_out += 1
            return None
        kind.bucket.take(1, now)
        left_out, kind.left_out = kind.left_out, 0
        return f"{text} ({left_out} lines like this were left out)" if left_out else text

    def take_left_out(self) -> int:
        """How many lines were left out and not reported yet; they count as reported."""
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
