# SPDX-License-Identifier: Apache-2.0
"""The command line of virtiofsd: one table of options, read in both peers' spellings.

QEMU's C virtiofsd takes most options as `-o name=value,name,no_name`, the Rust one as `--name
value`. A row of OPTIONS has both, so either command line starts this daemon. The last occurrence
wins, as in both peers. What is not in the table is refused: nothing is parsed and then ignored.
"""

import difflib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from vfsd.transport.errors import OperatorError

MAX_REQUEST_QUEUES: Final = 64
MAX_THREADS: Final = 1024
MAX_FILES: Final = 1 << 30
MAX_POLL_US: Final = 1_000_000
POLL_AUTO: Final = -1
RLIMIT_DEFAULT: Final = -1
SECONDS_MAX: Final = 10 * 365 * 86400.0


@dataclass(frozen=True)
class Options:
    """What the operator asked for, checked. None: not given, the default depends on something."""

    shared_dir: str | None = None
    socket_path: str | None = None
    fd: int | None = None
    socket_group: str | None = None
    tag: str | None = None
    keep_listening: bool = False
    request_queues: int = 0  # 0: default_request_queues()
    workers: int = 0  # 0: one per request queue
    poll_us: int = POLL_AUTO
    thread_pool_size: int = 16
    rlimit_nofile: int = RLIMIT_DEFAULT  # 0: leave it
    sandbox: str = "namespace"
    seccomp: str = "kill"
    modcaps: str = ""
    log_level: str = "info"
    syslog: bool = False
    cache: str = "auto"
    timeout: float | None = None
    xattr: bool | None = None
    posix_acl: bool = False
    readdirplus: bool | None = None
    writeback: bool = False
    allow_direct_io: bool = False
    allow_mmap: bool = False
    announce_submounts: bool = True
    killpriv_v2: bool = False
    flock: bool = False
    posix_lock: bool = False
    readonly: bool = False
    inode_file_handles: str = "never"
    preserve_noatime: bool = False
    action: str = "serve"  # or "help", "version", "capabilities"
    given: dict[str, str] = field(default_factory=dict, compare=False)  # field -> its spelling


@dataclass(frozen=True)
class Option:
    """One option. `long`, `short_o`: each spelling and the value it sets, None if it takes one."""

    field: str
    long: dict[str, Any]
    short_o: dict[str, Any]
    help: str
    metavar: str = ""
    read: Callable[[str], Any] = str


def _choice(*names: str, **aliases: str) -> Callable[[str], str]:
    def read(value: str) -> str:
        value = aliases.get(value.lower(), value.lower())
        if value not in names:
            raise ValueError(f"is not one of {', '.join(names)}")
        return value

    return read


def _number(low: int, high: int) -> Callable[[str], int]:
    def read(value: str) -> int:
        if not re.fullmatch(r"[0-9]{1,18}", value) or not low <= int(value) <= high:
            raise ValueError(f"is not a whole number from {low} to {high}")
        return int(value)

    return read


def _poll(value: str) -> int:
    return POLL_AUTO if value == "auto" else _number(0, MAX_POLL_US)(value)


def _seconds(value: str) -> float:
    if not re.fullmatch(r"[0-9]{1,12}(\.[0-9]{0,9})?", value) or float(value) > SECONDS_MAX:
        raise ValueError("is not a number of seconds, 0 or more")
    return float(value)


def _path(value: str) -> str:
    if not value or "\0" in value:
        raise ValueError("is not a path")
    return value


def _tag(value: str) -> str:
    if not 1 <= len(value.encode(errors="surrogateescape")) <= 36:
        raise ValueError("is not 1 to 36 bytes long")
    value.encode()  # UnicodeEncodeError is a ValueError
    return value


def _modcaps(value: str) -> str:
    if not re.fullmatch(r"([+-][A-Za-z_]+)(:[+-][A-Za-z_]+)*", value):
        raise ValueError("is not a list like +sys_admin:-chown")
    return value.lower()


def _switch(name: str, help_text: str) -> Option:
    """An on-off option in all four spellings."""
    o = name.replace("-", "_")
    return Option(
        o, {f"--{name}": True, f"--no-{name}": False}, {o: True, f"no_{o}": False}, help_text
    )


