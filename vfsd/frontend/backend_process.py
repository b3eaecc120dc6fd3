# SPDX-License-Identifier: Apache-2.0
"""Starts a virtiofsd for `vfsd mount --source`, which listens on a temporary socket and ends with
the mount."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from vfsd.frontend.slow_wait import SlowWait
from vfsd.frontend.vmm import Vmm, connect
from vfsd.transport.errors import OperatorError

STEP_SECONDS: Final = 0.02


@contextmanager
def own_backend(source: str, arguments: Sequence[str]) -> Iterator[Vmm]:
    """Start virtiofsd on `source`, and connect to it."""
    program = Path(sys.executable).parent / "virtiofsd"
    with tempfile.TemporaryDirectory(prefix="vfsd-mount-") as folder:
        path = str(Path(folder) / "socket")
        argv = [str(program), f"--socket-path={path}", f"--shared-dir={source}", *arguments]
        # A process group of its own: Ctrl-C is for this process only, which ends virtiofsd after
        # the mount.
        try:
            process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, process_group=0)
        except OSError as error:
            raise OperatorError(f"cannot start '{program}': {error.strerror}") from None
        try:
            with _connect(process, path) as vmm:
                yield vmm
        finally:
            _end(process)


def _connect(process: subprocess.Popen[bytes], path: str) -> Vmm:
    """Connect as soon as the process listens. While the process lives, it may take any time to
    start and to answer, since the speed of this host is not known."""
    wait = SlowWait("virtiofsd does not listen yet")
    while True:
        try:
            return connect(path)
        except OperatorError as error:
            if not isinstance(error.__cause__, (FileNotFoundError, ConnectionRefusedError)):
                raise
        if (status := process.poll()) is not None:
            raise OperatorError(f"virtiofsd ended with status {status} before it listened")
        time.sleep(wait.rest(STEP_SECONDS))


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask the back-end to end, and wait until it has tidied up; a signal kills it."""
    process.terminate()
    wait = SlowWait(f"virtiofsd, process {process.pid}, has not ended; a signal kills it")
    try:
        while not _has_ended(process, wait.rest()):
            pass
    except KeyboardInterrupt:
        process.kill()
        process.wait()
        raise


def _has_ended(process: subprocess.Popen[bytes], seconds: float) -> bool:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True
