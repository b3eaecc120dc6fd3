# SPDX-License-Identifier: Apache-2.0
"""The tables of docs/protocol.md: what is served, made from the code, and what is not served, and
why.

The tables of what is not served are written in this file. protocol_gaps() compares both kinds of
table with the numbers that the protocols define, so that a message, an opcode or a flag is in one
table and never in two.
"""

from collections.abc import Iterable, Iterator
from typing import Any, Final

from security_tables import table

from vfsd.supervisor import session
from vfsd.transport.native import ffi, lib, text
from vfsd.transport.vhost_user import MESSAGES, MessageKind, ProtocolFeature, VirtioFeature
from vfsd.worker import init

_MIGRATION: Final = "migration is not offered"
_NO_DAX: Final = "there is no DAX window"
_OTHER_DEVICE: Final = "for another kind of device"
_POSTCOPY: Final = "postcopy is a part of migration, which is not offered"
_DEVICE: Final = "about /dev/fuse, which virtio-fs does not use"
_NOTIFICATION: Final = "about notifications, which virtio-fs has no queue for in any released guest"

# Messages of a front-end that are not served: number -> name, reason.
MESSAGES_NOT_SERVED: Final = {
    6: ("SET_LOG_BASE", _MIGRATION),
    7: ("SET_LOG_FD", _MIGRATION),
    19: ("SEND_RARP", _OTHER_DEVICE),
    20: ("NET_SET_MTU", _OTHER_DEVICE),
    21: ("SET_BACKEND_REQ_FD", "the device sends no requests to a front-end"),
    22: ("IOTLB_MSG", "VIRTIO_F_ACCESS_PLATFORM is not offered"),
    23: ("SET_VRING_ENDIAN", "only devices of virtio 1.0 and later are served: little-endian"),
    26: ("CREATE_CRYPTO_SESSION", _OTHER_DEVICE),
    27: ("CLOSE_CRYPTO_SESSION", _OTHER_DEVICE),
    28: ("POSTCOPY_ADVISE", _POSTCOPY),
    29: ("POSTCOPY_LISTEN", _POSTCOPY),
    30: ("POSTCOPY_END", _POSTCOPY),
    33: ("GPU_SET_SOCKET", _OTHER_DEVICE),
    35: ("VRING_KICK", "kicks and calls are eventfds"),
    39: ("SET_STATUS", "the status of the device has no effect here"),
    40: ("GET_STATUS", "the status of the device has no effect here"),
    41: ("GET_SHARED_OBJECT", _OTHER_DEVICE),
    42: ("SET_DEVICE_STATE_FD", _MIGRATION),
    43: ("CHECK_DEVICE_STATE", _MIGRATION),
    44: ("GET_SHMEM_CONFIG", _NO_DAX),
}
LAST_MESSAGE: Final = 44

VIRTIO_FEATURES_NOT_OFFERED: Final = {
    0: ("VIRTIO_FS_F_NOTIFICATION", "no released guest has the queue for it"),
    26: ("LOG_ALL", _MIGRATION),
    33: ("ACCESS_PLATFORM", "addresses behind an IOMMU are not translated"),
    34: ("RING_PACKED", "split rings only"),
    35: ("IN_ORDER", "requests may finish in another order than they arrive"),
    38: ("NOTIFICATION_DATA", "a kick is an eventfd, which carries no data"),
    40: ("RING_RESET", "no VMM resets a single queue of virtio-fs"),
}

PROTOCOL_FEATURES_NOT_OFFERED: Final = {
    1: ("LOG_SHMFD", _MIGRATION),
    2: ("RARP", _OTHER_DEVICE),
    4: ("MTU", _OTHER_DEVICE),
    5: ("BACKEND_REQ", "the device sends no requests to a front-end"),
    6: ("CROSS_ENDIAN", "only devices of virtio 1.0 and later are served: little-endian"),
    7: ("CRYPTO_SESSION", _OTHER_DEVICE),
    8: ("PAGEFAULT", _POSTCOPY),
    10: ("BACKEND_SEND_FD", "the device sends no requests to a front-end"),
    11: ("HOST_NOTIFIER", "for devices in hardware"),
    14: ("INBAND_NOTIFICATIONS", "kicks and calls are eventfds"),
    16: ("STATUS", "the status of the device has no effect here"),
    17: ("XEN_MMAP", "guest memory is shared by fds"),
    18: ("SHARED_OBJECT", _OTHER_DEVICE),
    19: ("DEVICE_STATE", _MIGRATION),
    20: ("GET_VRING_BASE_INFLIGHT", "a vring stops only after its requests have finished"),
    21: ("GPA_ADDRESSES", "rings are given by addresses of the front-end"),
    22: ("SHMEM", _NO_DAX),
}
LAST_PROTOCOL_FEATURE: Final = 22