OPTIONS: Final = (
    Option("shared_dir", {"--shared-dir": None}, {"source": None},
           "directory to share (required)", "DIR", _path),
    Option("socket_path", {"--socket-path": None, "--socket": None}, {},
           "unix socket to listen on for the VMM", "PATH", _path),
    Option("fd", {"--fd": None}, {},
           "inherited socket instead, listening or connected", "N", _number(0, 1 << 20)),
    Option("socket_group", {"--socket-group": None}, {},
           "group that may connect to the socket", "GROUP"),
    Option("tag", {"--tag": None}, {},
           "tag of the share, for a VMM that reads it from us (crosvm)", "TAG", _tag),
    Option("keep_listening", {"--keep-listening": True}, {},
           "accept the next VMM when one goes away"),
    Option("request_queues", {"--request-queues": None}, {},
           "request queues offered (default: the larger of 8 and the CPUs)", "N",
           _number(1, MAX_REQUEST_QUEUES)),
    Option("workers", {"--workers": None}, {},
           "worker processes at the most (default: one per request queue)", "N",
           _number(1, MAX_REQUEST_QUEUES)),
    Option("poll_us", {"--poll-us": None}, {},
           "microseconds an idle worker polls before it sleeps: auto (default), 0: never",
           "auto|N", _poll),
    Option("thread_pool_size", {"--thread-pool-size": None}, {},
           "requests that may wait for storage at a time, in each worker (default 16)", "N",
           _number(0, MAX_THREADS)),
    Option("rlimit_nofile", {"--rlimit-nofile": None}, {},
           "open files at the most (default 1000000 or what is allowed; 0: leave it)", "N",
           _number(0, MAX_FILES)),
    Option("sandbox", {"--sandbox": None}, {"sandbox": None},
           "how the workers are locked in: namespace (default), chroot, none", "MODE",
           _choice("namespace", "chroot", "none")),
    Option("seccomp", {"--seccomp": None}, {},
           "what a forbidden system call does: kill (default), log, trap; none: no filter",
           "ACTION",
           _choice("kill", "log", "trap", "none")),
    Option("modcaps", {"--modcaps": None}, {"modcaps": None},
           "capabilities to add and remove, as +name:-name", "LIST", _modcaps),
    Option("log_level", {"--log-level": None, "-d": "debug"},
           {"log_level": None, "loglevel": None, "debug": "debug"},
           "error, warn, info (default) or debug; -d is debug", "LEVEL",
           _choice("error", "warn", "info", "debug", err="error", warning="warn")),
    Option("syslog", {"--syslog": True}, {}, "log to syslog, not to stderr"),
    Option("foreground", {"-f": True}, {}, "stay in the foreground, which it always does"),
    Option("cache", {"--cache": None}, {"cache": None},
           "what the guest may cache: never, metadata, auto (default), always", "MODE",
           _choice("never", "metadata", "auto", "always", none="never")),
    Option("timeout", {"--timeout": None}, {"timeout": None},
           "seconds for which names and attributes are valid (default: by cache mode)", "S",
           _seconds),
    Option("inode_file_handles", {"--inode-file-handles": None}, {"inode_file_handles": None},
           "hold inodes by file handles instead of fds: never (default), prefer, mandatory", "MODE",
           _choice("never", "prefer", "mandatory", fallback="prefer")),
    _switch("xattr", "extended attributes"),
    _switch("posix-acl", "POSIX ACLs; turns xattr on"),
    _switch("readdirplus", "names and attributes in one request (default, unless cache=never)"),
    _switch("writeback", "the guest may delay writes (write-back cache)"),
    _switch("allow-direct-io", "pass O_DIRECT on to the host file system"),
    Option("allow_mmap", {"--allow-mmap": True}, {"allow_mmap": True},
           "shared mmap also of files the guest does not cache"),
    _switch("announce-submounts", "mount points inside the share are mount points in the guest"
            " (default)"),
    _switch("killpriv-v2", "the host clears set-id bits and capabilities on writes"),
    _switch("flock", "flock() locks hold on the host, too"),
    _switch("posix-lock", "fcntl() locks hold on the host, too"),
    Option("readonly", {"--readonly": True}, {"readonly": True}, "refuse every change (EROFS)"),
    Option("preserve_noatime", {"--preserve-noatime": True}, {},
           "pass O_NOATIME on to the host file system"),
    Option("action", {"--print-capabilities": "capabilities"}, {},
           "print what this program can do as JSON, for libvirt"),
    Option("action", {"-h": "help", "--help": "help"}, {}, "print this"),
    Option("action", {"-V": "version", "--version": "version"}, {}, "print the version"),
)  # fmt: skip

_LONG: Final = {name: (row, value) for row in OPTIONS for name, value in row.long.items()}
_SHORT_O: Final = {name: (row, value) for row in OPTIONS for name, value in row.short_o.items()}


def default_request_queues() -> int:
    return min(MAX_REQUEST_QUEUES, max(8, os.cpu_count() or 1))


