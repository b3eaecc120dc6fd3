# SPDX-License-Identifier: Apache-2.0
"""The completion that bash offers for a command line, made from the tables of options:
contrib/completion."""

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


def _options_of(command: str) -> str:
    parser = argparse.ArgumentParser(usage="")
    COMMANDS[command].add_options(parser)
    parser.usage = parser.epilog = ""
    return " ".join(_LONG.findall(parser.format_help()))
