# SPDX-License-Identifier: Apache-2.0
"""The folder for the workers' sockets when few folders can be written to."""

import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.waiting import HANG

from .daemon import wait_until
from .test_bad_input import VIRTIOFSD

# Every mount except for that of the socket becomes read-only, as in a container with a read-only
# root.
READ_ONLY = """
mount -t tmpfs socket "$1"
findmnt -rno TARGET | grep -vx "$1" | while read -r mount; do
    mount -o remount,bind,ro "$mount" 2>/dev/null || true
done
cd /
! mkdir /tmp/writable /run/writable 2>/dev/null
shift
exec env -u TMPDIR -u XDG_RUNTIME_DIR -u RUNTIME_DIRECTORY "$@"
"""


def test_the_folder_of_the_socket_is_enough(tmp_path: Path, requires: Callable[[str], str]) -> None:
    requires("root")
    own, log = tmp_path / "own", tmp_path / "log"
    own.mkdir()
    command = [*VIRTIOFSD, f"--socket-path={own}/sock", "--shared-dir=/usr"]
    with log.open("wb") as stderr:
        daemon = subprocess.Popen(
            ["unshare", "--mount", "sh", "-ec", READ_ONLY, "sh", str(own), *command], stderr=stderr
        )
    try:
        wait_until(lambda: daemon.poll() is not None or "Waiting for" in log.read_text())
        assert daemon.poll() is None, log.read_text()
        inside = Path(f"/proc/{daemon.pid}/root/{own}")
        assert sorted(path.name.split("-")[0] for path in inside.iterdir()) == [
            "sock", "sock.pid", "vfsd",
        ]  # fmt: skip
    finally:
        daemon.terminate()
        assert daemon.wait(HANG) == 0
