# SPDX-License-Identifier: Apache-2.0
"""Serves a share on a socket that listens already: starts the launcher, makes the objects that all
supervisors need, and becomes the keeper."""

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from vfsd.supervisor.background import Background, daemonize
from vfsd.supervisor.boot import Boot
from vfsd.supervisor.clones import run
from vfsd.supervisor.confinement import confine, own_id
from vfsd.supervisor.control_record import ControlRecord
from vfsd.supervisor.control_socket import ControlSocket
from vfsd.supervisor.device import DeviceSegment
from vfsd.supervisor.instance import instance_key, instance_name
from vfsd.supervisor.keeper import Keeper
from vfsd.supervisor.keeping import Keeping
from vfsd.supervisor.kept_vm import Kept
from vfsd.supervisor.launcher import Launcher
from vfsd.supervisor.listener import Listener
from vfsd.supervisor.log_collector import LogCollector, Say, SyslogSink, stderr_sink
from vfsd.supervisor.options import MIGRATION, Options
from vfsd.supervisor.outliving import outlive, pass_on_pending
from vfsd.supervisor.resume import Outbox, StateFile, open_fds
from vfsd.supervisor.signals import hold_signals
from vfsd.supervisor.supervise import supervise
from vfsd.supervisor.systemd import ServiceManager
from vfsd.transport.errors import OperatorError
from vfsd.transport.native import check, lib
from vfsd.transport.process_title import setproctitle

if TYPE_CHECKING:
    from vfsd.supervisor.takeover import Takeover


def serve(
    options: Options,
    root: int,
    listener: Listener,
    kept: Kept | None,
    notes: Sequence[str],
    takeover: "Takeover | None" = None,
    key: int | None = None,
) -> int:
    """Serve the directory behind the fd `root`; returns the exit status. `kept`: None
    without --keep-state. `notes`: warnings for the log. `takeover`: a daemon that serves, and whose
    place this one is to take, and the `key` of its brokers (succession.py)."""
    name = instance_name(options, listener.socket)
    runtime_dir = _make_runtime_dir(listener)
    clean_up = partial(_clean_up, listener, runtime_dir)
    try:
        is_first = takeover is None
        background = daemonize(not options.syslog) if options.daemonize and is_first else None
        if (pid_file := listener.pid_file) and is_first:
            pid_file.write(os.getpid())  # again: daemonize() has changed the pid
        control = _control(runtime_dir)
        inherited = takeover.user if takeover else None
        own = own_id(runtime_dir.path, instance_key(options, listener.socket), inherited)
        give_up = partial(confine, runtime_dir.path, own, options)
        keeping = Keeping.start(name, options, give_up, kept) if kept else None
        if keeping and takeover:
            keeping = replace(keeping, is_heir=True)
        locks = [pid_file.fd] if pid_file else []
        if kept and kept.lock is not None:
            locks.append(kept.lock)
        launcher = Launcher.start(name, options, root, own, clean_up, pid_file, locks, key)
    except BaseException:
        clean_up(takeover is None)
        raise
    launched = os.getpid()
    try:
        manager = ServiceManager.of_environment()  # before _boot(), which notes what is open
        boot = _boot(name, options, launcher, listener, background, keeping, control, takeover)

        def say(level: str, text: str) -> None:
            boot.log.write(level, text, "keeper")

        for note in notes:
            say("warn", note)
        _say_what_is_missing(options, control, say)
        if keeping and keeping.note:
            say(*keeping.note)
        keeper = Keeper(
            name=name,
            launcher=launcher,
            state=boot.state,
            supervise=partial(supervise, boot),
            manager=manager,
            give_up_after=options.give_up_after,
            is_successor=keeping is not None and keeping.vm is not None,
            is_heir=takeover is not None,
            say=say,
        )
        setproctitle(f"vfsd: {name} keeper")
        check(lib.process_become_subreaper())  # for the sandboxes of a launcher that dies
        hold_signals()
        give_up(say)
        status = run(keeper.first)
    finally:
        launcher.end()  # the launcher cleans up
    if keeper.is_handed_over():
        return outlive(name) if takeover is None and os.getpid() == launched else pass_on_pending()
    return status


