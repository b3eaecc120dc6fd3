# SPDX-License-Identifier: Apache-2.0
"""What tools that start a virtiofsd count on besides its options: lines, files, exit status."""

import socket
from pathlib import Path

import pytest

from .daemon import Daemon, wait_until
from .frontend import Frontend

MIGRATION = ("--migration-mode=find-paths", "--migration-on-error=guest-error")


def test_options_of_migration_are_accepted_and_said_to_do_nothing(tmp_path: Path) -> None:
    with Daemon(tmp_path, *MIGRATION, "--log-level=debug") as daemon:
        assert "no migration is offered: --migration-mode, --migration-on-error" in daemon.text()


# What Kata Containers waits for: share_virtio_fs_standalone.rs of runtime-rs, and virtiofsd.go of 1.x,
# which looks for the three dots as well.
LISTENS = "Waiting for vhost-user socket connection..."


def test_stderr_says_in_the_words_of_the_peers_that_a_vmm_can_connect(tmp_path: Path) -> None:
    with Daemon(tmp_path) as daemon:
        assert f"{LISTENS} on {daemon.path}\n" in daemon.text()


def test_stderr_says_so_of_an_inherited_socket(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "inherited"))
        listener.listen()
        fd = listener.fileno()
        with Daemon(tmp_path, f"--fd={fd}", pass_fds=(fd,)) as daemon:
            wait_until(lambda: f"{LISTENS} on the inherited socket\n" in daemon.text())


@pytest.mark.parametrize("keep_listening", [False, True])
def test_the_end_of_a_share_names_the_option_that_keeps_it(
    tmp_path: Path, keep_listening: bool
) -> None:
    """Cloud Hypervisor goes away, and comes back, when the guest reboots."""
    options = ("--keep-listening",) if keep_listening else ()
    with Daemon(tmp_path, *options) as daemon:
        frontend = Frontend(daemon.path)
        frontend.realize(1)
        frontend.close()
        wait_until(lambda: "the VMM went away" in daemon.text())
        line = next(line for line in daemon.text().splitlines() if "the VMM went away" in line)
        assert ("--keep-listening" in line) == (not keep_listening)
