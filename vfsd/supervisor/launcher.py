# SPDX-License-Identifier: Apache-2.0
"""The launcher: the one process of the trusted half that keeps its privileges; it starts pools.

THEORY

Purpose. Making a pool needs privileges: for namespaces, for the user's share, for newuidmap. The
supervisor, which reads what a VMM and what a sandbox send, has no privileges (confinement.py). So a
third process keeps the privileges, and no input says to that process what to do with them.

Actors. The keeper forks the launcher before any input can be read, and gives the launcher the
options and the fd of the shared directory. The keeper then closes that fd and gives up its own
privileges. The launcher executes the template of the pools, in which everything that a worker needs
is imported (templates.py). A supervisor asks the launcher for a pool, and the template forks the
pool's first process. That process is a child of the launcher; it forks the holder and exits. The
launcher is the child subreaper, so it is the parent of the holder from then on. Every process of a
sandbox is in the session of the launcher, also when keepers, supervisors and launchers have come
and gone.

Invariants. A request has a kind, a number that comes back in the answer, and fds. The fds of
MAKE_POOL are, in this order, those named in POOL_FDS, one per worker slot, and the tables of a lost
pool if the new pool takes its place. Each fd is checked to be of the kind that its name says. The
answer has a pidfd of the pool's first process. The fd of KILL is such a pidfd: a process that has
just been forked does not allow signals from the supervisor yet (isolation.py). RENEW has no fds:
the next pool is made from another template. The fd of NAME_KEEPER is the pidfd of a process with
the user id of the keeper; the pid file names this process from then on. CONNECT has no fds: the
launcher connects to the VMM of --connect and answers with the connection. The supervisor sends no
path, option or text; the fds of any other request are closed, and the request is refused. An answer
is the number of the request and 0 or an errno. So a supervisor that was taken over can start pools
that share this directory with these options, can end them, can have templates executed, can connect
to this VMM, can name another process of its own user id as the keeper, and can do nothing else
here.

Ownership. The launcher has an fd table of its own, with the standard fds, its end of the socket
pair, its end of the template's, the shared directory, the job of the pools, the pid file, and the
lock of --keep-state=DIR: these locks therefore last until everything has been cleaned up. The fds
of a request are closed when the pool has been started. The other end of the socket pair is in the
fd table of keeper and supervisor, so it is closed when both are gone.

Death. When the other end of the socket pair is closed, the share has ended: the launcher kills what
is left of the sandboxes, removes the socket file and the runtime folder, which no other process may
do, ends its deputy, and exits. A supervisor may die between a request and its answer: its successor
ignores an answer with an unknown number, and the pool ends because no process has the other end of
its channel. If the launcher dies, its deputy takes its place (succession.py). The client of a
request that the launcher had asks again; a pool that the launcher may have begun by then ends for
the same reason. If both die at once, the share goes on, and the next pool cannot be made.

No exec. The launcher does not set no_new_privs, because newuidmap would inherit it.
"""

import errno
import os
import re
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final, NoReturn

from vfsd.supervisor.descendants import (
    Process,
    await_end,
    has_ended,
    of_session,
    pid_of,
    process_of,
)
from vfsd.supervisor.launcher_record import LauncherRecord
from vfsd.supervisor.launcher_requests import Action, LauncherGoneError, Requests, serve
from vfsd.supervisor.loader import copy_loader
from vfsd.supervisor.options import Options
from vfsd.supervisor.pid_file import PidFile
from vfsd.supervisor.pool_job import create_job
from vfsd.supervisor.spawn import reap_by_itself
from vfsd.supervisor.succession import Succession
from vfsd.supervisor.templates import Template, Templates
from vfsd.transport.fd_table import close_all_but
from vfsd.transport.native import lib
from vfsd.transport.passed_fds import close_fds

# The isolation of the pool is as with -I: see spawn.py. -S: modules that *.pth files of an
# installation import would stay in the memory of each worker.
POOL_COMMAND: Sequence[str] = (sys.executable, "-P", "-S", "-m", "vfsd.worker")
MAKE_POOL, KILL, NAME_KEEPER, CONNECT, RENEW = 1, 2, 3, 4, 5
END_SECONDS: Final = 5.0