def _say_what_is_missing(options: Options, control: ControlSocket | None, say: Say) -> None:
    if control is None:
        say("warn", "no socket for operators can be made; vfsd status will not work")
    if unused := [spelling for field, spelling in options.given.items() if field in MIGRATION]:
        say("debug", f"no migration is offered, so these have no effect: {', '.join(unused)}")


def _boot(
    name: str,
    options: Options,
    launcher: Launcher,
    listener: Listener,
    background: Background | None,
    keeping: Keeping | None,
    control: ControlSocket | None,
    takeover: "Takeover | None",
) -> Boot:
    sink = SyslogSink() if options.syslog else stderr_sink
    if background and options.syslog:
        sink = background.sink(sink)
    vm = keeping.vm if keeping else None
    state = vm.state if vm else StateFile.create()
    outbox = vm.outbox if vm else Outbox.create()
    device = DeviceSegment(state.next_generation)
    record = ControlRecord(takeover.log_level if takeover else options.log_level)
    holder = keeping.daemon if keeping else None
    return Boot(
        name=name,
        options=options,
        launcher=launcher,
        listener=listener,
        state=state,
        outbox=outbox,
        store=keeping.store(state, outbox) if keeping else None,
        holder=holder.fileno() if holder else None,
        device=device,
        kept_fds=frozenset(open_fds())
        - (vm.fds if vm else frozenset())
        - (takeover.fds() if takeover else frozenset()),
        takeover=takeover,
        log=LogCollector(name, options.log_level, sink),
        control=control,
        control_record=record,
        report_ready=background.ready if background else lambda: None,
    )


def _control(runtime_dir: "RuntimeDir") -> ControlSocket | None:
    """The socket for operators. A share is served without it where it cannot be made."""
    with suppress(OSError):
        return ControlSocket.create(runtime_dir.path)
    return None


@dataclass(frozen=True)
class RuntimeDir:
    """The folder of the workers' sockets. `identity`: its st_dev and st_ino."""

    path: str
    identity: tuple[int, int]


def _make_runtime_dir(listener: Listener) -> RuntimeDir:
    """Make a folder for the sockets of the workers, in the first place that is writable."""
    # The module tempfile, with its imports, would take 0.4 MiB in keeper and supervisor.
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
        f"cannot make a folder for sockets in {', '.join(failed)}; point TMPDIR at a folder that"
        " is writable"
    )


def _places(listener: Listener) -> list[Path]:
    """The places to try: those that systemd or the operator names (RUNTIME_DIRECTORY, TMPDIR), then
    temporary folders, and last the folder of the VMM's socket, where a file could be made already.
    In a container /tmp may be read-only, and the tool that starts the daemon may pass on a TMPDIR
    that is not there."""
    runtime = os.environ.get("RUNTIME_DIRECTORY", "").split(":")[0]
    named = (runtime, os.environ.get("TMPDIR"), "/tmp", os.environ.get("XDG_RUNTIME_DIR"))
    found = (*named, "/run", "/dev/shm", _folder_of(listener))
    return [Path(place).absolute() for place in found if place]


def _folder_of(listener: Listener) -> str | None:
    """The folder of the VMM's socket, which may have been passed as an fd; None if the socket is
    not in a folder."""
    path = listener.path or ""
    if not path and listener.socket:
        path = os.fsdecode(listener.socket.getsockname())
    return str(Path(path).parent) if path.startswith("/") else None


def _clean_up(listener: Listener, runtime_dir: RuntimeDir, owns_files: bool) -> None:
    """Remove the runtime folder. `owns_files`: the socket and the pid file as well."""
    with suppress(OSError):  # at the end of the process an error has no further consequence
        _remove(runtime_dir)
    if owns_files:
        listener.remove()


def _remove(folder: RuntimeDir) -> None:
    """Remove the folder with its content, unless another folder has been put in its place: this
    process may be root, and the folder belongs to another user."""
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
