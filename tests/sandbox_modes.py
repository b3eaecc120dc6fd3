# SPDX-License-Identifier: Apache-2.0
"""The sandbox modes of a daemon, and in which of them a test runs.

A test that uses the fixture `sandbox_mode` (tests/conftest.py) runs in the default mode, or in the
modes that the marker of the test or of its module names:

    pytestmark = in_each_mode
    @pytest.mark.sandbox_modes("chroot", "none")

SECURITY.md counts the cases of each mode by the ids of the tests: "sandbox=MODE", and
"sandbox=MODE, VARIANT" where a mode is tried in several variants.
"""

from dataclasses import dataclass
from typing import Final

import pytest

from vfsd.worker.capabilities import KEPT

USER: Final = 1000


@dataclass(frozen=True)
class SandboxMode:
    """How a daemon is started in this mode."""

    name: str
    options: tuple[str, ...]
    has_user_namespace: bool = False
    uid: int | None = None  # of the user that starts the daemon; None: root starts it
    capabilities: tuple[str, ...] = ()  # of that user

    def __str__(self) -> str:
        return f"sandbox={self.name}"

    @property
    def is_privileged(self) -> bool:
        """Is the sandbox root for the host's kernel? If not, the sandbox has no device nodes, no
        file handles and no trusted.* attributes."""
        return self.uid is None and not self.has_user_namespace

    @property
    def own_id(self) -> int:
        """The id that the guest sees as owner of the files of the user that started the daemon."""
        return self.uid if self.uid is not None and not self.has_user_namespace else 0


NAMESPACE: Final = SandboxMode("namespace", ())  # the default
BY_CAPABILITY: Final = SandboxMode(
    "none, by capability", ("--sandbox=none",), uid=USER, capabilities=tuple(KEPT)
)
_EVERY: Final = (
    NAMESPACE,
    SandboxMode("userns", ("--userns",), has_user_namespace=True),
    SandboxMode("chroot", ("--sandbox=chroot",)),
    SandboxMode("none", ("--sandbox=none",)),
    SandboxMode("unprivileged", (), has_user_namespace=True, uid=USER),
    SandboxMode("unprivileged, none", ("--sandbox=none",), uid=USER),
)
SANDBOX_MODES: Final = {mode.name: mode for mode in (*_EVERY, BY_CAPABILITY)}
OF_ROOT: Final = tuple(mode.name for mode in _EVERY if mode.uid is None)


def _modes(*those: SandboxMode) -> pytest.MarkDecorator:
    return pytest.mark.sandbox_modes(*(mode.name for mode in those))


in_default_mode: Final = _modes(NAMESPACE)
in_every_mode: Final = _modes(*_EVERY)
in_each_mode: Final = pytest.mark.sandbox_modes(*OF_ROOT)  # in which root starts vfsd
unprivileged: Final = _modes(*(mode for mode in _EVERY if mode.uid is not None))
with_handles: Final = _modes(*(mode for mode in _EVERY if mode.is_privileged))
without_handles: Final = _modes(*(mode for mode in _EVERY if not mode.is_privileged))
