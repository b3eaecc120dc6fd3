# SPDX-License-Identifier: Apache-2.0
"""One setting of one option, from the command line or a file, and the errors of reading it."""

from collections.abc import Iterable
from typing import Any, NamedTuple

from vfsd.supervisor.options import Option
from vfsd.transport.errors import OperatorError
from vfsd.transport.xattrmap import XattrmapError


class Setting(NamedTuple):
    """One setting. `spelling`: what the operator wrote, for messages about the setting."""

    row: Option
    spelling: str
    value: Any


def usage(text: str) -> OperatorError:
    return OperatorError(text, status=2)


def closest(name: str, names: Iterable[str]) -> str | None:
    """The name among `names` that is most like `name`; None if none is like it."""
    import difflib  # noqa: PLC0415 - only an error needs it

    return next(iter(difflib.get_close_matches(name, names, 1)), None)


def read_value(row: Option, spelling: str, value: str) -> Any:
    """Read the value of an option; OperatorError if the option does not accept the value."""
    try:
        return row.read(value)
    except XattrmapError as error:  # not with the value, which may have many lines
        raise usage(f"{spelling}: {error}") from None
    except UnicodeEncodeError:
        raise usage(f"{spelling}: the value is not UTF-8") from None
    except ValueError as error:
        raise usage(f"{spelling}: '{value}' {error}") from None
