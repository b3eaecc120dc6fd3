# SPDX-License-Identifier: Apache-2.0
"""What tools that start a virtiofsd count on besides its options: lines, files, exit status."""

from pathlib import Path

from .daemon import Daemon

MIGRATION = ("--migration-mode=find-paths", "--migration-on-error=guest-error")


def test_options_of_migration_are_accepted_and_said_to_do_nothing(tmp_path: Path) -> None:
    with Daemon(tmp_path, *MIGRATION, "--log-level=debug") as daemon:
        assert "no migration is offered: --migration-mode, --migration-on-error" in daemon.text()
