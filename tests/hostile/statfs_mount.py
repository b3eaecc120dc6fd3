# SPDX-License-Identifier: Apache-2.0
"""A file system whose blocks are larger than its fragments, as on ZFS and NFS."""

import ctypes
import errno
import os
import subprocess
import threading
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

from tests.conftest import require

from .fuse import ATTR, ATTR_OUT, IN_HEADER, INIT_OUT, OUT_HEADER, STATFS_OUT, Op

_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_REQUEST_MAX: Final = 1 << 18
_ROOT: Final = ATTR.pack(1, 0, 0, 0, 0, 0, 0, 0, 0, 0o040755, 2, 0, 0, 0, 4096, 0)


class StatfsMount:
    """An empty directory of a FUSE file system, with attributes, and with sizes of blocks in
    bytes."""

    def __init__(self, folder: Path, block: int, fragment: int) -> None:
        require("root")
        require("/dev/fuse")
        self.path = folder / "statfs"
        self.path.mkdir()
        self._replies = {
            Op.INIT: INIT_OUT.pack(7, 31, 0, 0, 0, 0, 4096, *[0] * 6),
            Op.GETATTR: ATTR_OUT.pack(1, 0, 0) + _ROOT,
            Op.STATFS: STATFS_OUT.pack(1000, 500, 500, 10, 5, block, 255, fragment, 0),
        }
        self._fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        options = f"fd={self._fd},rootmode=40000,user_id=0,group_id=0,allow_other"
        arguments = (b"statfs", os.fsencode(self.path), b"fuse", 0, options.encode())
        assert _LIBC.mount(*arguments) == 0, os.strerror(ctypes.get_errno())
        self._server = threading.Thread(target=self._serve)
        self._server.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        subprocess.run(["umount", "-l", self.path], check=True)
        self._server.join()
        os.close(self._fd)

    def _serve(self) -> None:
        while True:
            try:
                request = os.read(self._fd, _REQUEST_MAX)
            except OSError as error:
                if error.errno == errno.ENODEV:  # the file system was unmounted
                    return
                continue  # the request was interrupted before we read it
            _, op, unique, *_ = IN_HEADER.unpack_from(request)
            if op not in (Op.FORGET, Op.BATCH_FORGET, Op.INTERRUPT):
                self._answer(op, unique)

    def _answer(self, op: int, unique: int) -> None:
        reply = self._replies.get(Op(op))
        failed = 0 if reply is not None else -errno.ENOSYS
        data = reply or b""
        header = OUT_HEADER.pack(OUT_HEADER.size + len(data), failed, unique)
        # The request was interrupted: no process waits for the answer.
        with suppress(FileNotFoundError):
            os.write(self._fd, header + data)
