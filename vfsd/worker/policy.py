# SPDX-License-Identifier: Apache-2.0
"""What the options mean for the ops: struct fs_policy (policy.h), filled once per worker."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any, Final

from vfsd.transport import idmap, xattrmap
from vfsd.transport.job import Filesystem
from vfsd.transport.native import ffi, lib
from vfsd.worker.handles import Outcome

# Parallel writes to a file are safe without the guest's lock: the host orders them.
UNCACHED: Final = lib.FOPEN_DIRECT_IO | lib.FOPEN_PARALLEL_DIRECT_WRITES

# cache mode -> open flags of files, of directories. FOPEN_NOFLUSH depends on the file: ops_open.c.
OPEN_FLAGS: Final = {
    "never": (UNCACHED, 0),
    "metadata": (UNCACHED, lib.FOPEN_CACHE_DIR | lib.FOPEN_KEEP_CACHE),
    "auto": (0, 0),
    "always": (lib.FOPEN_KEEP_CACHE, lib.FOPEN_CACHE_DIR | lib.FOPEN_KEEP_CACHE),
}
FILE_HANDLES: Final = {
    Outcome.FDS: lib.FILE_HANDLES_NEVER,
    Outcome.SIGNED: lib.FILE_HANDLES_SIGNED,
    Outcome.PREFER: lib.FILE_HANDLES_PREFER,
    Outcome.MANDATORY: lib.FILE_HANDLES_MANDATORY,
}
FOR_EVER: Final = (1 << 64) - 1  # ns
_OPTIONS: Final = {field.name for field in fields(Filesystem)}
# The on-off options that C acts upon; they have the same names in struct fs_policy.
SWITCHES: Final = tuple(
    name
    for name, member in ffi.typeof("struct fs_policy").fields
    if member.type is ffi.typeof("_Bool") and name in _OPTIONS
)


ACTIONS: Final = {
    "bad": lib.XATTRMAP_BAD,
    "unsupported": lib.XATTRMAP_UNSUPPORTED,
    "ok": lib.XATTRMAP_OK,
    "prefix": lib.XATTRMAP_PREFIX,
}


def _fill_idmap(table: Any, ranges: Sequence[idmap.Range]) -> None:
    """Fill a struct idmap."""
    table.count = len(ranges)
    for entry, r in zip(table.ranges, ranges, strict=False):
        entry.first, entry.last, entry.to, entry.step = r.first, r.last, r.to, r.step


def _holds_back(fs: Filesystem) -> bool:
    """Can the guest write data later than its programs do? That happens with a write-back cache,
    and with shared mappings; Linux allows no shared mapping of a file that bypasses the page cache,
    except with allow_mmap."""
    is_cached = not OPEN_FLAGS[fs.cache][0] & lib.FOPEN_DIRECT_IO
    return not fs.readonly and (fs.writeback or is_cached or fs.allow_mmap)


def _fill_timeout(timeout: Any, seconds: float) -> None:
    """Fill a struct fs_timeout."""
    timeout.sec, timeout.nsec = divmod(int(seconds * 1e9), 1_000_000_000)


def fill(policy: Any, fs: Filesystem, outcome: Outcome) -> None:
    """Fill a struct fs_policy. `outcome`: how inodes are held."""
    _fill_timeout(policy.entry_timeout, fs.entry_timeout)
    _fill_timeout(policy.attr_timeout, fs.attr_timeout)
    policy.file_handles = FILE_HANDLES[outcome]
    _fill_timeout(policy.negative_timeout, fs.negative_timeout)
    policy.lock_wait_ns = FOR_EVER if fs.lock_wait is None else int(fs.lock_wait * 1e9)
    policy.file_open_flags, policy.dir_open_flags = OPEN_FLAGS[fs.cache]
    policy.keeps_unchanged = fs.cache == "auto"
    policy.holds_back = _holds_back(fs)
    for name in SWITCHES:
        setattr(policy, name, getattr(fs, name))
    for pair, rules in ((policy.uids, fs.translate_uid), (policy.gids, fs.translate_gid)):
        maps = idmap.combine(rules)
        _fill_idmap(pair.to_host, maps.to_host)
        _fill_idmap(pair.to_guest, maps.to_guest)
    fill_xattrmap(policy.xattrmap, xattrmap.parse(fs.xattrmap) if fs.xattrmap else ())


def fill_xattrmap(table: Any, rules: tuple[xattrmap.Rule, ...]) -> None:
    """Compile the rules into a struct xattrmap."""
    table.rule_count = len(rules)
    for row, rule in zip(table.rules[0 : len(rules)], rules, strict=True):
        row.action = ACTIONS[rule.type]
        row.client, row.server = rule.client, rule.server
        row.key_len, row.key = len(rule.key), rule.key
        row.prepend_len, row.prepend = len(rule.prepend), rule.prepend
