# SPDX-License-Identifier: Apache-2.0
"""The supervisor's event loop: callbacks for fds and for every turn, and waiting for a condition.

There is one thread and one flow of control: code that needs an answer calls wait(), which calls the
callbacks until the answer has come. A callback must not call wait() itself.
"""

import math
import selectors
import signal
import socket
import time
from collections.abc import Callable, Iterable


class StopError(Exception):
    """This process must end: a signal asked for the end, or there is no VMM left to serve."""


class EventLoop:
    def __init__(self) -> None:
        self._selector = selectors.PollSelector()  # without an fd, see clones.py
        self._ready: set[int] = set()
        self._every_turn: list[Callable[[], float]] = []
        self._stop = False

    def stop_on(self, signals: Iterable[int]) -> None:
        """Unblock these signals; turn() raises StopError once one of them has arrived."""
        reader, writer = socket.socketpair()
        reader.setblocking(False)
        writer.setblocking(False)
        self._wakeup = (reader, writer)
        signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        for number in signals:
            signal.signal(number, self._on_signal)
        self.register(reader.fileno(), lambda: None)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)

    def _on_signal(self, _number: int, _frame: object) -> None:
        self._stop = True

    def register(self, fd: int, callback: Callable[[], None]) -> None:
        """Call `callback` in each turn in which `fd` is readable."""
        self._selector.register(fd, selectors.EVENT_READ, callback)

    def unregister(self, fd: int) -> None:
        self._selector.unregister(fd)

    def every_turn(self, callback: Callable[[], float]) -> None:
        """Call `callback` in each turn. It returns the number of seconds after which it must be
        called again (math.inf: not before another event)."""
        self._every_turn.append(callback)

    def no_more_turns(self, callback: Callable[[], float]) -> None:
        """Stop calling a callback that was passed to every_turn()."""
        self._every_turn.remove(callback)

    def turn(self, seconds: float = math.inf) -> None:
        """Wait for events for at most `seconds`, and call the callbacks of the fds that are
        readable."""
        soon = min((callback() for callback in self._every_turn), default=math.inf)
        limit = max(0.0, min(seconds, soon))
        events = self._selector.select(None if limit == math.inf else limit)
        if self._stop:
            raise StopError
        for key, _ in events:
            if key.fd in self._selector.get_map():  # an earlier callback may have unregistered it
                key.data()

    def wait(self, condition: Callable[[], bool], seconds: float | None = None) -> bool:
        """Turn until `condition()` holds; False if it does not hold after `seconds`."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while not condition():
            left = math.inf if deadline is None else deadline - time.monotonic()
            if left <= 0:
                return False
            self.turn(left)
        return True

    def wait_readable(self, fd: int, or_else: Callable[[], bool] = lambda: False) -> bool:
        """Turn until `fd` is readable, or `or_else()` holds; returns whether `fd` is readable."""
        seen: list[int] = []
        self.register(fd, lambda: seen.append(fd))
        try:
            self.wait(lambda: bool(seen) or or_else())
        finally:
            self.unregister(fd)
        return bool(seen)
