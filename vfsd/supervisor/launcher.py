# SPDX-License-Identifier: Apache-2.0
"""The launcher: the one process of the trusted half that keeps its privileges; it starts pools.

THEORY

Purpose. Making a pool needs privileges: for namespaces, for the user's share, for newuidmap. The
supervisor, which reads what a VMM and what a sandbox send, has no privileges (confinement.py). So a
third process keeps the privileges, and no input says to that process what to do with them.

Actors. The keeper forks the launcher before any input can be read, and gives the launcher the
options and the fd of the shared directory. The keeper then closes that fd and gives up its own
privileges. A supervisor asks the launcher for a pool. The pool's first process is a child of the
launcher; it forks the holder and exits. The launcher is the child subreaper, so it is the parent of
the holder from then on: every process of a sandbox is a descendant of the launcher, also when
keepers and supervisors have come and gone.

Invariants. A request has a kind, a number that comes back in the answer, and fds. The fds of
MAKE_POOL are, in this order, those named in POOL_FDS, one per worker slot, and the tables of a lost
pool if the new pool takes its place. Each fd is checked to be of the kind that its name says. The
answer has a pidfd of the pool's first process.
The fd of KILL is such a pidfd: a process that has just been executed does not allow signals from
the supervisor yet (isolation.py). The fd of NAME_KEEPER is the pidfd of a process with the user id
of the keeper; the pid file names this process from then on. CONNECT has no fds: the launcher
connects to the VMM of --connect and answers with the connection. The supervisor sends no path,
option or text; the fds of any other request are closed, and the request is refused. An answer is
the number of the request and 0 or an errno. So a supervisor that was taken over can start pools
that share this directory with these options, can end them, can connect to this VMM, can name
another process of its own user id as the keeper, and can do nothing else here.

Ownership. The launcher has an fd table of its own, with the standard fds, its end of the socket
pair, the shared directory, the pid file, and the lock of --keep-state=DIR: these locks therefore
last until everything has been cleaned up. The fds of a request are closed when the pool has been
started. The other end of the socket pair is in the fd table of keeper and supervisor, so it is
closed when both are gone.

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
import select
import signal
import socket
import struct
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final, NoReturn

from vfsd.supervisor.descendants import Process, descendants, has_ended, process_of
from vfsd.supervisor.loader import copy_loader
from vfsd.supervisor.options import Options
from vfsd.supervisor.pid_file import PidFile
from vfsd.supervisor.pool_fds import POOL_FDS, check_fds
from vfsd.supervisor.pool_job import create_job
from vfsd.supervisor.spawn import reap_by_itself, spawn
from vfsd.transport.errors import OperatorError
from vfsd.transport.fd_table import close_all_but
from vfsd.transport.job import JobFds
from vfsd.transport.native import check, lib
from vfsd.transport.passed_fds import close_fds, decode_fds, encode_fds
from vfsd.transport.process_title import setproctitle

# The isolation of the pool is as with -I: see spawn.py. -S: modules that *.pth files of an
# installation import would stay in the memory of each worker.
POOL_COMMAND: Sequence[str] = (sys.executable, "-P", "-S", "-m", "vfsd.worker")
MAKE_POOL, KILL, NAME_KEEPER, CONNECT = 1, 2, 3, 4
REQUEST: Final = struct.Struct("=BI")  # kind, number
ANSWER: Final = struct.Struct("=Ii")  # number, errno or 0
ANSWER_SECONDS: Final = 120.0  # a launcher that has not answered after this time hangs
END_SECONDS: Final = 5.0
_ROOM: Final = socket.CMSG_SPACE(253 * 4)  # bytes, for the 253 fds that the kernel passes at most


class LauncherGoneError(OperatorError):
    """The launcher has ended or does not answer: no more pools can be made."""


class Launcher:
    """The launcher as keeper and supervisor see it: its pid and pidfd, and `fd`, their end of its
    socket pair."""

    def __init__(self, pid: int, pidfd: int, fd: int) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self.fd = fd

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
        pid = os.fork()
        if pid == 0:
            kept = {root, theirs.fileno(), *locks}
            end = theirs.detach()
            _be_launcher(name, options, root, supervisor, end, clean_up, pid_file, kept)
        theirs.close()
        close_fds([root, *locks])
        return cls(pid, os.pidfd_open(pid), ours.detach())

    def start_pool(self, fds: Sequence[int]) -> int:
        """Ask for a pool with `fds` (POOL_FDS, then one listener per worker slot, then no tables or
        TABLES_BEFORE tables of a pool that was lost).

        Returns a pidfd of the pool's first process, which the caller owns. Raises OSError if that
        process could not be started, LauncherGoneError if there is no launcher.
        """
        return self._ask(MAKE_POOL, fds)[0]

    def descendants(self) -> list[Process]:
        """The processes of all sandboxes; empty if the launcher is gone."""
        found = descendants(self.pid)
        return [] if has_ended(self.pidfd) else found  # alive now, so alive while we looked

    def connect(self) -> int:
        """Ask for a connection to the VMM of --connect; returns its fd, which the caller owns.
        Raises OSError if the VMM does not accept it, and LauncherGoneError."""
        return self._ask(CONNECT, [])[0]

    def kill(self, pidfd: int) -> None:
        """Send SIGKILL, also to the first process of a pool, which needs the launcher's
        privileges. No effect if the process or the launcher is gone."""
        try:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        except PermissionError:
            with suppress(OSError, LauncherGoneError):
                self._ask(KILL, [pidfd])
        except ProcessLookupError:
            pass

    def name_keeper(self, pidfd: int) -> None:
        """Have the pid file name the keeper that `pidfd` refers to. The answer is not waited for:
        an event loop must not wait."""
        sock = socket.socket(fileno=self.fd)
        try:
            sock.setblocking(False)
            _drop_answers(sock)
            request = REQUEST.pack(NAME_KEEPER, _new_number())
            with suppress(OSError):  # the launcher is gone or hangs: the pid file stays as it is
                sock.sendmsg([request], encode_fds([pidfd]))
        finally:
            sock.detach()

    def _ask(self, kind: int, fds: Sequence[int]) -> list[int]:
        """Send a request and wait for the answer; returns its fds. Raises as start_pool() does."""
        number = _new_number()
        sock = socket.socket(fileno=self.fd)
        try:
            sock.settimeout(ANSWER_SECONDS)
            sock.sendmsg([REQUEST.pack(kind, number)], encode_fds(fds))
            error, passed = _await_answer(sock, number)
        except TimeoutError:
            raise LauncherGoneError("the launcher does not answer") from None
        except OSError as gone:
            raise LauncherGoneError(f"the launcher is gone: {gone.strerror}") from None
        finally:
            sock.detach()
        if error:
            raise OSError(error, os.strerror(error))
        return passed

    def end(self) -> None:
        """Close the socket and wait until the launcher has cleaned up and ended."""
        os.close(self.fd)
        has_ended(self.pidfd, END_SECONDS)
        with suppress(ChildProcessError):  # a keeper that was created later is not its parent
            os.waitpid(self.pid, os.WNOHANG)


def _new_number() -> int:
    return int.from_bytes(os.urandom(4), "little")


def _drop_answers(sock: socket.socket) -> None:
    """Take the answers off a non-blocking socket that no process waits for."""
    with suppress(OSError):
        while (answer := sock.recvmsg(ANSWER.size, _ROOM, socket.MSG_CMSG_CLOEXEC))[0]:
            close_fds(decode_fds(answer[1]))


def _await_answer(sock: socket.socket, number: int) -> tuple[int, list[int]]:
    """The errno and the fds of the answer with this number."""
    while True:
        data, ancillary, _, _ = sock.recvmsg(ANSWER.size, _ROOM, socket.MSG_CMSG_CLOEXEC)
        fds = decode_fds(ancillary)
        if not data:
            raise ConnectionResetError(errno.ECONNRESET, "it closed its socket")
        answered, error = ANSWER.unpack(data)
        if answered == number:
            return error, fds
        close_fds(fds)  # the answer to a supervisor that died


# In the launcher.


def _be_launcher(
    name: str,
    options: Options,
    root: int,
    supervisor: int,
    sock: int,
    clean_up: Callable[[], None],
    pid_file: PidFile | None,
    kept: Collection[int],
) -> NoReturn:
    try:
        close_all_but({0, 1, 2, *kept})
        setproctitle(f"vfsd: {name} launcher")
        check(lib.process_become_subreaper())
        reap_by_itself()
        if os.geteuid() != 0:  # execve(2) gives root its capabilities again
            lib.capabilities_pass_on()  # if this fails, the pool reports what it lacks
        loader = copy_loader(POOL_COMMAND[0])
        lib.process_forget_code()
        actions: dict[int, Action] = {
            MAKE_POOL: partial(_start_pool, name, options, root, supervisor, loader),
            KILL: _kill,
            NAME_KEEPER: partial(_name_keeper, pid_file, supervisor),
            CONNECT: partial(_connect, options.connect),
        }
        serve(socket.socket(fileno=sock), actions)
        _kill_descendants()
        clean_up()
    except BaseException as error:
        os.write(2, f"vfsd: {name}: launcher: {error!r}\n".encode(errors="backslashreplace"))
    finally:
        os._exit(0)


# Carries out a request: takes the fds of the request, and returns the fds of the answer, which are
# closed when the answer has been sent.
Action = Callable[[Sequence[int]], list[int]]


def serve(sock: socket.socket, actions: Mapping[int, Action]) -> None:
    """Answer requests until the other end is closed."""
    while True:
        try:
            data, ancillary, flags, _ = sock.recvmsg(
                REQUEST.size + 1, _ROOM, socket.MSG_CMSG_CLOEXEC
            )
        except OSError:
            return
        fds = decode_fds(ancillary)
        if not data and not fds and _is_closed(sock):
            return
        try:
            answer, given = _obey(data, flags, fds, actions)
        finally:
            close_fds(fds)  # before the answer, which reports that the request is complete
        if answer:
            with suppress(OSError):  # the supervisor died, or does not read its answers
                sock.sendmsg([answer], encode_fds(given), socket.MSG_DONTWAIT)
        close_fds(given)


def _is_closed(sock: socket.socket) -> bool:
    """Is the other end closed? An empty packet looks the same to recvmsg(2)."""
    poll = select.poll()
    poll.register(sock, 0)
    return any(events & select.POLLHUP for _, events in poll.poll(0))


def _obey(
    data: bytes, flags: int, fds: Sequence[int], actions: Mapping[int, Action]
) -> tuple[bytes, list[int]]:
    """Carry out the request in a packet; returns the answer (b"": none) and the fds of the
    answer."""
    if len(data) != REQUEST.size or flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
        return b"", []  # no number to answer with; our supervisor never sends such a packet
    kind, number = REQUEST.unpack(data)
    try:
        return ANSWER.pack(number, 0), actions.get(kind, _refuse)(fds)
    except OSError as failed:
        return ANSWER.pack(number, failed.errno or errno.EINVAL), []


def _refuse(_fds: Sequence[int]) -> list[int]:
    raise OSError(errno.EINVAL, "there is no such request")


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


def _kill(fds: Sequence[int]) -> list[int]:
    """Kill the process of a pidfd. OSError (EINVAL) unless the process is a child of ours."""
    if process_of(_pid_of(fds)).parent != os.getpid():
        raise OSError(errno.EINVAL, "the fd of KILL is not the pidfd of a child of the launcher")
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
    info = Path(f"/proc/self/fdinfo/{fds[0]}").read_text(errors="replace")
    found = re.search(r"^Pid:\t(\d+)$", info, re.MULTILINE)
    if not found:
        raise OSError(errno.EINVAL, "the fd of the request is not the pidfd of a process")
    return int(found[1])


def _kill_descendants() -> None:
    """Kill what is left of the sandboxes. A process that a hung file system keeps from ending is
    not waited for: it has been killed, so it will not run any more code of the program."""
    killed: set[int] = set()
    while left := [p for p in descendants(os.getpid()) if p.pid not in killed]:
        for process in left:
            process.kill()
        killed |= {process.pid for process in left}


def _start_pool(
    name: str, options: Options, root: int, supervisor: int, loader: int | None, fds: Sequence[int]
) -> list[int]:
    """Start the first process of a pool; returns its pidfd. OSError if `fds` are not the fds of a
    pool."""
    check_fds(fds, options.workers)
    named = dict(zip(POOL_FDS, fds, strict=False))
    stderr = named.pop("stderr")
    tables = len(POOL_FDS) + options.workers
    listeners, before = tuple(fds[len(POOL_FDS) : tables]), tuple(fds[tables:])
    job_fds = JobFds(root=root, listeners=listeners, before=before, **named)
    job = create_job(name, options, supervisor, job_fds)
    try:
        passed = [job, root, *(fd for fd in fds if fd != stderr)]
        command = [*POOL_COMMAND, str(job), _room_for_title(name, options.request_queues)]
        return [spawn(command, loader, passed, stderr)]
    finally:
        os.close(job)


def _room_for_title(name: str, queues: int) -> str:
    """An argument that takes as much room as the title of a worker which serves all queues. A
    title overwrites the arguments. Behind the arguments of the loader, which stay, the kernel shows
    no title that is longer than the arguments were."""
    return " " * len(f"vfsd: {name} worker {queues} (hiprio{', queue 99' * queues})".encode())
