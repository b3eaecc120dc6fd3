# SPDX-License-Identifier: Apache-2.0
"""Stage "root" of isolation: mount a private /proc, and make the shared directory the root."""

import errno
import os
from typing import Final

from vfsd.transport.heritage import Namespaces
from vfsd.transport.job import Job
from vfsd.transport.native import check, ffi, lib
from vfsd.worker.last_import import import_nothing_more
from vfsd.worker.sandbox import (
    CHROOT,
    CHROOT_HINT,
    IS_ROOT,
    NAMESPACE,
    NONE,
    IsolationError,
    Sandbox,
    attempt,
)

_OTHER_MODES: Final = f"try --sandbox=chroot{'' if IS_ROOT else ' (as root)'} or --sandbox=none"
_NO_MOUNTS: Final = "try --sandbox=none"


def _open_root(path: str) -> int:
    return os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def _mount_proc(job: Job) -> int:
    if job.sandbox == NAMESPACE:
        return attempt(
            "mount a private /proc",
            "in a container, unmask /proc (podman: --security-opt unmask=ALL), "
            "or try --sandbox=none",
            lambda: check(lib.isolate_mount_proc(False)),
        )
    if job.sandbox == CHROOT:
        return attempt(
            f"chroot to {job.shared_dir!r} with a private /proc",
            CHROOT_HINT,
            lambda: check(lib.isolate_mount_proc(True)),
        )
    private: int = lib.isolate_mount_proc(True)
    return private if private >= 0 else attempt("open /proc", "mount it", _open_hosts_proc)


def _open_hosts_proc() -> int:
    return _open_root("/proc")


def _restrict_tree(tree: int, job: Job, sandbox: Sandbox) -> None:
    result = lib.isolate_restrict_tree(tree, job.fs.readonly)
    if result == -errno.ENOSYS:
        sandbox.notes.append(
            "this kernel is older than Linux 5.12: the mounts of the share cannot be made nodev"
            " and nosuid for the sandbox; only the type of a file keeps devices from being opened"
        )
        return
    attempt("make the mounts of the share nodev and nosuid", _NO_MOUNTS, lambda: check(result))


def _is_mounted(sandbox: Sandbox) -> bool:
    """Is the shared directory still on a mount of this namespace? After `umount -l` it is on a
    detached mount, which the kernel does not copy (EINVAL)."""
    number = ffi.new("uint64_t *")
    fd = _open_root(".")
    try:
        check(lib.isolate_mount_of(fd, number))
    finally:
        os.close(fd)
    return any(int(line.split()[0]) == number[0] for line in sandbox.mountinfo().splitlines())


def _attach_copy(job: Job, sandbox: Sandbox) -> int:
    """Mount the shared directory on itself, with all that is mounted in it; returns an fd of that
    mount."""
    what, hint = repr(job.shared_dir), _NO_MOUNTS
    attempt("keep mounts from the host", hint, lambda: check(lib.isolate_receive_mounts_only()))
    if not _is_mounted(sandbox):
        raise IsolationError(
            f"{what} was unmounted on the host, so no sandbox can be made of it; mount it and start"
            " virtiofsd again"
        )
    tree = attempt(f"copy the mounts of {what}", hint, lambda: check(lib.isolate_copy_tree(b".")))
    _restrict_tree(tree, job, sandbox)
    attempt(f"mount {what} on itself", hint, lambda: check(lib.isolate_attach_tree(tree, b".")))
    return tree


def _pivot(job: Job, sandbox: Sandbox) -> None:
    tree = _attach_copy(job, sandbox)
    what = f"pivot into {job.shared_dir!r}"
    attempt(what, _OTHER_MODES, lambda: check(lib.isolate_pivot(tree)))
    os.close(tree)


def _chroot(job: Job, sandbox: Sandbox) -> None:
    """Chroot into a mount of our own: a directory that the host moves out of the share does not
    lead above the root of that mount."""
    tree = _attach_copy(job, sandbox)
    os.fchdir(tree)
    os.close(tree)
    attempt(f"chroot to {job.shared_dir!r}", CHROOT_HINT, lambda: os.chroot("."))


def _join(job: Job, former: Namespaces) -> None:
    """Enter the mounts of a sandbox that serves: the fds that come from there are on these mounts,
    and mount ids are part of what identifies an inode."""
    what = "enter the mount namespace of the sandbox that serves now"
    if job.sandbox != NONE:
        attempt(
            what,
            "restart the daemon",
            lambda: check(lib.isolate_join(former.mount, lib.NAMESPACE_MOUNT)),
        )
    if job.sandbox == CHROOT:
        os.fchdir(former.root)
        attempt("chroot to its root directory", CHROOT_HINT, lambda: os.chroot("."))
    former.close()


def enter(job: Job, sandbox: Sandbox) -> None:
    """The stage: hold /proc, and make the shared directory the root unless the mode is "none"."""
    sandbox.proc_fd = _mount_proc(job)
    import_nothing_more()
    if sandbox.former:
        _join(job, sandbox.former)
    if job.sandbox == NONE:
        sandbox.root_fd = _open_root(".")
        os.chdir("/")
        return
    if sandbox.former:
        pass
    elif job.sandbox == NAMESPACE:
        _pivot(job, sandbox)
    else:
        _chroot(job, sandbox)
    os.chdir("/")
    sandbox.root_fd = _open_root("/")
