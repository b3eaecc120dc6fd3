# SPDX-License-Identifier: Apache-2.0
"""The vfsd command: the operator's tool. One row of COMMANDS for each subcommand."""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NoReturn

from vfsd import __version__
from vfsd.tool import (
    bench_command,
    list_command,
    logs_command,
    mount_command,
    status_command,
    top_command,
    upgrade_command,
)
from vfsd.tool import change_commands as change
from vfsd.transport.errors import OperatorError

INTERRUPTED: Final = 130  # the status by which a shell reports "ended by SIGINT"


@dataclass(frozen=True)
class Command:
    """A subcommand: its summary, its options, and the function that runs it and returns the exit
    status."""

    name: str
    summary: str
    add_options: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


COMMANDS: Final = {
    command.name: command
    for command in (
        Command("list", list_command.SUMMARY, list_command.add_options, list_command.run),
        Command("status", status_command.SUMMARY, status_command.add_options, status_command.run),
        Command("top", top_command.SUMMARY, top_command.add_options, top_command.run),
        Command("logs", logs_command.SUMMARY, logs_command.add_options, logs_command.run),
        Command("set", change.SET_SUMMARY, change.add_set_options, change.set_),
        Command("worker", change.WORKER_SUMMARY, change.add_worker_options, change.worker),
        Command("stop", change.STOP_SUMMARY, change.add_stop_options, change.stop),
        Command("mount", mount_command.SUMMARY, mount_command.add_options, mount_command.run),
        Command(
            "upgrade", upgrade_command.SUMMARY, upgrade_command.add_options, upgrade_command.run
        ),
        Command("bench", bench_command.SUMMARY, bench_command.add_options, bench_command.run),
    )
}


class _Parser(argparse.ArgumentParser):
    """An argument parser that reports an error in one line."""

    def error(self, message: str) -> NoReturn:
        raise OperatorError(f"{message}; see {self.prog} --help", status=2)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run vfsd; return its exit status."""
    own, passed_on = _split(sys.argv[1:] if arguments is None else arguments)
    try:
        command = COMMANDS[_parser().parse_args(own[:1]).command]
        options = _command_parser(command).parse_intermixed_args(own[1:])
        options.passed_on = passed_on
        return command.run(options)
    except OperatorError as error:
        print(f"vfsd: {error}", file=sys.stderr)
        return error.status
    except KeyboardInterrupt:
        return INTERRUPTED


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split off the arguments after `--`, which are for the program that we start."""
    own = list(arguments)
    if "--" not in own:
        return own, []
    at = own.index("--")
    return own[:at], own[at + 1 :]


def _parser() -> _Parser:
    parser = _Parser(
        prog="vfsd",
        usage="vfsd COMMAND [ARGUMENT...]",
        description="Tools for virtio-fs daemons.",
        epilog="commands:\n"
        + "".join(f"  {name:<12}{command.summary}\n" for name, command in COMMANDS.items())
        + "\nvfsd COMMAND --help says more.\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"vfsd {__version__}")
    parser.add_argument("command", metavar="COMMAND", choices=COMMANDS, help=argparse.SUPPRESS)
    return parser


def _command_parser(command: Command) -> _Parser:
    parser = _Parser(
        prog=f"vfsd {command.name}",
        description=f"{command.summary[0].upper()}{command.summary[1:]}.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_options(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
