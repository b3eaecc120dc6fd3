# SPDX-License-Identifier: Apache-2.0
"""The names of the flags of FUSE INIT, for people."""

from typing import Final

from vfsd.transport.native import lib

NAMES: Final = (
    "ASYNC_READ", "POSIX_LOCKS", "FILE_OPS", "ATOMIC_O_TRUNC", "EXPORT_SUPPORT", "BIG_WRITES",
    "DONT_MASK", "SPLICE_WRITE", "SPLICE_MOVE", "SPLICE_READ", "FLOCK_LOCKS", "HAS_IOCTL_DIR",
    "AUTO_INVAL_DATA", "DO_READDIRPLUS", "READDIRPLUS_AUTO", "ASYNC_DIO", "WRITEBACK_CACHE",
    "NO_OPEN_SUPPORT", "PARALLEL_DIROPS", "HANDLE_KILLPRIV", "POSIX_ACL", "ABORT_ERROR",
    "MAX_PAGES", "CACHE_SYMLINKS", "NO_OPENDIR_SUPPORT", "EXPLICIT_INVAL_DATA", "MAP_ALIGNMENT",
    "SUBMOUNTS", "HANDLE_KILLPRIV_V2", "SETXATTR_EXT", "INIT_EXT", "SECURITY_CTX",
    "HAS_INODE_DAX", "CREATE_SUPP_GROUP", "HAS_EXPIRE_ONLY", "DIRECT_IO_ALLOW_MMAP",
    "PASSTHROUGH", "HAS_RESEND", "ALLOW_IDMAP", "OVER_IO_URING",
    "REQUEST_TIMEOUT",
)  # fmt: skip


def names_of(flags: int) -> list[str]:
    """The names of the flags in flags | flags2 << 32; a flag without a name is a number."""
    bits = {int(getattr(lib, f"FUSE_{name}", 0)): name for name in NAMES}
    found = [1 << bit for bit in range(64) if flags >> bit & 1]
    return [bits.get(bit, hex(bit)) for bit in found]
