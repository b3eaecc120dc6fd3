# SPDX-License-Identifier: Apache-2.0
"""FUSE INIT: what guest and worker agree on, from one table of features against the options.

FUSE 7.27 (Linux 4.20) is the oldest protocol that is served: requests and replies had other sizes
before, and virtio-fs came later (Linux 5.4, FUSE 7.31).
"""

import errno
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from vfsd.transport.job import Filesystem
from vfsd.transport.native import ffi, lib

MAJOR: Final = lib.FUSE_KERNEL_VERSION
MINOR: Final = 45  # the newest protocol of which all requests are known
MINOR_MIN: Final = 27

PAGE: Final = lib.PAGE
MAX_PAGES: Final = 256  # of one request
MAX_PAGES_OLD: Final = 32  # what a guest without MAX_PAGES uses
MAX_BACKGROUND: Final = 256  # readahead and write-back requests under way, all queues together
CONGESTION: Final = MAX_BACKGROUND * 3 // 4
TIME_GRANULARITY: Final = 1  # ns

_KILLPRIV: Final = "HANDLE_KILLPRIV_V2"


@dataclass(frozen=True)
class Feature:
    """One INIT flag, FUSE_<name> in <linux/fuse.h>. `since` is the minor version that named the
    flag, if that is younger than MINOR_MIN."""

    name: str
    wanted: Callable[[Filesystem], bool]
    since: int = MINOR_MIN

    @property
    def flag(self) -> int:
        """The flag's bit in flags | flags2 << 32."""
        return int(getattr(lib, f"FUSE_{self.name}"))


def _always(_fs: Filesystem) -> bool:
    return True


# A flag that the guest offers and a row wants is agreed, unless the row is younger than the guest's
# minor version: then the bit had no meaning yet. Flags without a row are never agreed: SPLICE_*
# (only for /dev/fuse), HANDLE_KILLPRIV (version 2 replaces it), EXPLICIT_INVAL_DATA,
# HAS_EXPIRE_ONLY and HAS_RESEND (notifications, which virtio-fs does not have), NO_OPEN and
# NO_OPENDIR (handles carry state), HAS_INODE_DAX and MAP_ALIGNMENT (no DAX window), PASSTHROUGH and
# OVER_IO_URING (not for virtio-fs), REQUEST_TIMEOUT and ABORT_ERROR.
FEATURES: Final = (
    Feature("ASYNC_READ", _always),
    Feature("POSIX_LOCKS", lambda fs: fs.posix_lock),
    Feature("ATOMIC_O_TRUNC", _always),  # with HANDLE_KILLPRIV_V2 only: see negotiate()
    Feature("EXPORT_SUPPORT", _always),  # LOOKUP of "." and ".." by nodeid works
    Feature("BIG_WRITES", _always),
    Feature("DONT_MASK", _always),  # the ops apply the umask, since a default ACL overrides it
    Feature("FLOCK_LOCKS", lambda fs: fs.flock),
    Feature("HAS_IOCTL_DIR", _always),
    Feature("AUTO_INVAL_DATA", _always),
    Feature("DO_READDIRPLUS", lambda fs: fs.readdirplus),
    Feature("READDIRPLUS_AUTO", lambda fs: fs.readdirplus),
    Feature("ASYNC_DIO", _always),
    Feature("WRITEBACK_CACHE", lambda fs: fs.writeback),
    Feature("PARALLEL_DIROPS", _always),
    Feature("POSIX_ACL", lambda fs: fs.posix_acl != "never"),
    Feature("MAX_PAGES", _always, 28),
    Feature("CACHE_SYMLINKS", lambda fs: fs.cache == "always", 28),
    Feature("SUBMOUNTS", lambda fs: fs.announce_submounts, 32),
    Feature(_KILLPRIV, lambda fs: fs.killpriv_v2, 33),
    Feature("SETXATTR_EXT", _always, 33),
    Feature("INIT_EXT", _always, 36),
    Feature("SECURITY_CTX", lambda fs: fs.security_label != "never", 36),
    Feature("CREATE_SUPP_GROUP", _always, 38),
    Feature("DIRECT_IO_ALLOW_MMAP", lambda fs: fs.allow_mmap, 39),
    Feature("ALLOW_IDMAP", lambda fs: fs.idmapped_mounts, 41),
)
_BITS: Final = {feature.name: feature.flag for feature in FEATURES}
# The flags that ACLs need. Without the other two, a guest that enforces ACLs would get modes wrong:
# it would apply the umask in spite of a default ACL, and keep set-group-id in spite of a new access
# ACL.
_FOR_ACLS: Final = ("POSIX_ACL", "DONT_MASK", "SETXATTR_EXT")


