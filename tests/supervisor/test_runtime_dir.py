# SPDX-License-Identifier: Apache-2.0
"""The folder for the workers' sockets when few folders can be written to."""

import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.waiting import HANG

from .daemon import wait_until
from .test_bad_input import VIRTIOFSD

# Every mount except for that of the socket becomes read-only, as in a container with a read-only
# root. The folders that the environment names do not exist.
READ_ONLY = """
mount -t tmpfs socket "$1"
findmnt -rno TARGET | grep -vx "$1" | while read -r mount; do
    mount -o remount,bind,ro "$mount" 2>/dev/null || true
done
cd /
! mkdir /tmp/writable /run/writable 2>/dev/null
own=$1; shift
exec env -u XDG_RUNTIME_DIR TMPDIR="$own/none" RUNTIME_DIRECTORY="$own/gone" "$@"
"""


@contextmanager
def listening(path: Path) -> Iterator[int]:
    """A socket that listens at a path, as a tool passes it with --fd."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        sock.listen()
        sock.set_inheritable(True)
        yield sock.fileno()


@pytest.mark.parametrize("is_passed", [False, True])
def test_the_folder_of_the_socket_is_enough(
    tmp_path: Path, requires: Callable[[str], str], is_passed: bool
) -> None:
    requires("root")
    own, log = tmp_path / "own", tmp_path / "log"
    own.mkdir()
    with ExitStack() as stack:
        fds = []
        if is_passed:
            # The address is that of a socket in the tmpfs below, which hides this one.
            fds = [stack.enter_context(listening(own / "sock"))]
        way = f"--fd={fds[0]}" if fds else f"--socket-path={own}/sock"
        command = [*VIRTIOFSD, way, "--shared-dir=/usr"]
        argv = ["unshare", "--mount", "sh", "-ec", READ_ONLY, "sh", str(own), *command]
        with log.open("wb") as stderr:
            daemon = subprocess.Popen(argv, stderr=stderr, pass_fds=fds)
        try:
            wait_until(lambda: daemon.poll() is not None or "Waiting for" in log.read_text())
            assert daemon.poll() is None, log.read_text()
            inside = Path(f"/proc/{daemon.pid}/root/{own}")
            found = sorted(path.name.split("-")[0] for path in inside.iterdir())
            assert found == (["vfsd"] if is_passed else ["sock", "sock.pid", "vfsd"])
        finally:
            daemon.terminate()
            assert daemon.wait(HANG) == 0


def test_nowhere_to_put_the_workers_sockets(tmp_path: Path, requires: Callable[[str], str]) -> None:
    requires("root")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind("")  # an address that is not a path
        sock.listen()
        command = [*VIRTIOFSD, f"--fd={sock.fileno()}", "--shared-dir=/usr"]
        done = subprocess.run(
            ["unshare", "--mount", "sh", "-ec", READ_ONLY, "sh", str(tmp_path), *command],
            stderr=subprocess.PIPE, text=True, pass_fds=[sock.fileno()], timeout=HANG, check=False,
        )  # fmt: skip
    assert done.returncode == 1
    start = f"virtiofsd: cannot make a folder for sockets in '{tmp_path}/gone'"
    assert done.stderr.startswith(start), done.stderr
