# SPDX-License-Identifier: Apache-2.0
"""The virtiofsd command: checks what it was asked to do, prepares it, and becomes the keeper."""

import json
import os
import resource
import shutil
import stat
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from vfsd import __version__
from vfsd.supervisor.keeper import hold_signals, keep
from vfsd.supervisor.listener import Listener, open_listener
from vfsd.supervisor.log_collector import LogCollector, SyslogSink, stderr_sink
from vfsd.supervisor.options import (
    RLIMIT_DEFAULT,
    Options,
    help_text,
    instance_name,
    parse,
)
from vfsd.supervisor.resume import Outbox, StateFile, open_fds
from vfsd.supervisor.service import Boot, supervise
from vfsd.transport.errors import OperatorError

CAPABILITIES: Final = {"type": "fs", "features": ["separate-options"]}  # libvirt's words
FILES_WANTED: Final = 1_000_000
FILES_KERNEL: Final = Path("/proc/sys/fs/nr_open")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run virtiofsd; returns its exit status."""
    try:
        options = parse(sys.argv[1:] if arguments is None else arguments)
        if options.action != "serve":
            return _print(options.action)
        return _serve(options)
    except OperatorError as error:
        print(f"virtiofsd: {error}", file=sys.stderr)
        return error.status


def _print(action: str) -> int:
    texts = {
        "help": help_text(),
        "version": f"virtiofsd {__version__} (vfsd)\n",
        "capabilities": json.dumps(CAPABILITIES) + "\n",
    }
    sys.stdout.write(texts[action])
    return 0


def _serve(options: Options) -> int:
    _fill_standard_fds()
    options = replace(options, shared_dir=check_shared_dir(options))
    _raise_file_limit(options)
    hold_signals()  # from here on there is a socket file to be removed
    listener = open_listener(options)
    runtime_dir = _make_runtime_dir(listener)
    try:
        boot = _boot(options, listener, runtime_dir)
        say = lambda level, text: boot.log.write(level, text, "keeper")  # noqa: E731
        return keep(boot.name, lambda is_successor: supervise(boot, is_successor), say)
    finally:
        shutil.rmtree(runtime_dir, ignore_errors=True)
        listener.remove()


def _boot(options: Options, listener: Listener, runtime_dir: str) -> Boot:
    name = instance_name(options, listener.socket.getsockname())
    sink = SyslogSink() if options.syslog else stderr_sink
    state, outbox = StateFile.create(), Outbox.create()
    return Boot(
        name=name,
        options=options,
        listener=listener,
        runtime_dir=runtime_dir,
        state=state,
        outbox=outbox,
        kept_fds=frozenset(open_fds()),
        log=LogCollector(name, options.log_level, sink),
    )


def _fill_standard_fds() -> None:
    """Make sure that 0, 1 and 2 are open, so that no socket or file of ours gets their number."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)


def check_shared_dir(options: Options) -> str:
    """The absolute path of the directory to share, or an OperatorError."""
    path = options.shared_dir
    assert path is not None
    what = f"{options.given['shared_dir']}: '{path}'"
    try:
        mode = os.lstat(path.rstrip("/") or "/").st_mode
    except FileNotFoundError:
        raise OperatorError(f"{what} does not exist; create the directory first") from None
    except OSError as error:
        raise OperatorError(f"{what}: {error.strerror}") from None
    if stat.S_ISLNK(mode):
        target = os.path.realpath(path)
        raise OperatorError(f"{what} is a symbolic link; give the directory itself: '{target}'")
    if not stat.S_ISDIR(mode):
        raise OperatorError(f"{what} is not a directory; only directories can be shared")
    return os.path.realpath(path)


def _raise_file_limit(options: Options) -> None:
    """Allow as many open files as asked for; everything started from here inherits it."""
    wanted = options.rlimit_nofile
    if wanted == 0:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if wanted == RLIMIT_DEFAULT:
        most = min(FILES_WANTED, int(FILES_KERNEL.read_text()))
        if not _set_file_limit(max(soft, most), max(hard, most)):
            _set_file_limit(hard, hard)
    elif not _set_file_limit(wanted, max(hard, wanted)):
        raise OperatorError(
            f"--rlimit-nofile: {wanted} open files are not allowed here (limit {hard}); give a"
            " smaller number, or raise the limit of whoever starts virtiofsd"
        )


def _set_file_limit(soft: int, hard: int) -> bool:
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    except (ValueError, OSError):
        return False
    return True


def _make_runtime_dir(listener: Listener) -> str:
    """A folder of our own for the sockets of the workers: of systemd's choice, or temporary."""
    parent = os.environ.get("RUNTIME_DIRECTORY", "").split(":")[0] or None
    try:
        return tempfile.mkdtemp(prefix="vfsd-", dir=parent)
    except OSError as error:
        listener.remove()
        raise OperatorError(
            f"cannot make a folder for sockets in '{parent or tempfile.gettempdir()}':"
            f" {error.strerror}; point TMPDIR at one that is writable"
        ) from None


if __name__ == "__main__":
    sys.exit(main())
