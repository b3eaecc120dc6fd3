# SPDX-License-Identifier: Apache-2.0
"""Turns a command line, and the --config files that it names, into checked Options.

If an option is given twice, the last occurrence wins, as in both peers. The whole command line
counts as later than the files.
"""

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from vfsd.supervisor.config_file import read_config
from vfsd.supervisor.options import (
    NEED_XATTR,
    OPTIONS,
    Bare,
    Option,
    Options,
    default_request_queues,
)
from vfsd.supervisor.settings import Setting, closest, read_value, usage
from vfsd.transport import idmap

_LONG: Final = {name: (row, value) for row in OPTIONS for name, value in row.long.items()}
_SHORT_O: Final = {name: (row, value) for row in OPTIONS for name, value in row.short_o.items()}
# One item of an -o list, by the rules of libfuse, which the C virtiofsd uses: a backslash quotes a
# comma.
_ITEM: Final = re.compile(r"(?:[^\\,]|\\.|\\$)+", re.DOTALL)
_QUOTED: Final = re.compile(r"\\([0-3][0-7]{2}|.)", re.DOTALL)
# Options that may not be given twice with different values: that is a mistake, not an override.
_ONCE: Final = ("shared_dir", "socket_path")
_EXCLUDE_EACH_OTHER: Final = (
    ("fd", "socket_path"),
    ("fd", "socket_group"),
    ("fd", "keep_state"),
    ("connect", "fd"),
    ("connect", "socket_path"),
    ("connect", "socket_group"),
)


def parse(arguments: Sequence[str]) -> Options:
    """Turn a command line into Options, or raise OperatorError (exit status 2)."""
    ours = list(_settings(arguments))
    files = [
        setting
        for config in ours
        if config.row.field == "config"
        for setting in read_config(config.value, config.spelling)
    ]
    gathered = _Gathered({}, {})
    for source in (files, ours):
        gathered = gathered.then(source)
    options = Options(**gathered.values, given=gathered.given)
    if options.action == "serve":
        _check_conflicts(options)
        _check_required(options)
    return _with_defaults(options)


@dataclass(frozen=True)
class _Gathered:
    """The value of each field that was given, and the spelling of the option that gave it."""

    values: dict[str, Any]
    given: dict[str, str]

    def then(self, settings: Sequence[Setting]) -> "_Gathered":
        """These values overridden by `settings`."""
        values: dict[str, Any] = {}
        given: dict[str, str] = {}
        for row, spelling, value in settings:
            field = row.field
            if field == "config":
                continue
            if field in _ONCE and values.get(field, value) != value:
                raise usage(
                    f"{given[field]} and {spelling} name different paths; give only one of them"
                )
            values[field] = (*values.get(field, ()), value) if row.repeatable else value
            given[field] = spelling
        return _Gathered(self.values | values, self.given | given)


def _settings(arguments: Sequence[str]) -> Iterator[Setting]:
    """Each setting on the command line: its row, how it was spelled, its value."""
    rest = iter(arguments)
    for argument in rest:
        if argument.startswith("-o"):
            # The Rust virtiofsd takes -o=LIST as well; no item of a list begins with "=".
            value = argument[2:].removeprefix("=") or _following("-o", rest)
            for item in _ITEM.findall(value):
                yield _setting(_SHORT_O, "-o ", _QUOTED.sub(_unquote, item), iter(()))
        elif argument == "--":  # the end of the options
            for extra in rest:
                raise usage(f"unexpected argument '{extra}' after --")
        elif argument.startswith("-") and argument != "-":
            yield _setting(_LONG, "", argument, rest)
        else:
            raise usage(f"unexpected argument '{argument}'; options start with - or --")


def _unquote(match: re.Match[str]) -> str:
    text = match[1]
    return chr(int(text, 8)) if len(text) == 3 else text


