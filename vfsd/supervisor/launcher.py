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
launcher is the child subreaper, so it is the parent of the holder from then on: every process of a
sandbox is a descendant of the launcher, also when keepers and supervisors have come and gone.

Invariants. A request has a kind, a number that comes back in the answer, and fds. The fds of
MAKE_POOL are, in this order, those named in POOL_FDS, one per worker slot, and the tables of a lost
pool if the new pool takes its place. Each fd is checked to be of the kind that its name says. The
answer has a pidfd of the pool's first process. The fd of KILL is such a pidfd: a process that has
just been forked does not allow signals from the supervisor yet (isolation.py). RENEW has no fds:
the next pool is made from another template. The fd of NAME_KEEPER is the pidfd of a process with
the user id of the keeper; the pid file names this process from then on. CONNECT has no fds: the
launcher connects to the VMM of --connect and answers with the connection. START_HEIR and HAND_OVER
are for an upgrade (succession.py). The supervisor sends no path, option or text; the fds of any
other request are closed, and the request is refused. An answer is the number of the request and 0
or an errno. So a supervisor that was taken over can start pools that share this directory with
these options, can end them, can have templates executed, can connect to this VMM, can start the
installed version with this command line, can leave the socket file in its place, can name another
process of its own user id as the keeper, and can do nothing else here.

Ownership. The launcher has an fd table of its own, with the standard fds, its end of the socket
pair, its end of the template's, the shared directory, the job of the pools, the pid file, and the
lock of --keep-state=DIR: these locks therefore last until everything has been cleaned up. The fds
of a request are closed when the pool has been started. The other end of the socket pair is in the
fd table of keeper and supervisor, so it is closed when both are gone.

Death. When the other end of the socket pair is closed, the share has ended: the launcher kills what
is left of the sandboxes, removes the socket file and the runtime folder, which no other process may
do, and exits. A supervisor may
die between a request and its answer: its successor ignores an answer with an unknown number, and
the pool ends because no process has the other end of its channel. If the launcher dies, the share
goes on; the next pool cannot be made.

No exec. The launcher does not set no_new_privs, because newuidmap would inherit it.
"""

import errno
import os
import re
import signal
import socket
import sys
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final, NoReturn

from vfsd.supervisor.descendants import Process, descendants, has_ended, pid_of, process_of
from vfsd.supervisor.launcher_record import LauncherRecord
from vfsd.supervisor.launcher_requests import Action, LauncherGoneError, Requests, serve
from vfsd.supervisor.loader import copy_loader
from vfsd.supervisor.options import Options
from vfsd.supervisor.pid_file import PidFile
from vfsd.supervisor.pool_job import create_job
from vfsd.supervisor.spawn import reap_by_itself
from vfsd.supervisor.succession import KEY_BYTES, Succession
from vfsd.supervisor.templates import Template, Templates
from vfsd.transport.fd_table import close_all_but
from vfsd.transport.native import check, lib
from vfsd.transport.passed_fds import close_fds
from vfsd.transport.process_title import setproctitle

# The isolation of the pool is as with -I: see spawn.py. -S: modules that *.pth files of an
# installation import would stay in the memory of each worker.
POOL_COMMAND: Sequence[str] = (sys.executable, "-P", "-S", "-m", "vfsd.worker")
MAKE_POOL, KILL, NAME_KEEPER, CONNECT, RENEW, START_HEIR, HAND_OVER = 1, 2, 3, 4, 5, 6, 7
END_SECONDS: Final = 5.0


class Launcher:
    """The launcher as keeper and supervisor see it: its pid and pidfd, `fd`, their end of its
    socket pair, and `record`, what it reports about itself."""

    def __init__(self, pid: int, pidfd: int, fd: int, record: LauncherRecord) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self.fd = fd
        self.record = record
        self._requests = Requests(fd)

    @classmethod
    def start(
        cls,
        name: str,
        options: Options,
        root: int,
        supervisor: int,
        clean_up: Callable[[bool], None],
        pid_file: PidFile | None,
        locks: Sequence[int],
        key: int | None = None,
    ) -> "Launcher":
        """Fork the launcher. It owns `root` and `locks` from here on, and calls `clean_up` at its
        end. `supervisor`: the user id that keeper and supervisor will have. `locks`: the fds of the
        pid file and of the folder of --keep-state. `key`: a pipe with the key of the brokers of
        a daemon that serves still and owns socket file and pid file; no keeper reads it."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        record = LauncherRecord()
        pid = os.fork()
        if pid == 0:
            kept = {root, theirs.fileno(), *locks}
            end = theirs.detach()
            secret = os.urandom(KEY_BYTES) if key is None else os.read(key, KEY_BYTES)
            succession = Succession(root, supervisor, locks, secret, owns_files=key is None)
            _be_launcher(name, options, end, clean_up, pid_file, record, kept, succession)
        theirs.close()
        close_fds([root, *locks, *([] if key is None else [key])])
        return cls(pid, os.pidfd_open(pid), ours.detach(), record)

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

    def descendants(self) -> list[Process]:
        """The processes of all sandboxes; empty if the launcher is gone."""
        found = descendants(self.pid)
        if has_ended(self.pidfd):  # otherwise it was alive while we looked
            return []
        return [process for process in found if process.pid not in self.own_pids()]

    def own_pids(self) -> set[int]:
        """The pids of the launcher and of its template: they belong to no sandbox."""
        return {self.pid, self.record.template}

    def connect(self) -> int:
        """Ask for a connection to the VMM of --connect; returns its fd, which the caller owns.
        Raises OSError if the VMM does not accept it, and LauncherGoneError."""
        return self._requests.ask(CONNECT, [])[0]

    def start_heir(self, sock: int) -> int:
        """Start the version that is to take our place (succession.py), with its socket to us;
        returns a pidfd. Raises OSError if it could not be started, and LauncherGoneError."""
        return self._requests.ask(START_HEIR, [sock])[0]

    def hand_over(self) -> None:
        """The heir serves: leave the socket file and the pid file to it."""
        with suppress(OSError, LauncherGoneError):
            self._requests.ask(HAND_OVER, [])

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

    def take_files(self, keeper: int) -> None:
        """As name_keeper(), and wait until the launcher owns the socket file and the pid file."""
        with suppress(OSError, LauncherGoneError):
            self._requests.ask(NAME_KEEPER, [keeper])

    def name_keeper(self, pidfd: int) -> None:
        """Have the pid file name the keeper that `pidfd` refers to."""
        self._requests.send_only(NAME_KEEPER, [pidfd])

    def renew_template(self) -> None:
        """Have the next pool made from another template, with other addresses."""
        self._requests.send_only(RENEW, [])

    def end(self) -> None:
        """Close the socket and wait until the launcher has cleaned up and ended."""
        os.close(self.fd)
        has_ended(self.pidfd, END_SECONDS)
        with suppress(ChildProcessError):  # a keeper that was created later is not its parent
            os.waitpid(self.pid, os.WNOHANG)


