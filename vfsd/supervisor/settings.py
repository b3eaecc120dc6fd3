# SPDX-License-Identifier: Apache-2.0
"""One setting of one option, wherever it was read, and the errors of reading it."""

from collections.abc import Iterable
from typing import Any, NamedTuple

from vfsd.supervisor.options import Option
from vfsd.transport.errors import OperatorError
from vfsd.transport.xattrmap import XattrmapError


class Setting(NamedTuple):
    """`spelling`: what the operator wrote, for messages about it."""

    row: Option
    spelling: str
    value: Any


def usage(text: str) -> OperatorError:
    return OperatorError(text, status=2)


def closest(name: str, names: Iterable[str]) -> str | None:
    """Which of `names` was perhaps meant."""
    import difflib  # noqa: PLC0415 - only an error needs it

    return next(iter(difflib.get_close_matches(name, names, 1)), None)


def read_value(row: Option, spelling: str, value: str) -> Any:
    """The value of a row's option; OperatorError if it has not got such values."""
    try:
        return row.read(value)
    except XattrmapError as error:  # it says where; the value may have many lines
        raise usage(f"{spelling}: {error}") from None
    except UnicodeEncodeError:
        raise usage(f"{spelling}: the value is not UTF-8") from None
    except ValueError as error:
        raise usage(f"{spelling}: '{value}' {error}") from None