def _setting(
    table: dict[str, tuple[Option, Any]], prefix: str, text: str, rest: Iterator[str]
) -> Setting:
    name, equals, value = text.partition("=")
    if name not in table:
        meant = closest(name, table)
        hint = f"did you mean {prefix}{meant}?" if meant else "see --help"
        raise usage(f"unknown option {prefix}{name}; {hint}")
    row, fixed = table[name]
    spelling = prefix + name
    if isinstance(fixed, Bare):
        return Setting(row, spelling, read_value(row, spelling, value) if equals else fixed.value)
    if fixed is not None:
        if equals:
            raise usage(f"{spelling} takes no value, but '{value}' was given")
        return Setting(row, spelling, fixed)
    return Setting(
        row, spelling, read_value(row, spelling, value if equals else _following(spelling, rest))
    )


def _following(name: str, rest: Iterator[str]) -> str:
    for value in rest:
        return value
    raise usage(f"{name} needs a value; see --help")


def _check_conflicts(options: Options) -> None:
    given = options.given
    for first, second in _EXCLUDE_EACH_OTHER:
        if first in given and second in given:
            raise usage(f"{given[first]} and {given[second]} exclude each other; give one of them")
    if options.xattr is False and (needs := _needs_xattr(options)):
        raise usage(
            f"{given[needs]} needs extended attributes, but {given['xattr']} is given;"
            " remove one of them"
        )
    for kind in ("userns", "uid_map", "gid_map"):
        if getattr(options, kind) and options.sandbox != "namespace":
            raise usage(
                f"{given[kind]} needs --sandbox=namespace, but {given['sandbox']} says"
                f" {options.sandbox}; remove one of them"
            )
    _check_migration(options)
    for kind in ("uid_map", "gid_map"):
        if kind in given:
            _check_map(options, kind)
    for kind in ("translate_uid", "translate_gid"):
        if kind in given:
            _check_translation(options, kind)


def _check_migration(options: Options) -> None:
    given = options.given
    for kind in ("migration_verify_handles", "migration_confirm_paths"):
        if getattr(options, kind) and options.migration_mode == "file-handles":
            raise usage(
                f"{given[kind]} is for paths, but {given['migration_mode']} says file-handles;"
                " remove one of them"
            )


def _needs_xattr(options: Options) -> str | None:
    """The field of an option that is on and needs extended attributes, or None."""
    fields = (name for name in NEED_XATTR if getattr(options, name) not in ("", "never"))
    return next(fields, None)


def _check_translation(options: Options, kind: str) -> None:
    spelling = options.given[kind]
    if options.posix_acl != "never":
        raise usage(
            f"{options.given['posix_acl']} and {spelling} exclude each other, since ids"
            " inside ACLs are not translated; remove one of them"
        )
    try:
        idmap.combine(getattr(options, kind))
    except ValueError as error:
        raise usage(f"{spelling}: {error}") from None


def _check_map(options: Options, kind: str) -> None:
    spelling, ranges = options.given[kind], getattr(options, kind)
    for what, at in (("inside", 0), ("outside", 1)):
        spans = sorted((r[at], r[at] + r[2]) for r in ranges)
        if any(end > start for (_, end), (start, _) in itertools.pairwise(spans)):
            raise usage(f"{spelling}: two ranges overlap {what}")
    if not any(inside == 0 for inside, _, _ in ranges):
        raise usage(f"{spelling}: no range begins with INSIDE 0, the id that the workers run as")


def _check_required(options: Options) -> None:
    if options.shared_dir is None:
        raise usage("no directory to share; give --shared-dir=DIR or -o source=DIR")
    if options.socket_path is None and options.fd is None and options.connect is None:
        raise usage("no socket; give --socket-path=PATH, --fd=N or --connect=PATH")


def _with_defaults(options: Options) -> Options:
    """Fill in the defaults that depend on other options or on this machine."""
    queues = options.request_queues or default_request_queues()
    cached = options.cache != "never"
    return replace(
        options,
        request_queues=queues,
        workers=min(queues, options.workers or queues),
        xattr=bool(options.xattr) or _needs_xattr(options) is not None,
        readdirplus=cached if options.readdirplus is None else options.readdirplus,
        syslog=options.daemonize if options.syslog is None else options.syslog,
    )
