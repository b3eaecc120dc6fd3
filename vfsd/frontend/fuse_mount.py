# SPDX-License-Identifier: Apache-2.0
"""One mount of this host's FUSE client: /dev/fuse, its clones, mount(2) and umount(2).

Once the mount point is mounted, nothing here may look at anything below it: if this process asked
the kernel about a file that it has to answer for, it would wait for itself.
"""

import errno
import os
import re
from pathlib import Path
from typing import Final, Self

from vfsd.transport.errors import OperatorError
from vfsd.transport.native import check, lib
from vfsd.transport.passed_fds import close_fds

DEVICE: Final = "/dev/fuse"
# As virtio-fs mounts: the kernel checks permissions, and every user may use the mount.
OPTIONS: Final = b"rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other"
_DEAD: Final = (errno.ENOTCONN, errno.ECONNABORTED)


def check_mountpoint(path: str) -> str:
    """Return the absolute path of a directory that can be mounted on; OperatorError if it
    cannot."""
    try:
        absolute = os.path.realpath(path, strict=True)
        is_directory = Path(absolute).is_dir()
    except FileNotFoundError:
        raise OperatorError(f"mount point '{path}' does not exist; create it first") from None
    except OSError as error:
        advice = f"; it is a mount whose server has ended: umount '{path}'"
        more = advice if error.errno in _DEAD else ""
        raise OperatorError(f"mount point '{path}': {error.strerror}{more}") from None
    if not is_directory:
        raise OperatorError(f"mount point '{path}' is not a directory")
    if mount_ids(absolute):
        raise OperatorError(
            f"'{path}' is a mount point already; umount it, or give another directory"
        )
    return absolute


def mount_ids(path: str) -> list[int]:
    """The ids of the mounts at an absolute path; the topmost mount is the last."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        fields = line.split(" ")
        if _unescape(fields[4]) == path:
            found.append(int(fields[0]))
    return found


def _unescape(path: str) -> str:
    """Decode blanks and backslashes of a path, which the kernel writes in octal."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), path)


def open_device() -> int:
    try:
        return os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        advice = "; try: modprobe fuse" if error.errno in (errno.ENOENT, errno.ENODEV) else ""
        raise OperatorError(f"cannot open {DEVICE}: {error.strerror}{advice}") from None


class FuseMount:
    """A mount and its channels. `fds`: one non-blocking /dev/fuse for each bridge."""

    def __init__(self, source: str, target: str, channels: int) -> None:
        self.target = target
        self.fds = [open_device()]
        try:
            self._mount(source)
            self._id = mount_ids(target)[-1]
            for _ in range(channels - 1):
                self.fds.append(open_device())
                check(lib.fuse_device_clone(self.fds[-1], self.fds[0]))
        except BaseException:
            self.abort()
            self.unmount(lazy=True)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.abort()
        self.unmount(lazy=True)

    def _mount(self, source: str) -> None:
        self._id = -1
        names = os.fsencode(source), os.fsencode(self.target)
        try:
            check(lib.fuse_device_mount(self.fds[0], *names, OPTIONS))
        except PermissionError:
            raise OperatorError(
                f"no permission to mount on '{self.target}'; mount as root (CAP_SYS_ADMIN)"
            ) from None
        except OSError as error:
            advice = "; it is in use" if error.errno == errno.EBUSY else ""
            raise OperatorError(
                f"cannot mount on '{self.target}': {error.strerror}{advice}"
            ) from None

    def is_mounted(self) -> bool:
        """True if a lookup of the mount point leads to our mount and not to another."""
        return mount_ids(self.target)[-1:] == [self._id]

    def is_there(self) -> bool:
        """False once the mount has been unmounted. Another mount may cover it."""
        return self._id in mount_ids(self.target)

    def unmount(self, lazy: bool) -> bool:
        """Unmount; False if the mount is in use. Sleeps in the kernel until dirty pages are
        written.

        If another process has unmounted it already, there is nothing to do.
        """
        if not self.is_mounted():
            return True
        try:
            check(lib.fuse_device_unmount(os.fsencode(self.target), lazy))
        except OSError as error:
            return error.errno != errno.EBUSY
        return True

    def abort(self) -> None:
        """Close every channel: the kernel then fails pending and future requests."""
        fds, self.fds = self.fds, []
        close_fds(fds)
