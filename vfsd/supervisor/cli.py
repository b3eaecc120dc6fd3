# SPDX-License-Identifier: Apache-2.0
"""The virtiofsd command: checks its options and the share, and listens.

The modules that serve (serving.py) are imported after the socket listens: a tool waits for the
socket, and in a container with a tenth of a CPU these imports take half a second.
"""

import os
import stat
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vfsd import __version__
from vfsd.supervisor.command_line import parse
from vfsd.supervisor.listener import open_listener
from vfsd.supervisor.options import Options
from vfsd.supervisor.signals import hold_signals
from vfsd.transport.errors import OperatorError

if TYPE_CHECKING:
    from vfsd.supervisor.kept_vm import Kept

# The words of libvirt. "separate-options": every option has a form without -o. The two "-mode"
# words: --posix-acl and --security-label have modes.
# libvirt does not migrate a domain without "migrate-precopy".
CAPABILITIES: Final = {
    "type": "fs",
    "features": [
        "separate-options",
        "posix-acl-negotiation-mode",
        "security-label-negotiation-mode",
    ],
}
HERITAGE: Final = "VFSD_HERITAGE"  # the name in succession.py, which is not imported for this
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
    # A daemon imports json later, when its socket listens, and option_help never.
    import json  # noqa: PLC0415

    from vfsd.supervisor.option_help import help_text  # noqa: PLC0415

    texts = {
        "help": help_text(),
        "version": f"virtiofsd {__version__} (vfsd)\n",
        "capabilities": json.dumps(CAPABILITIES) + "\n",
    }
    sys.stdout.write(texts[action])
    return 0


def _serve(options: Options) -> int:
    _fill_standard_fds()
    if not os.path.isdir("/proc/self/fd"):  # noqa: PTH112 - pathlib would be imported for this
        raise OperatorError("/proc is not mounted; try: mount -t proc proc /proc")
    if HERITAGE in os.environ:
        from vfsd.supervisor.heir import take_place  # noqa: PLC0415 - only in an upgrade

        return take_place(options)
    kept = _take_kept(options)  # before any other file is opened
    options = replace(options, shared_dir=check_shared_dir(options), connect=_vmm(options))
    root = open_shared_dir(options)
    check_host(options)
    notes = [note_of_mount(options, root), _note_of_store(options)]
    hold_signals()  # a signal must not end this process while a socket file has to be removed
    listener = open_listener(options)
    try:
        # These imports take most of the CPU time of a start; the VMM waits for the socket alone.
        from vfsd.supervisor.file_limit import has_handles, set_file_limit  # noqa: PLC0415
        from vfsd.supervisor.inode_limit import inode_limit  # noqa: PLC0415
        from vfsd.supervisor.serving import serve  # noqa: PLC0415

        notes.append(set_file_limit(options, root))
        inodes = inode_limit(options, has_handles(options, root))
        options = replace(options, inode_limit=inodes)
    except BaseException:
        listener.remove()
        raise
    return serve(options, root, listener, kept, list(filter(None, notes)))


def _take_kept(options: Options) -> "Kept | None":
    """What was kept of an earlier daemon; None without --keep-state."""
    if not options.keep_state:
        return None
    # Few daemons have the option, so the others do not import these.
    from vfsd.supervisor.fd_store import SYSTEMD, returned_fds  # noqa: PLC0415
    from vfsd.supervisor.kept_vm import Kept, allow_fds  # noqa: PLC0415
    from vfsd.supervisor.state_holder import claim, fetch_fds  # noqa: PLC0415

    allow_fds()
    if options.keep_state != SYSTEMD:
        lock = claim(options.keep_state)
        return replace(Kept.take(fetch_fds(options.keep_state), options), lock=lock)
    if "NOTIFY_SOCKET" not in os.environ:
        raise OperatorError(
            f"{options.given['keep_state']}: systemd did not start this process (NOTIFY_SOCKET is"
            " not set); leave the option out, start the service, or name a folder"
        )
    return Kept.take(returned_fds(), options)


def _note_of_store(options: Options) -> str | None:
    """A warning, if systemd has passed fds that nothing uses."""
    if not options.keep_state:
        return None
    from vfsd.supervisor.fd_store import note_of_other_names  # noqa: PLC0415

    return note_of_other_names(options.fd)


def _fill_standard_fds() -> None:
    """Make sure that the fds 0, 1 and 2 are open, so that no socket or file of ours gets one of
    these numbers."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)


def check_shared_dir(options: Options) -> str:
    """The absolute path of the directory to share, or an OperatorError."""
    path = options.shared_dir
    assert path is not None
    what = f"{options.given['shared_dir']}: '{path}'"
    try:
        mode = os.lstat(path).st_mode  # for "link/", of the directory that the link leads to
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


def _vmm(options: Options) -> str | None:
    """The absolute path of --connect."""
    return str(Path(options.connect).absolute()) if options.connect else None


def open_shared_dir(options: Options) -> int:
    """The directory whose path check_shared_dir() has returned, as an O_PATH fd.

    The directory is opened only here, and every pool gets this fd. A user who may rename a folder
    of the path therefore cannot choose which directory a later VMM is given.
    """
    assert options.shared_dir is not None
    try:
        return os.open(options.shared_dir, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        what = f"{options.given['shared_dir']}: '{options.shared_dir}'"
        raise OperatorError(f"{what}: {error.strerror}") from None


def note_of_mount(options: Options, root: int) -> str | None:
    """A warning if the share is mounted read-only: a systemd unit that protects the host's files
    may have made the share read-only by mistake."""
    if options.readonly or not os.fstatvfs(root).f_flag & os.ST_RDONLY:
        return None
    return (
        f"'{options.shared_dir}' is mounted read-only, so the guest can change nothing; a service"
        " needs BindPaths= (systemd.exec(5)) for a share outside of /srv; if this is intended, give"
        " --readonly"
    )


def check_host(options: Options) -> None:
    """OperatorError if the host lacks what the options need."""
    _check_ids(options)
    _check_cpus(options)


def _check_ids(options: Options) -> None:
    """A daemon that is not root needs programs of the package uidmap to map ids."""
    if os.geteuid() == 0 or (not options.uid_map and not options.gid_map):
        return
    import shutil  # noqa: PLC0415 - few daemons have maps

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
            f"{options.given['queue_cpus']}: CPU {missing[0]} does not exist, or this process may"
            " not use it; see taskset(1), or the service's cpuset"
        )
