# SPDX-License-Identifier: Apache-2.0
"""Root in a container that denies to change capabilities, as Apple's containerization does."""

import subprocess
import sys
from pathlib import Path

from tests.conftest import require
from tests.waiting import HANG

from .daemon import OURS, Daemon
from .driver import Frontend
from .fuse import MKDIR_IN, ROOT, Guest, Op, names

DENYING = (sys.executable, str(Path(__file__).with_name("denying.py")), *OURS)


def test_without_a_sandbox_the_share_is_served_and_the_log_says_what_is_missing() -> None:
    require("root")
    with Daemon("--sandbox=none", program=DENYING) as daemon:
        with Frontend(daemon.socket).setup(1) as frontend:
            guest = Guest(frontend)
            guest.init()
            daemon.share.chmod(0o777)
            for uid in (1001, 0, 1002):
                body = MKDIR_IN.pack(0o755, 0) + names(b"%d" % uid)
                guest.call(Op.MKDIR, ROOT, body, ids=(uid, uid))
                assert (daemon.share / str(uid)).stat().st_uid == uid
        text = daemon.log.read_text()
        assert "warning: keeper and supervisor cannot give up their capabilities" in text
        assert "warning: workers keep all capabilities" in text
        assert "HANDLE_KILLPRIV_V2" not in text


def test_a_refusal_to_start_as_root_names_no_sandbox_instead_of_root(
    tmp_path: Path,
) -> None:
    require("root")
    (tmp_path / "share").mkdir()
    arguments = [f"--socket-path={tmp_path}/socket", f"--shared-dir={tmp_path}/share"]
    done = subprocess.run(
        [*DENYING, *arguments], capture_output=True, text=True, timeout=HANG, check=False
    )
    assert done.returncode == 1
    assert "try --sandbox=none" in done.stderr
    assert "as root" not in done.stderr
