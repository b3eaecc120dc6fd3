# SPDX-License-Identifier: Apache-2.0
"""The virtiofsd command: checks what it was asked to do, prepares it, and becomes the keeper."""

import json
import os
import signal
import stat
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

from vfsd import __version__
from vfsd.supervisor.background import Background, daemonize
from vfsd.supervisor.command_line import parse
from vfsd.supervisor.confinement import confine, own_id
from vfsd.supervisor.device import DeviceSegment
from vfsd.supervisor.file_limit import set_file_limit
from vfsd.supervisor.keeper import READY, hold_signals, keep
from vfsd.supervisor.launcher import Launcher
from vfsd.supervisor.listener import Listener, open_listener
from vfsd.supervisor.log_collector import LogCollector, SyslogSink, stderr_sink
from vfsd.supervisor.options import MIGRATION, Options, help_text, instance_name
from vfsd.supervisor.resume import Outbox, StateFile, open_fds
from vfsd.supervisor.service import Boot, supervise
from vfsd.supervisor.systemd import ReadyNotifier
from vfsd.transport.errors import OperatorError

# libvirt's words: options are separate from -o; --posix-acl and --security-label have modes.
# libvirt does not migrate a domain without "migrate-precopy".
CAPABILITIES: Final = {
    "type": "fs",
    "features": [
        "separate-options",
        "posix-acl-negotiation-mode",
        "security-label-negotiation-mode",
    ],
}
ID_MAP_PROGRAMS: Final = {"uid_map": "newuidmap", "gid_map": "newgidmap"}


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
    root = open_shared_dir(options)
    _check_ids(options)
    _check_cpus(options)
    notes = [_note_of_mount(options, root), set_file_limit(options)]
    hold_signals()  # from here on there is a socket file to be removed
    listener = open_listener(options)
    name = instance_name(options, listener.socket.getsockname())
    runtime_dir = _make_runtime_dir(listener)
    clean_up = partial(_clean_up, listener, runtime_dir)
    try:
        background = daemonize(not options.syslog) if options.daemonize else None
        held = []
        if pid_file := listener.pid_file:
            pid_file.write()  # again, as it may be another pid by now
            held.append(pid_file.fd)
        own = own_id(runtime_dir.path)
        launcher = Launcher.start(name, options, root, own, clean_up, held)
    except BaseException:
        clean_up()
        raise
    try:
        notifier = ReadyNotifier()  # before _boot(), which notes the fds that stay open
        boot = _boot(name, options, launcher, listener, background)

        def say(level: str, text: str) -> None:
            boot.log.write(level, text, "keeper")

        for note in filter(None, notes):
            say("warn", note)
        if unused := [spelling for field, spelling in options.given.items() if field in MIGRATION]:
            say("debug", f"without effect, as no migration is offered: {', '.join(unused)}")
        give_up = partial(confine, runtime_dir.path, own, options, say)
        return keep(name, launcher, give_up, partial(supervise, boot), notifier.notify, say)
    finally:
        launcher.end()  # it cleans up


