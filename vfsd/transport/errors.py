# SPDX-License-Identifier: Apache-2.0
"""The kinds of error that cross a module boundary (OSError also does, and stays OSError)."""


class ProtocolError(Exception):
    """The peer broke a protocol: its message cannot be obeyed. The session or the vring stops."""


class TruncatedError(ProtocolError):
    """The peer has closed the connection in the middle of a message."""


class SetupError(ProtocolError):
    """The setup that the peer made cannot work: a guest would wait for ever. Never ignored."""


class OperatorError(Exception):
    """A failure that only the operator can mend. One line: what, on which object, what to do.

    `status` is the exit status of the process that reports it: 2 for a wrong command line, else 1.
    """

    def __init__(self, text: str, status: int = 1) -> None:
        super().__init__(text)
        self.status = status


def describe(error: BaseException) -> str:
    """An exception in one line, made without reading source files."""
    where = []
    trace = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        where.append(f"{code.co_name}:{trace.tb_lineno}")
        trace = trace.tb_next
    return f"{type(error).__name__}: {error} (in {' > '.join(where) or 'nothing'})"