class Launcher:
    """The launcher as keeper and supervisor see it: the session that it has begun, `fd`, their end
    of its socket pair, and what it reports about itself."""

    def __init__(self, pid: int, fd: int, record: LauncherRecord) -> None:
        self.session = pid
        self.fd = fd
        self.record = record
        self._requests = Requests(fd, lambda: record.deaths)

    @classmethod
    def start(
        cls,
        name: str,
        options: Options,
        root: int,
        supervisor: int,
        clean_up: Callable[[], None],
        pid_file: PidFile | None,
        locks: Sequence[int],
    ) -> "Launcher":
        """Fork the launcher. It owns `root` and `locks` from here on, and calls `clean_up` at its
        end. `supervisor`: the user id that keeper and supervisor will have. `locks`: the fds of the
        pid file and of the folder of --keep-state."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        record = LauncherRecord()
        pid = os.fork()
        if pid == 0:
            kept = {root, theirs.fileno(), *locks}
            end = theirs.detach()
            _be_launcher(name, options, root, supervisor, end, clean_up, pid_file, record, kept)
        theirs.close()
        close_fds([root, *locks])
        return cls(pid, ours.detach(), record)

    def start_pool(self, fds: Sequence[int]) -> int:
        """Ask for a pool with `fds` (POOL_FDS, then one listener per worker slot, then no tables or
        TABLES_BEFORE tables of a pool that was lost). Returns the number of the request, for
        first_process(). Raises LauncherGoneError if there is no launcher."""
        return self._requests.send(MAKE_POOL, fds)

    def first_process(self, number: int) -> int | None:
        """A pidfd of the first process of the pool that was asked for with this number, which the
        caller owns; None as long as there is no answer: `fd` is readable when there is one.

        Raises OSError if that process could not be started, LauncherGoneError if there is no
        launcher.
        """
        fds = self._requests.answer(number)
        return fds[0] if fds else None

    def forget(self, number: int) -> None:
        """The answer to this request is not waited for any more."""
        self._requests.forget(number)

    def sandboxed(self) -> list[Process]:
        """The processes of all sandboxes, and those that are still to become one, which have not
        ended; empty if there is no launcher, since another session may have the id then."""
        found = of_session(self.session)
        own = self.own_pids()
        if self.is_lost():
            return []
        return [p for p in found if p.pid not in own and not p.has_ended()]

    def own_pids(self) -> set[int]:
        """The launcher, which may not have written its record yet, its deputy and the template."""
        return self.record.pids() | {self.session}

    def is_lost(self) -> bool:
        """Have launcher and deputy died?"""
        poll = select.poll()
        poll.register(self.fd, 0)
        return any(events & select.POLLHUP for _, events in poll.poll(0))

    def connect(self) -> int:
        """Ask for a connection to the VMM of --connect; returns its fd, which the caller owns.
        Raises OSError if the VMM does not accept it, and LauncherGoneError."""
        return self._requests.ask(CONNECT, [])[0]

    def kill(self, pidfd: int) -> None:
        """Send SIGKILL, also to the first process of a pool, which needs the launcher's
        privileges. No effect if the process or the launcher is gone."""
        try:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        except PermissionError:
            with suppress(OSError, LauncherGoneError):
                self._requests.ask(KILL, [pidfd])
        except ProcessLookupError:
            pass

    def name_keeper(self, pidfd: int) -> None:
        """Have the pid file name the keeper that `pidfd` refers to."""
        self._requests.send_only(NAME_KEEPER, [pidfd])

    def renew_template(self) -> None:
        """Have the next pool made from another template, with other addresses."""
        self._requests.send_only(RENEW, [])

    def end(self) -> None:
        """Close the socket and wait until the launcher has cleaned up and ended, and its deputy."""
        is_lost = self.is_lost()  # then other processes may have the pids
        os.close(self.fd)
        deadline = time.monotonic() + END_SECONDS
        while not is_lost and (left := self._own()):
            if (seconds := deadline - time.monotonic()) <= 0:
                break
            await_end(left[:1], seconds)
        with suppress(ChildProcessError):  # a keeper that was created later is not its parent
            os.waitpid(self.session, os.WNOHANG)

    def _own(self) -> list[Process]:
        """Launcher, deputy and template, as far as they live. The first launcher may not have begun
        its session yet."""
        found = []
        for pid in self.own_pids():
            with suppress(OSError):
                process = process_of(pid)
                if self.session in (pid, process.session) and process.state not in "ZX":
                    found.append(process)
        return found


# In the launcher.


def _be_launcher(
    name: str,
    options: Options,
    root: int,
    supervisor: int,
    sock: int,
    clean_up: Callable[[], None],
    pid_file: PidFile | None,
    record: LauncherRecord,
    kept: Collection[int],
) -> NoReturn:
    try:
        close_all_but({0, 1, 2, *kept})
        reap_by_itself()
        if os.geteuid() != 0:  # execve(2) gives root its capabilities again
            lib.capabilities_pass_on()  # if this fails, the pool reports what it lacks
        loader = copy_loader(POOL_COMMAND[0])
        requests = socket.socket(fileno=sock)
        passed = (create_job(name, options, supervisor, root), root)
        title = _longest_title(name, options.request_queues)
        execute = partial(Template.execute, list(POOL_COMMAND), loader, passed, title)
        templates = Templates(requests, options.workers, execute, record.note_template)

        def begin_template() -> None:
            with suppress(OSError):  # the first request for a pool reports it
                templates.renew()

        succession = Succession(name, record, templates.leave, begin_template)
        succession.begin()
        begin_template()
        lib.process_forget_code()
        actions: dict[int, Action] = {
            MAKE_POOL: templates.start_pool,
            KILL: partial(_kill, lambda pid: succession.owns(pid) or templates.is_template(pid)),
            NAME_KEEPER: partial(_name_keeper, pid_file, supervisor),
            CONNECT: partial(_connect, options.connect),
            RENEW: templates.renew,
        }
        serve(requests, actions, partial(_await_request, requests, templates, succession))
        templates.end()
        _kill_sandboxes(succession.owns)
        clean_up()
        succession.end()
    except BaseException as error:
        os.write(2, f"vfsd: {name}: launcher: {error!r}\n".encode(errors="backslashreplace"))
    finally:
        os._exit(0)


def _await_request(requests: socket.socket, templates: Templates, succession: Succession) -> None:
    """Wait for a request, and replace the template and the deputy when they die."""
    ready: set[int] = set()
    while requests.fileno() not in ready:
        ready = succession.await_readable(lambda: [requests.fileno(), *templates.fds()])
        templates.tend(ready)


def _connect(path: str | None, fds: Sequence[int]) -> list[int]:
    """Connect to the VMM that listens at `path`; OSError if that is not possible at once. A
    symbolic link is not followed: a user with access to the VMM's folder could have the launcher,
    which may be root, connect to any socket of the host."""
    if path is None or fds:
        raise OSError(errno.EINVAL, "CONNECT is for --connect, and has no fds")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.setblocking(False)  # a backlog that is full must not hold up the launcher
        place = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            sock.connect(f"/proc/self/fd/{place}")
        finally:
            os.close(place)
        return [sock.detach()]


def _kill(owns: Callable[[int], bool], fds: Sequence[int]) -> list[int]:
    """Kill the process of a pidfd. OSError (EINVAL) unless the process is of a pool: it is of our
    session, and not launcher, deputy or template."""
    pid = _pid_of(fds)
    is_inside = process_of(pid).session == os.getsid(0) or pid in {p.pid for p in _session()}
    if not is_inside or owns(pid):
        raise OSError(errno.EINVAL, "the fd of KILL is not the pidfd of a process of a sandbox")
    signal.pidfd_send_signal(fds[0], signal.SIGKILL)
    return []


def _name_keeper(pid_file: PidFile | None, user: int, fds: Sequence[int]) -> list[int]:
    """Write the pid of the process of a pidfd into the pid file. OSError (EINVAL) unless the
    process is alive and runs as `user`: a tool will end the process that the file names."""
    pid = _pid_of(fds)
    if _real_user(pid) != user:
        raise OSError(errno.EINVAL, "the fd of NAME_KEEPER is not the pidfd of a keeper")
    if pid_file and not has_ended(fds[0]):
        pid_file.write(pid)
    return []


def _real_user(pid: int) -> int:
    found = re.search(r"^Uid:\t(\d+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return int(found[1]) if found else -1


def _pid_of(fds: Sequence[int]) -> int:
    """The pid of the process of the one pidfd in `fds`; OSError (EINVAL) if there is no such
    process."""
    if len(fds) != 1:
        raise OSError(errno.EINVAL, f"the request has {len(fds)} fds; expected a pidfd")
    return pid_of(fds[0])


def _kill_sandboxes(owns: Callable[[int], bool]) -> None:
    """Kill what is left of the sandboxes. A process that a hung file system keeps from ending is
    not waited for: it has been killed, so it will not run any more code of the program."""
    killed: set[int] = set()
    while left := [p for p in _session() if not owns(p.pid) and p.pid not in killed]:
        for process in left:
            process.kill()
        killed |= {process.pid for process in left}


def _longest_title(name: str, queues: int) -> str:
    """The title of a worker that serves all queues."""
    return f"vfsd: {name} worker {queues} (hiprio{', queue 99' * queues})"


def _session() -> list[Process]:
    return of_session(os.getsid(0))