# In the launcher.


def _be_launcher(
    name: str,
    options: Options,
    sock: int,
    clean_up: Callable[[bool], None],
    pid_file: PidFile | None,
    record: LauncherRecord,
    kept: Collection[int],
    succession: Succession,
) -> NoReturn:
    try:
        close_all_but({0, 1, 2, *kept})
        setproctitle(f"vfsd: {name} launcher")
        check(lib.process_become_subreaper())
        reap_by_itself()
        if os.geteuid() != 0:  # execve(2) gives root its capabilities again
            lib.capabilities_pass_on()  # if this fails, the pool reports what it lacks
        loader = copy_loader(POOL_COMMAND[0])
        requests = socket.socket(fileno=sock)
        passed = (create_job(name, options, succession.user, succession.root), succession.root)
        title = _longest_title(name, options.request_queues)
        execute = partial(Template.execute, list(POOL_COMMAND), loader, passed, title)
        templates = Templates(
            requests, options.workers, execute, record.note_template, succession.pass_key
        )
        with suppress(OSError):  # the first request for a pool reports it
            templates.renew()
        lib.process_forget_code()
        actions: dict[int, Action] = {
            MAKE_POOL: templates.start_pool,
            KILL: partial(_kill, templates.is_template),
            NAME_KEEPER: partial(_name_keeper, pid_file, succession),
            CONNECT: partial(_connect, options.connect),
            RENEW: templates.renew,
            START_HEIR: succession.start_heir,
            HAND_OVER: succession.hand_over,
        }
        serve(requests, actions, templates.await_request)
        templates.end()
        if not succession.is_handed_over:
            _kill_descendants()
        clean_up(succession.owns_files)
    except BaseException as error:
        os.write(2, f"vfsd: {name}: launcher: {error!r}\n".encode(errors="backslashreplace"))
    finally:
        os._exit(0)


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


def _kill(is_template: Callable[[int], bool], fds: Sequence[int]) -> list[int]:
    """Kill the process of a pidfd. OSError (EINVAL) unless the process is of a pool: a child of
    ours, and not the template."""
    pid = _pid_of(fds)
    if process_of(pid).parent != os.getpid() or is_template(pid):
        raise OSError(errno.EINVAL, "the fd of KILL is not the pidfd of a child of the launcher")
    signal.pidfd_send_signal(fds[0], signal.SIGKILL)
    return []


def _name_keeper(pid_file: PidFile | None, succession: Succession, fds: Sequence[int]) -> list[int]:
    """Write the pid of the process of a pidfd into the pid file. OSError (EINVAL) unless the
    process is alive and runs as the keeper's user: a tool will end the process that is named."""
    pid = _pid_of(fds)
    if _real_user(pid) != succession.user:
        raise OSError(errno.EINVAL, "the fd of NAME_KEEPER is not the pidfd of a keeper")
    if pid_file and not has_ended(fds[0]):
        pid_file.write(pid)
    succession.owns_files = True
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


def _kill_descendants() -> None:
    """Kill what is left of the sandboxes. A process that a hung file system keeps from ending is
    not waited for: it has been killed, so it will not run any more code of the program."""
    killed: set[int] = set()
    while left := [p for p in descendants(os.getpid()) if p.pid not in killed]:
        for process in left:
            process.kill()
        killed |= {process.pid for process in left}


def _longest_title(name: str, queues: int) -> str:
    """The title of a worker that serves all queues."""
    return f"vfsd: {name} worker {queues} (hiprio{', queue 99' * queues})"