OPCODES_NOT_SERVED: Final = {
    37: ("BMAP", "only for file systems on a block device of the guest"),
    40: ("POLL", "regular files are always ready; the guest itself serves fifos and devices"),
    41: ("NOTIFY_REPLY", _NOTIFICATION),
    48: ("SETUPMAPPING", _NO_DAX),
    49: ("REMOVEMAPPING", _NO_DAX),
    4096: ("CUSE_INIT", "character devices in user space are not file systems"),
}

INIT_FLAGS_NOT_AGREED: Final = {
    2: ("FILE_OPS", "Linux has never used this flag"),
    7: ("SPLICE_WRITE", _DEVICE),
    8: ("SPLICE_MOVE", _DEVICE),
    9: ("SPLICE_READ", _DEVICE),
    17: ("NO_OPEN_SUPPORT", "file handles carry state: locks, flags, open files that are unlinked"),
    19: ("HANDLE_KILLPRIV", "HANDLE_KILLPRIV_V2 is agreed; it says which user writes"),
    21: ("ABORT_ERROR", _DEVICE),
    24: ("NO_OPENDIR_SUPPORT", "handles of directories carry state: the position of a listing"),
    25: ("EXPLICIT_INVAL_DATA", _NOTIFICATION),
    26: ("MAP_ALIGNMENT", _NO_DAX),
    31: ("INIT_RESERVED", "reserved"),
    33: ("HAS_INODE_DAX", _NO_DAX),
    35: ("HAS_EXPIRE_ONLY", _NOTIFICATION),
    37: ("PASSTHROUGH", _DEVICE),
    38: ("NO_EXPORT_SUPPORT", "inodes can be looked up by nodeid: EXPORT_SUPPORT"),
    39: ("HAS_RESEND", _NOTIFICATION),
    41: ("OVER_IO_URING", _DEVICE),
    42: ("REQUEST_TIMEOUT", "a request waits for storage without a limit"),
}
LAST_INIT_FLAG: Final = 42

_EXTRA: Final = (  # what follows the fixed argument of a request
    (lib.OP_NAME, "a name"),
    (lib.OP_NAMES, "two names"),
    (lib.OP_PAYLOAD, "more"),
    (lib.OP_DATA_IN, "file data"),
)
_TRAITS: Final = (
    (lib.OP_DATA_OUT, "data goes straight to guest memory"),
    (lib.OP_NO_REPLY, "no reply"),
    (lib.OP_MUTATES, "EROFS with `--readonly`"),
    (lib.OP_ONCE, "once"),
    (lib.OP_COLD, "handled in Python"),
)


def messages() -> str:
    """vhost-user messages of the front-end that are served."""
    rows = [_message(kind) for _, kind in sorted(MESSAGES.items())]
    return table(("number", "message", "payload", "reply", "fds", "needs", "when"), rows)


def _message(kind: MessageKind) -> tuple[str, ...]:
    return (
        str(int(kind.number)),
        kind.name,
        _type(kind.payload, ""),
        _type(kind.reply, "acknowledgement"),
        kind.fds.value,
        kind.needs.name or "" if kind.needs else "",
        kind.states.value,
    )


def _type(payload: type | None, none: str) -> str:
    return f"`{payload.__name__}`" if payload else none


def messages_not_served() -> str:
    return _reasons("number", "message", MESSAGES_NOT_SERVED)


def features() -> str:
    """Feature bits of virtio and of vhost-user that are offered."""
    offered: list[VirtioFeature | ProtocolFeature] = [
        *(bit for bit in VirtioFeature if bit & session.FEATURES),
        *(bit for bit in ProtocolFeature if bit & session.PROTOCOL_FEATURES),
        ProtocolFeature.CONFIG,
    ]
    rows = [
        (
            "virtio" if isinstance(bit, VirtioFeature) else "vhost-user",
            _number(bit),
            bit.name or "",
            "always" if bit is not ProtocolFeature.CONFIG else "with `--tag`",
        )
        for bit in offered
    ]
    return table(("of", "bit", "feature", "offered"), rows)


def _number(bit: int) -> str:
    return str(int(bit).bit_length() - 1)


def virtio_features_not_offered() -> str:
    return _reasons("bit", "virtio feature", VIRTIO_FEATURES_NOT_OFFERED)


def protocol_features_not_offered() -> str:
    return _reasons("bit", "vhost-user feature", PROTOCOL_FEATURES_NOT_OFFERED)


def served_opcodes() -> Iterator[tuple[int, str, int, int]]:
    """Number, name, bytes of fixed argument, and flags of each opcode that is served."""
    for opcode in range(lib.FUSE_OPCODE_MAX):
        row: Any = lib.fuse_op(opcode)
        if name := text(row.name):
            yield opcode, name, row.arg_size, row.flags