def _boot(
    name: str,
    options: Options,
    launcher: Launcher,
    listener: Listener,
    background: Background | None,
) -> Boot:
    sink = SyslogSink() if options.syslog else stderr_sink
    if background and options.syslog:
        sink = background.sink(sink)
    state, outbox = StateFile.create(), Outbox.create()
    device = DeviceSegment(state.next_generation)
    keeper = os.pidfd_open(os.getpid())

    def tell_ready() -> None:
        signal.pidfd_send_signal(keeper, READY)
        if background:
            background.ready()

    return Boot(
        name=name,
        options=options,
        launcher=launcher,
        listener=listener,
        state=state,
        outbox=outbox,
        device=device,
        kept_fds=frozenset(open_fds()),
        log=LogCollector(name, options.log_level, sink),
        tell_ready=tell_ready,
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
        mode = os.lstat(path).st_mode  # of "link/" the directory that the link leads to
    except FileNotFoundError:
        raise OperatorError(f"{what} does not exist; create the directory first") from None
    except OSError as error:
        raise OperatorError(f"{what}: {error.strerror}") from None
    if stat.S_ISLNK(mode):
        target = os.path.realpath(path)
        raise OperatorError(
            f"{what} is a symbolic link; give the directory itself, '{target}', or '{path}/'"
        )
    if not stat.S_ISDIR(mode):
        raise OperatorError(f"{what} is not a directory; only directories can be shared")
    return os.path.realpath(path)


def open_shared_dir(options: Options) -> int:
    """The directory whose path check_shared_dir() has returned, as an O_PATH fd.

    It is opened this once: every pool gets the fd, so whoever may rename a folder on the way to it
    cannot choose what a later VMM is given.
    """
    assert options.shared_dir is not None
    try:
        return os.open(options.shared_dir, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        what = f"{options.given['shared_dir']}: '{options.shared_dir}'"
        raise OperatorError(f"{what}: {error.strerror}") from None


def _note_of_mount(options: Options, root: int) -> str | None:
    """A service whose unit protects the host's files finds out here that the share is one."""
    if options.readonly or not os.fstatvfs(root).f_flag & os.ST_RDONLY:
        return None
    return (
        f"'{options.shared_dir}' is mounted read-only, so the guest can change nothing; a service"
        " needs BindPaths= (systemd.exec(5)) for a share outside of /srv; if it is meant, give"
        " --readonly"
    )


def _check_ids(options: Options) -> None:
    """Who is not root needs programs of the package uidmap for maps of ids."""
    if os.geteuid() == 0 or (not options.uid_map and not options.gid_map):
        return
    import shutil  # noqa: PLC0415 - few have maps

    ours = {"uid_map": os.geteuid(), "gid_map": os.getegid()}
    for kind, program in ID_MAP_PROGRAMS.items():
        ranges = getattr(options, kind)
        is_own_alone = ranges in ((), ((0, ours[kind], 1),))
        if not is_own_alone and not shutil.which(program, path=os.defpath):
            raise OperatorError(
                f"{options.given[kind]} needs the program {program}; install the package uidmap"
            )


def _check_cpus(options: Options) -> None:
    missing = sorted(set(options.queue_cpus) - os.sched_getaffinity(0))
    if missing:
        raise OperatorError(
            f"{options.given['queue_cpus']}: CPU {missing[0]} is not there, or not for this"
            " process; see taskset(1), or the service's cpuset"
        )


@dataclass(frozen=True)
class RuntimeDir:
    """The folder of the workers' sockets, and which file it is: st_dev, st_ino."""

    path: str
    identity: tuple[int, int]


def _make_runtime_dir(listener: Listener) -> RuntimeDir:
    """A folder of our own for the sockets of the workers: of systemd's choice, or temporary."""
    chosen = os.environ.get("RUNTIME_DIRECTORY", "").split(":")[0]
    parent = Path(chosen or os.environ.get("TMPDIR") or "/tmp").absolute()
    # Not by tempfile: with all that it imports it would take 0.4 MiB in keeper and supervisor.
    folder = parent / f"vfsd-{os.urandom(4).hex()}"
    try:
        folder.mkdir(0o700)
        made = folder.lstat()
    except OSError as error:
        listener.remove()
        raise OperatorError(
            f"cannot make a folder for sockets in '{parent}':"
            f" {error.strerror}; point TMPDIR at one that is writable"
        ) from None
    return RuntimeDir(str(folder), (made.st_dev, made.st_ino))


def _clean_up(listener: Listener, runtime_dir: RuntimeDir) -> None:
    """Remove what a share has in the file system."""
    with suppress(OSError):  # whatever is left, this is the end
        _remove(runtime_dir)
    listener.remove()


def _remove(folder: RuntimeDir) -> None:
    """Remove the folder with all that is in it; nothing that was put in its place, since who does
    this may be root and the folder belongs to somebody else."""
    fd = os.open(folder.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        found = os.fstat(fd)
        if (found.st_dev, found.st_ino) != folder.identity:
            return
        for name in os.listdir(fd):  # noqa: PTH208 - pathlib knows no folder by its fd
            os.unlink(name, dir_fd=fd)
    finally:
        os.close(fd)
    Path(folder.path).rmdir()


if __name__ == "__main__":
    sys.exit(main())
