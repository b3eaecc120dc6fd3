# SPDX-License-Identifier: Apache-2.0
"""The completion that shells offer for a command line, made from the tables of options and
commands: contrib/completion."""

import argparse
import re
from typing import Final

from vfsd.supervisor.option_values import Choice
from vfsd.supervisor.options import OPTIONS, Bare, Option
from vfsd.tool.commands import COMMANDS

# The kind of a value, given by its name in the manual -> an argument of compgen.
_KINDS: Final = {"DIR": "-d", "PATH": "-f", "FILE": "-f", "GROUP": "-g"}
_LONG: Final = re.compile(r"^ +(?:-\w, )?(--[a-z-]+)", re.MULTILINE)


def values() -> str:
    """For each option of virtiofsd whose values are known: the arguments of compgen."""
    return "".join(
        f'        [{name}]="{arguments}"\n'
        for row in OPTIONS
        if (arguments := _arguments(row))
        for name, value in row.long.items()
        if name.startswith("--") and (value is None or isinstance(value, Bare))
    )


def _arguments(row: Option) -> str:
    if isinstance(row.read, Choice):
        return f"-W '{' '.join(row.read.names)}'"
    return _KINDS.get(row.metavar, "")


def options() -> str:
    """The long options of virtiofsd, each with "=" if it needs a value."""
    return "".join(
        f"        {name}{'=' if value is None else ''}\n"
        for row in OPTIONS
        for name, value in row.long.items()
        if name.startswith("--")
    )


def commands() -> str:
    """The options of each command of vfsd."""
    return "".join(f"        [{name}]='{_options_of(name)}'\n" for name in COMMANDS)


def words() -> str:
    """The words that each command for running daemons takes, beside the names of instances."""
    return "".join(
        f"        [{name}]='{_words_of(name)}'\n" for name in COMMANDS if _is_named(name)
    )


def fish() -> str:
    """The commands in fish, each with its options and words."""
    return "".join(map(_fish, COMMANDS))


def _fish(name: str) -> str:
    within = f"complete -c vfsd -n '__fish_seen_subcommand_from {name}'"
    lines = [f"complete -c vfsd -f -n __fish_use_subcommand -a {name} -d '{_summary(name)}'"]
    lines += [f"{within} -l {option.removeprefix('--')}" for option in _options_of(name).split()]
    if _is_named(name):
        names = "(vfsd list --names 2>/dev/null)"
        lines.append(f'{within} -f -a "{f"{names} {_words_of(name)}".strip()}"')
    return "\n".join(lines) + "\n"


def _summary(command: str) -> str:
    return COMMANDS[command].summary.replace("'", "\\'")


def _arguments_of(command: str) -> list[argparse.Action]:
    """The arguments of a command that are not options."""
    parser = _parser_of(command)
    actions = parser._actions  # noqa: SLF001 - argparse has no other way to ask
    return [action for action in actions if not action.option_strings]


def _is_named(command: str) -> bool:
    return any(action.dest == "instance" for action in _arguments_of(command))


def _words_of(command: str) -> str:
    return " ".join(word for action in _arguments_of(command) for word in action.choices or ())


def _parser_of(command: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(usage="")
    COMMANDS[command].add_options(parser)
    return parser


def _options_of(command: str) -> str:
    parser = _parser_of(command)
    parser.usage = parser.epilog = ""
    return " ".join(_LONG.findall(parser.format_help()))
