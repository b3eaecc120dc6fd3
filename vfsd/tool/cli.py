# SPDX-License-Identifier: Apache-2.0
"""The vfsd command: the operator's tool. One row of COMMANDS for each subcommand."""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NoReturn

from vfsd import __version__
from vfsd.tool import mount
from vfsd.transport.errors import OperatorError

INTERRUPTED: Final = 130  # as a shell says "ended by SIGINT"


@dataclass(frozen=True)
class Command:
    """A subcommand: what it is for, its options, and what runs it and returns the exit status."""

    name: str
    summary: str
    add_options: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


COMMANDS: Final = (Command("mount", mount.SUMMARY, mount.add_options, mount.run),)


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        raise OperatorError(f"{message}; see {self.prog} --help", status=2)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run vfsd; returns its exit status."""
    own, passed_on = _split(sys.argv[1:] if arguments is None else arguments)
    try:
        options = _parser().parse_args(own)
        options.passed_on = passed_on
        return int(options.run(options))
    except OperatorError as error:
        print(f"vfsd: {error}", file=sys.stderr)
        return error.status
    except KeyboardInterrupt:
        return INTERRUPTED


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """What is for us and, after `--`, for the program we start."""
    own = list(arguments)
    if "--" not in own:
        return own, []
    at = own.index("--")
    return own[:at], own[at + 1 :]


def _parser() -> _Parser:
    parser = _Parser(prog="vfsd", description="Tools for virtio-fs daemons.")
    parser.add_argument("--version", action="version", version=f"vfsd {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        options = commands.add_parser(
            command.name,
            help=command.summary,
            description=command.summary,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_options(options)
        options.set_defaults(run=command.run)
    return parser


if __name__ == "__main__":
    sys.exit(main())
