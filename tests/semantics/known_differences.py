# SPDX-License-Identifier: Apache-2.0
"""What Linux' FUSE client does otherwise than the host, whatever a server answers."""

from dataclasses import dataclass
from typing import Final

from .rules_data import PAGE
from .rules_set_id import CHANGES, CLEARED, CLEARED_OF_OTHERS

FUSE: Final = ""  # every share
NO_IDMAPPED: Final = "no-idmapped-mounts"
WRITEBACK: Final = "writeback"
USERNS: Final = "userns"
UNSETTLED: Final = object()  # it depends on when the guest writes back
AS_THE_HOST: Final = object()

BY_OTHERS: Final = (
    "what somebody else changes loses set id bits",
    "what somebody else changes of roots group loses set id bits",
)
# These ops do not say that set-id bits go; SETATTR of nothing comes before if some do.
SILENT: Final = {"fallocate", "keep size", "punch", "zero", "copy"}
KEPT_UNASKED: Final = {mode: oct(mode) for mode in (0o2767, 0o2666)}
NOBODY_SAYS_WHO: Final = (
    "with ALLOW_IDMAP requests do not say whose they are, and without HANDLE_KILLPRIV_V2"
    " fuse_setattr() makes the mode: both take setgid from group executables only"
)
KEEPS_NO_SET_ID: Final = (
    "the host's kernel takes set-id bits from what is written without its own CAP_FSETID, which"
    " nobody in a user namespace has"
)
# They begin with what takes SYS_ADMIN or LINUX_IMMUTABLE of the host, and get EPERM there.
NEEDS_THE_HOSTS_ROOT: Final = (
    "attributes need permission",
    "trusted attributes are roots",
    "an attribute of a link is not its targets",
    "an immutable file does not change",
    "an append only file only grows",
)
NOT_OF_THE_HOST: Final = "root of a user namespace cannot set trusted.* xattrs and inode flags"


@dataclass(frozen=True)
class Difference:
    """What comes of a rule on a share, and why."""

    outcome: object
    reason: str


# By the rule's name and the share's.
KNOWN: Final[dict[tuple[str, str], Difference]] = {
    ("fallocate collapses and inserts", FUSE): Difference(
        ["ENOTSUP", b"ABC", "ENOTSUP", b"ABC", "ENOTSUP"],
        "fuse_file_fallocate() lets KEEP_SIZE, PUNCH_HOLE and ZERO_RANGE through; no request comes",
    ),
    ("trusted attributes are roots", FUSE): Difference(
        [b"t", ["trusted.t", "user.u"], ["trusted.t", "user.u"], b"x", b"dir"],
        "LISTXATTR does not tell who asks (ids are -1 with ALLOW_IDMAP, capabilities never), and"
        " fuse_listxattr() hides nothing; a worker without SYS_ADMIN, the default, lists none",
    ),
    **{
        (name, FUSE): Difference(dict.fromkeys(CHANGES, CLEARED), NOBODY_SAYS_WHO)
        for name in BY_OTHERS
    },
    **{(name, NO_IDMAPPED): Difference(AS_THE_HOST, "requests say whose") for name in BY_OTHERS},
    ("what a supplementary member changes loses set id bits", NO_IDMAPPED): Difference(
        {name: CLEARED_OF_OTHERS | (KEPT_UNASKED if name in SILENT else {}) for name in CHANGES},
        "no request says which supplementary groups the requester is in",
    ),
    ("what changes a file changes its times", WRITEBACK): Difference(
        UNSETTLED,
        "the guest keeps mtime and ctime itself, leaves them alone when a truncate(2) changes no"
        " size, and reads a page (atime) to write to a part of it",
    ),
    ("holes are found", WRITEBACK): Difference(
        ["ENXIO", 0, 16 * PAGE, 8 * PAGE, 12 * PAGE, 16 * PAGE, 16 * PAGE],
        "the guest may hold data back, so all is data",
    ),
    ("times do not depend on how they are asked for", WRITEBACK): Difference(
        UNSETTLED, "ctime moves when the guest writes back"
    ),
    ("offsets have limits", WRITEBACK): Difference(
        ["ok", 1, b"", "ok", "EINVAL", "EFBIG"],
        "the host refuses such an offset when the guest writes back: fsync(2) tells",
    ),
    **{
        (name, USERNS): Difference(dict.fromkeys(CHANGES, CLEARED), KEEPS_NO_SET_ID)
        for name in (
            "what root changes keeps set id bits",
            "what is changed with fsetid keeps set id bits",
        )
    },
    ("what root writes keeps set id bits whoever asked before", USERNS): Difference(
        "0o777", KEEPS_NO_SET_ID
    ),
    **{(name, USERNS): Difference(UNSETTLED, NOT_OF_THE_HOST) for name in NEEDS_THE_HOSTS_ROOT},
    ("an append only file only grows", WRITEBACK): Difference(
        ["EPERM", "EPERM", "EPERM", b"x"],
        "what is written back has its place, and the host writes only at the end: refused",
    ),
}


def expected(name: str, setup: str, on_the_host: object) -> object:
    """What must come of a rule on the share of this setup."""
    difference = KNOWN.get((name, setup)) or KNOWN.get((name, FUSE))
    if difference is None or difference.outcome is AS_THE_HOST:
        return on_the_host
    return difference.outcome
