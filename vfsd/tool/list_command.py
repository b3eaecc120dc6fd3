# SPDX-License-Identifier: Apache-2.0
"""`vfsd list`: the daemons of this host."""

import argparse
import pwd
import shlex
from dataclasses import asdict
from typing import Final

from vfsd.control.instances import Instance, instances
from vfsd.tool.instance_options import add_json, columns, print_json

SUMMARY: Final = "list the running virtio-fs daemons of this host"


def add_options(parser: argparse.ArgumentParser) -> None:
    add_json(parser)
    parser.add_argument(
        "--names", action="store_true", help="write the names alone, as words for a shell"
    )


def run(options: argparse.Namespace) -> int:
    """List; 0 also if there are none."""
    found = instances()
    if options.json:
        print_json([asdict(one) for one in found])
    elif options.names:
        print(*map(word_for, found), sep="\n", end="\n" if found else "")
    elif found:
        rows = [(one.name, str(one.pid), user_name(one.uid)) for one in found]
        print(*columns([("NAME", "PID", "USER"), *rows], 1), sep="\n")
    return 0


def word_for(instance: Instance) -> str:
    """The word for an instance that a shell may put into a command line: its pid if its name has a
    character with a meaning in a shell. Any user of the host can have processes of any name, and a
    shell expands the words that completion offers."""
    name = instance.name
    is_plain = shlex.quote(name) == name and not name.startswith("-")
    return name if is_plain else str(instance.pid)


def user_name(uid: int) -> str:
    """The name of a user, or the number of a user without a name."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
