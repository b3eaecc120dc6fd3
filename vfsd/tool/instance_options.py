# SPDX-License-Identifier: Apache-2.0
"""What the commands for running daemons have in common: options, exit statuses, output."""

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, Final

from vfsd.control.client import TIMEOUT, Client
from vfsd.control.instances import Instance, instance_of, only_instance
from vfsd.transport.errors import OperatorError, ProtocolError

EPILOG: Final = """\
INSTANCE is a name that vfsd list shows, or the pid beside it. Exit status: 0 if it was done, 1 if
not, 2 if the command line is wrong, 3 if there is no such instance.
"""


def add_common(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument(
        "--timeout", type=float, metavar="S", default=TIMEOUT,
        help=f"seconds to wait for an answer ({TIMEOUT:g})",
    )  # fmt: skip


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="write JSON")


def add_optional_instance(parser: argparse.ArgumentParser) -> None:
    help_text = "can be left out if there is one instance"
    parser.add_argument("instance", metavar="INSTANCE", nargs="?", help=help_text)


def add_instance(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("instance", metavar="INSTANCE", help="the instance")


def chosen(options: argparse.Namespace) -> Instance:
    """The instance that the command line means."""
    try:
        return instance_of(options.instance) if options.instance else only_instance()
    except OperatorError as error:
        raise OperatorError(str(error), status=3) from None


@contextmanager
def connected(options: argparse.Namespace, instance: Instance) -> Iterator[Client]:
    """A client of the instance; an answer that cannot be understood becomes an OperatorError."""
    with Client(instance, options.timeout) as client:
        try:
            yield client
        except ProtocolError as error:
            text = f"the answer of {instance.name} cannot be understood: {error}"
            raise OperatorError(text) from None


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2))


def as_json(value: Any) -> Any:
    """A dataclass as JSON represents it."""
    return asdict(value)


def columns(rows: list[tuple[str, ...]], left: int) -> list[str]:
    """The rows as a table, the first row being its heads. The first `left` columns, and the last,
    begin at their left edge, the other columns end at their right edge."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    last = len(widths) - 1
    return [
        "  ".join(
            cell.ljust(width) if index < left or index == last else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