class InitError(Exception):
    """INIT cannot be answered with a session; `errno` is the guest's reply."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.errno = errno.EPROTO


@dataclass(frozen=True)
class Offer:
    """What the guest offers (struct fuse_init_in)."""

    major: int
    minor: int
    max_readahead: int  # bytes
    flags: int  # flags | flags2 << 32


@dataclass(frozen=True)
class Agreement:
    """What guest and worker have agreed on for the session."""

    minor: int
    flags: int
    max_readahead: int  # bytes
    max_write: int  # bytes
    max_pages: int  # 0: not in the reply

    def names(self) -> list[str]:
        return [name for name, bit in _BITS.items() if self.flags & bit]


def read_offer(argument: bytes) -> Offer:
    """Read struct fuse_init_in; fields that an older guest does not send are 0."""
    raw: Any = ffi.new("struct fuse_init_in *")
    ffi.memmove(raw, argument, min(len(argument), ffi.sizeof("struct fuse_init_in")))
    extended = raw.flags2 if raw.flags & _named_by(raw.minor) & _BITS["INIT_EXT"] else 0
    return Offer(raw.major, raw.minor, raw.max_readahead, raw.flags | extended << 32)


def _named_by(minor: int) -> int:
    """The flags that have a meaning in this minor version."""
    return sum(feature.flag for feature in FEATURES if feature.since <= minor)


def negotiate(offer: Offer, fs: Filesystem) -> Agreement:
    """Agree on the flags that are both offered and wanted. InitError if the guest's protocol is too
    old, or if the guest lacks a flag that the operator insists on."""
    if (offer.major, offer.minor) < (MAJOR, MINOR_MIN):
        raise InitError(
            f"the guest speaks FUSE {offer.major}.{offer.minor}; "
            f"{MAJOR}.{MINOR_MIN} is the oldest that is served"
        )
    wanted = sum(feature.flag for feature in FEATURES if feature.wanted(fs))
    offered = offer.flags & _named_by(offer.minor)
    flags = offered & wanted & ~_acls_not_enforced(offered, fs)
    if fs.security_label == "always" and not flags & _BITS["SECURITY_CTX"]:
        raise InitError(
            "--security-label=always: the guest's kernel lacks SECURITY_CTX;"
            " its mount is refused; --security-label=auto would serve it without labels"
        )
    if offered & (_BITS["DO_READDIRPLUS"] | _BITS["READDIRPLUS_AUTO"]) == _BITS["DO_READDIRPLUS"]:
        flags |= _BITS["DO_READDIRPLUS"]  # not Linux: UEFI firmware refuses a session without it
    if not flags & _BITS["HANDLE_KILLPRIV_V2"]:
        # Without this flag Linux clears set-id bits itself, but not before an OPEN that truncates;
        # and since ALLOW_IDMAP an OPEN does not say which user asks. When Linux truncates by
        # SETATTR, it clears the bits correctly.
        flags &= ~_BITS["ATOMIC_O_TRUNC"]
    pages = MAX_PAGES if flags & _BITS["MAX_PAGES"] else MAX_PAGES_OLD
    return Agreement(
        minor=min(offer.minor, MINOR),
        flags=flags,
        max_readahead=offer.max_readahead,
        max_write=pages * PAGE,
        max_pages=pages if pages == MAX_PAGES else 0,
    )


def _acls_not_enforced(offered: int, fs: Filesystem) -> int:
    """POSIX_ACL if this guest lacks a flag that ACLs need, else 0; InitError if the operator
    insists on ACLs."""
    missing = [name for name in _FOR_ACLS if not offered & _BITS[name]]
    if missing and fs.posix_acl == "always":
        raise InitError(
            f"--posix-acl=always: the guest's kernel lacks {', '.join(missing)};"
            " its mount is refused; --posix-acl=auto would serve it without ACLs"
        )
    return _BITS["POSIX_ACL"] if missing else 0


def shortcomings(agreement: Agreement, fs: Filesystem) -> list[str]:
    """The features that the operator asked for by name and this guest does not have; one line
    each."""
    if fs.killpriv_v2_asked and fs.killpriv_v2 and not agreement.flags & _BITS[_KILLPRIV]:
        return [
            "--killpriv-v2: the guest's kernel does not offer it, and clears set-id bits itself"
        ]
    return []


def encode(agreement: Agreement) -> bytes:
    """The reply, struct fuse_init_out."""
    raw: Any = ffi.new("struct fuse_init_out *")
    raw.major = MAJOR
    raw.minor = agreement.minor
    raw.max_readahead = agreement.max_readahead
    raw.flags = agreement.flags & 0xFFFFFFFF
    raw.flags2 = agreement.flags >> 32
    raw.max_background = MAX_BACKGROUND
    raw.congestion_threshold = CONGESTION
    raw.max_write = agreement.max_write
    raw.time_gran = TIME_GRANULARITY
    raw.max_pages = agreement.max_pages
    return bytes(ffi.buffer(raw))


def encode_version() -> bytes:
    """The reply to a major version above ours: the guest then sends INIT again with our version."""
    raw: Any = ffi.new("struct fuse_init_out *")
    raw.major = MAJOR
    raw.minor = MINOR
    return bytes(ffi.buffer(raw))
