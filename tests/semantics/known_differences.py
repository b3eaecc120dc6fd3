# SPDX-License-Identifier: Apache-2.0
"""What Linux' FUSE client does otherwise than the host, whatever a server answers."""

from dataclasses import dataclass
from typing import Final

from .rules_attributes import CHANGES, CLEARED, CLEARED_OF_OTHERS

FUSE: Final = ""  # every share
NO_KILLPRIV: Final = "no-killpriv-v2"
WRITEBACK: Final = "writeback"
USERNS: Final = "userns"
UNSETTLED: Final = object()  # it depends on when the guest writes back
AS_THE_HOST: Final = object()

# The ops whose requests say that set-id bits go, but not who asks and what groups he is in.
TOLD_TO_KILL: Final = {
    "write",
    "append",
    "truncate",
    "truncate to the same size",
    "ftruncate",
    "O_TRUNC",
}
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
    ("what somebody else changes loses set id bits", FUSE): Difference(
        {name: CLEARED_OF_OTHERS if name in TOLD_TO_KILL else CLEARED for name in CHANGES},
        "SETATTR of nothing, which comes before the other ops, does not tell who asks",
    ),
    ("what somebody else changes loses set id bits", NO_KILLPRIV): Difference(
        dict.fromkeys(CHANGES, CLEARED),
        "without HANDLE_KILLPRIV_V2 fuse_setattr() makes the mode itself, and takes setgid from"
        " group executables only; the VFS takes it from every file of a group of others",
    ),
    ("what the owner changes loses set id bits", FUSE): Difference(
        {name: CLEARED_OF_OTHERS if name in TOLD_TO_KILL else CLEARED for name in CHANGES},
        "KILL_SUIDGID does not tell groups: setgid without group execution goes, to be safe",
    ),
    ("what the owner changes loses set id bits", NO_KILLPRIV): Difference(
        AS_THE_HOST, "the guest's kernel knows the groups"
    ),
    ("what changes a file changes its times", WRITEBACK): Difference(
        UNSETTLED,
        "the guest keeps mtime and ctime itself, leaves them alone when a truncate(2) changes no"
        " size, and reads a page (atime) to write to a part of it",
    ),
    ("times do not depend on how they are asked for", WRITEBACK): Difference(
        UNSETTLED, "ctime moves when the guest writes back"
    ),
    ("offsets have limits", WRITEBACK): Difference(
        ["ok", 1, b"", "ok", "EINVAL", "EFBIG"],
        "the host refuses such an offset when the guest writes back: fsync(2) tells",
    ),
    ("what root changes keeps set id bits", USERNS): Difference(
        dict.fromkeys(CHANGES, CLEARED), KEEPS_NO_SET_ID
    ),
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