def opcodes() -> str:
    """FUSE opcodes that are served."""
    rows = [
        (str(opcode), name, _argument(size, flags), "; ".join(_words(_TRAITS, flags)))
        for opcode, name, size, flags in served_opcodes()
    ]
    return table(("opcode", "request", "argument", "remarks"), rows)


def _argument(size: int, flags: int) -> str:
    fixed = [f"{size} bytes"] if size else []
    return ", ".join([*fixed, *_words(_EXTRA, flags)])


def _words(meanings: Iterable[tuple[int, str]], flags: int) -> list[str]:
    return [words for bit, words in meanings if flags & bit]


def opcodes_not_served() -> str:
    return _reasons("opcode", "request", OPCODES_NOT_SERVED)


class _Questions:
    """Takes the place of a Filesystem, and records which of its fields are read."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __getattr__(self, name: str) -> str:
        self.asked.append(name)
        return ""


def init_flags() -> str:
    """INIT flags that are agreed if the guest offers them."""
    bits = _bits()
    rows = [
        (str(bits[row.name]), row.name, f"7.{row.since}", ", ".join(_decided_by(row)))
        for row in init.FEATURES
    ]
    return table(("bit", "flag", "guests from", "depends on"), rows)


def _bits() -> dict[str, int]:
    """The bit of each INIT flag that can be agreed."""
    return {n: bit for bit in range(64) for n in init.Agreement(0, 1 << bit, 0, 0, 0).names()}


def _decided_by(row: init.Feature) -> list[str]:
    questions: Any = _Questions()
    row.wanted(questions)
    return [f"`--{name.replace('_', '-')}`" for name in questions.asked]


def init_flags_not_agreed() -> str:
    return _reasons("bit", "flag", INIT_FLAGS_NOT_AGREED)


def limits() -> str:
    """The limits of a session."""
    rows = [
        ("FUSE", f"{init.MAJOR}.{init.MINOR_MIN} to {init.MAJOR}.{init.MINOR}"),
        ("pages of a request", f"{init.MAX_PAGES}; {init.MAX_PAGES_OLD} without MAX_PAGES"),
        ("background requests of a guest", str(init.MAX_BACKGROUND)),
        ("granularity of times", f"{init.TIME_GRANULARITY} ns"),
        ("vrings", f"{lib.DEVICE_VRINGS_MAX}: hiprio and {lib.DEVICE_VRINGS_MAX - 1} for requests"),
        ("regions of guest memory", str(lib.DEVICE_REGIONS_MAX)),
    ]
    return table(("what", "limit"), rows)


# Name of a part of docs/protocol.md -> the function that makes the part.
TABLES: Final = {
    "limits": limits,
    "messages": messages,
    "messages not served": messages_not_served,
    "features": features,
    "virtio features not offered": virtio_features_not_offered,
    "protocol features not offered": protocol_features_not_offered,
    "opcodes": opcodes,
    "opcodes not served": opcodes_not_served,
    "init flags": init_flags,
    "init flags not agreed": init_flags_not_agreed,
}


def _reasons(number: str, name: str, rows: dict[int, tuple[str, str]]) -> str:
    return table((number, name, "because"), [(str(n), *row) for n, row in rows.items()])


def protocol_gaps() -> list[str]:
    """The numbers of the protocols that no table has, or two tables have; empty if there are
    none."""
    known: Any = ffi.typeof("enum fuse_opcode")
    fuse = {number for name, number in known.relements.items() if "BSWAP" not in name}
    served = {row[0] for row in served_opcodes()}
    offered = {int(_number(bit)) for bit in ProtocolFeature if bit & session.PROTOCOL_FEATURES}
    offered.add(int(_number(ProtocolFeature.CONFIG)))
    not_offered = VIRTIO_FEATURES_NOT_OFFERED
    parts: tuple[tuple[str, set[int], set[int], set[int]], ...] = (
        ("message", set(range(1, LAST_MESSAGE + 1)), set(MESSAGES), set(MESSAGES_NOT_SERVED)),
        ("protocol feature", set(range(LAST_PROTOCOL_FEATURE + 1)), offered,
         set(PROTOCOL_FEATURES_NOT_OFFERED)),
        ("opcode", fuse | served, served, set(OPCODES_NOT_SERVED)),
        ("INIT flag", set(range(LAST_INIT_FLAG + 1)), set(_bits().values()),
         set(INIT_FLAGS_NOT_AGREED)),
        ("virtio feature", {int(_number(bit)) for bit in VirtioFeature} | set(not_offered),
         {int(_number(bit)) for bit in VirtioFeature if bit & session.FEATURES}, set(not_offered)),
    )  # fmt: skip
    return [
        f"{kind} {number}"
        for kind, all_of_them, here, there in parts
        for number in sorted((all_of_them ^ (here | there)) | (here & there))
    ]
