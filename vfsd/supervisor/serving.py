# SPDX-License-Identifier: Apache-2.0
"""From a socket that listens to the end of the share: prepares all, and becomes the keeper."""

import os
import signal
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from vfsd.supervisor.background import Background, daemonize
from vfsd.supervisor.boot import Boot
from vfsd.supervisor.confinement import confine, own_id
from vfsd.supervisor.device import DeviceSegment
from vfsd.supervisor.instance import instance_key, instance_name
from vfsd.supervisor.keeper import keep
from vfsd.supervisor.launcher import Launcher
from vfsd.supervisor.listener import Listener
from vfsd.supervisor.log_collector import LogCollector, SyslogSink, stderr_sink
from vfsd.supervisor.options import MIGRATION, Options
from vfsd.supervisor.resume import Outbox, StateFile, open_fds
from vfsd.supervisor.service import supervise
from vfsd.supervisor.signals import READY
from vfsd.supervisor.systemd import ReadyNotifier
from vfsd.transport.errors import OperatorError


def serve(options: Options, root: int, listener: Listener, notes: Sequence[str]) -> int:
    """Serve `root`, an fd; returns the exit status. `notes`: warnings for the log."""
    name = instance_name(options, listener.socket)
    runtime_dir = _make_runtime_dir(listener)
    clean_up = partial(_clean_up, listener, runtime_dir)
    try:
        background = daemonize(not options.syslog) if options.daemonize else None
        held = []
        if pid_file := listener.pid_file:
            pid_file.write()  # again, as it may be another pid by now
            held.append(pid_file.fd)
        own = own_id(runtime_dir.path, instance_key(options, listener.socket))
        launcher = Launcher.start(name, options, root, own, clean_up, held)
    except BaseException:
        clean_up()
        raise
    try:
        notifier = ReadyNotifier()  # before _boot(), which notes the fds that stay open
        boot = _boot(name, options, launcher, listener, background)

        def say(level: str, text: str) -> None:
            boot.log.write(level, text, "keeper")

        for note in notes:
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


@dataclass(frozen=True)
class RuntimeDir:
    """The folder of the workers' sockets, and which file it is: st_dev, st_ino."""

    path: str
    identity: tuple[int, int]


def _make_runtime_dir(listener: Listener) -> RuntimeDir:
    """A folder of our own for the sockets of the workers, in the first place that is writable."""
    # Not by tempfile: with all that it imports it would take 0.4 MiB in keeper and supervisor.
    name = f"vfsd-{os.urandom(4).hex()}"
    failed = []
    for parent in _places(listener):
        folder = parent / name
        try:
            folder.mkdir(0o700)
            made = folder.lstat()
        except OSError as error:
            failed.append(f"'{parent}' ({error.strerror})")
        else:
            return RuntimeDir(str(folder), (made.st_dev, made.st_ino))
    listener.remove()
    raise OperatorError(
        f"cannot make a folder for sockets in {', '.join(failed)}; point TMPDIR at one that is"
        " writable"
    )


def _places(listener: Listener) -> list[Path]:
    """Where the folder may be: where systemd or the operator says; or temporary, or beside the
    VMM's socket, where a file could be made already. In a container /tmp may be read-only."""
    chosen = os.environ.get("RUNTIME_DIRECTORY", "").split(":")[0] or os.environ.get("TMPDIR")
    if chosen:
        return [Path(chosen).absolute()]
    own = Path(listener.path).parent if listener.path else None
    found = ("/tmp", os.environ.get("XDG_RUNTIME_DIR"), "/run", own)
    return [Path(place) for place in found if place]


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
