# SPDX-License-Identifier: Apache-2.0
"""The rules in which Linux' FUSE client differs from the host, whatever the server answers."""

from dataclasses import dataclass
from typing import Final

from .rules_data import PAGE
from .rules_set_id import CHANGES, CLEARED, CLEARED_OF_OTHERS

FUSE: Final = ""  # every share
NO_IDMAPPED: Final = "no-idmapped-mounts"
WRITEBACK: Final = "writeback"
USERNS: Final = "userns"
UNSETTLED: Final = object()  # any outcome is right: it may depend on when the guest writes back
AS_THE_HOST: Final = object()

BY_OTHERS: Final = (
    "what another user changes loses set id bits",
    "what another user changes of roots group loses set id bits",
)
# These requests have no flag that says that set-id bits are to be cleared. If the file has such
# bits, the client sends a SETATTR that changes nothing before them.
SILENT: Final = {"fallocate", "keep size", "punch", "zero", "copy"}
KEPT_UNASKED: Final = {mode: oct(mode) for mode in (0o2767, 0o2666)}
NOBODY_SAYS_WHO: Final = (
    "with ALLOW_IDMAP a request does not have the ids of its user, and without HANDLE_KILLPRIV_V2"
    " fuse_setattr() computes the mode: in both cases only a file that its group can execute loses"
    " setgid"
)
KEEPS_NO_SET_ID: Final = (
    "the host's kernel clears set-id bits of a file when a process without CAP_FSETID on the host"
    " writes to it, and no process in a user namespace has that capability"
)
# These rules begin with a call that needs SYS_ADMIN or LINUX_IMMUTABLE on the host, and that
# returns EPERM in a user namespace.
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
    """The outcome of a rule on a share, and the reason for it."""

    outcome: object
    reason: str


# (name of the rule, name of the share's setup) -> the difference.
KNOWN: Final[dict[tuple[str, str], Difference]] = {
    ("fallocate collapses and inserts", FUSE): Difference(
        ["ENOTSUP", b"ABC", "ENOTSUP", b"ABC", "ENOTSUP"],
        "fuse_file_fallocate() accepts KEEP_SIZE, PUNCH_HOLE and ZERO_RANGE only, and sends no"
        " request for other modes",
    ),
    ("trusted attributes are roots", FUSE): Difference(
        [b"t", ["trusted.t", "user.u"], ["trusted.t", "user.u"], b"x", b"dir"],
        "LISTXATTR has no ids of the requester (they are -1 with ALLOW_IDMAP) and no request has"
        " capabilities, and fuse_listxattr() hides no name; without SYS_ADMIN (the default) a"
        " worker lists no such attribute",
    ),
    **{
        (name, FUSE): Difference(dict.fromkeys(CHANGES, CLEARED), NOBODY_SAYS_WHO)
        for name in BY_OTHERS
    },
    **{
        (name, NO_IDMAPPED): Difference(AS_THE_HOST, "requests have the ids of their user")
        for name in BY_OTHERS
    },
    ("what a supplementary member changes loses set id bits", NO_IDMAPPED): Difference(
        {name: CLEARED_OF_OTHERS | (KEPT_UNASKED if name in SILENT else {}) for name in CHANGES},
        "no request has the supplementary groups of the requester",
    ),
    ("what changes a file changes its times", WRITEBACK): Difference(
        UNSETTLED,
        "the guest keeps mtime and ctime itself, leaves them alone when a truncate(2) changes no"
        " size, and reads a page (atime) to write to a part of it",
    ),
    ("holes are found", WRITEBACK): Difference(
        ["ENXIO", 0, 16 * PAGE, 8 * PAGE, 12 * PAGE, 16 * PAGE, 16 * PAGE],
        "the guest may have data that it has not written back, so it takes the whole file for data",
    ),
    ("times do not depend on how they are asked for", WRITEBACK): Difference(
        UNSETTLED, "ctime moves when the guest writes back"
    ),
    ("offsets have limits", WRITEBACK): Difference(
        ["ok", 1, b"", "ok", "EINVAL", "EFBIG"],
        "the host refuses such an offset only when the guest writes back, so fsync(2) returns the"
        " error",
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
        "the guest writes data back at an offset, and the host refuses that, as an append-only file"
        " can be written only at its end",
    ),
}


def expected(name: str, setup: str, on_the_host: object) -> object:
    """The outcome that a rule must have on the share of this setup."""
    difference = KNOWN.get((name, setup)) or KNOWN.get((name, FUSE))
    if difference is None or difference.outcome is AS_THE_HOST:
        return on_the_host
    return difference.outcome