def parse(arguments: Sequence[str]) -> Options:
    """Turn a command line into Options, or raise OperatorError (exit status 2)."""
    values: dict[str, Any] = {}
    given: dict[str, str] = {}
    for row, spelling, value in _settings(arguments):
        if row.field in ("shared_dir", "socket_path") and values.get(row.field, value) != value:
            raise _usage(
                f"{given[row.field]} and {spelling} name different paths; give only one of them"
            )
        values[row.field] = value
        given[row.field] = spelling
    values.pop("foreground", None)
    options = Options(**values, given=given)
    if options.action == "serve":
        _check_conflicts(options)
        _check_required(options)
    return _with_defaults(options)


def _settings(arguments: Sequence[str]) -> Iterator[tuple[Option, str, Any]]:
    """Each setting on the command line: its row, how it was spelled, its value."""
    rest = iter(arguments)
    for argument in rest:
        if argument == "-o" or (argument.startswith("-o") and not argument.startswith("--")):
            text = argument[2:] or _following("-o", rest)
            for item in filter(None, text.split(",")):
                yield _setting(_SHORT_O, "-o ", item, iter(()))
        elif argument.startswith("-") and argument != "-":
            yield _setting(_LONG, "", argument, rest)
        else:
            raise _usage(f"unexpected argument '{argument}'; options start with - or --")


def _setting(
    table: dict[str, tuple[Option, Any]], prefix: str, text: str, rest: Iterator[str]
) -> tuple[Option, str, Any]:
    name, equals, value = text.partition("=")
    if name not in table:
        close = difflib.get_close_matches(name, table, 1)
        hint = f"did you mean {prefix}{close[0]}?" if close else "see --help"
        raise _usage(f"unknown option {prefix}{name}; {hint}")
    row, fixed = table[name]
    spelling = prefix + name
    if fixed is not None:
        if equals:
            raise _usage(f"{spelling} takes no value, but '{value}' was given")
        return row, spelling, fixed
    if not equals:
        value = _following(spelling, rest)
    try:
        return row, spelling, row.read(value)
    except UnicodeEncodeError:
        raise _usage(f"{spelling}: the value is not UTF-8") from None
    except ValueError as error:
        raise _usage(f"{spelling}: '{value}' {error}") from None


def _following(name: str, rest: Iterator[str]) -> str:
    for value in rest:
        return value
    raise _usage(f"{name} needs a value; see --help")


def _check_conflicts(options: Options) -> None:
    given = options.given
    for first, second in (("fd", "socket_path"), ("fd", "socket_group")):
        if first in given and second in given:
            raise _usage(f"{given[first]} and {given[second]} exclude each other; give one of them")
    if options.posix_acl and options.xattr is False:
        raise _usage(
            f"{given['posix_acl']} needs extended attributes, but {given['xattr']} is given;"
            " remove one of them"
        )


def _check_required(options: Options) -> None:
    if options.shared_dir is None:
        raise _usage("no directory to share; give --shared-dir=DIR or -o source=DIR")
    if options.socket_path is None and options.fd is None:
        raise _usage("no socket; give --socket-path=PATH or --fd=N")


def _with_defaults(options: Options) -> Options:
    """Fill in the defaults that depend on other options or on this machine."""
    queues = options.request_queues or default_request_queues()
    cached = options.cache != "never"
    return replace(
        options,
        request_queues=queues,
        workers=min(queues, options.workers or queues),
        xattr=bool(options.xattr) or options.posix_acl,
        readdirplus=cached if options.readdirplus is None else options.readdirplus,
    )


def _usage(text: str) -> OperatorError:
    return OperatorError(text, status=2)


CACHE_SECONDS: Final = {"never": 0.0, "auto": 1.0, "metadata": 86400.0, "always": 86400.0}


def cache_timeout(options: Options) -> float:
    """Seconds for which the guest may trust names and attributes."""
    return CACHE_SECONDS[options.cache] if options.timeout is None else options.timeout


def instance_name(options: Options, socket_name: str | bytes) -> str:
    """What processes and log lines are called after: the socket's file name without its suffix."""
    path = options.socket_path or os.fsdecode(socket_name)
    stem = Path(path).stem if path and not path.startswith("\0") else f"fd{options.fd}"
    return "".join(c if c.isprintable() else "?" for c in stem)


def help_text() -> str:
    """The text of --help, made from the table."""
    lines = [
        "Usage: virtiofsd --socket-path=PATH --shared-dir=DIR [OPTION]...",
        "       virtiofsd --socket-path=PATH -o source=DIR[,OPTION]...",
        "Share a directory with a virtual machine (virtio-fs over vhost-user).",
        "",
    ]
    for row in OPTIONS:
        suffix = f"={row.metavar}" if row.metavar else ""
        spellings = [n + (suffix if v is None else "") for n, v in row.long.items()]
        spellings += [f"-o {n}" + (suffix if v is None else "") for n, v in row.short_o.items()]
        lines += ["  " + ", ".join(spellings), "        " + row.help]
    return "\n".join(lines) + "\n"
