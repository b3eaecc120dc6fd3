# SPDX-License-Identifier: Apache-2.0
"""What tells the daemons of one host apart: a name for people, and a key that outlives restarts."""

import os
import socket
import struct
from contextlib import suppress
from pathlib import Path
from typing import Final

from vfsd.supervisor.options import Options

NAMELESS: Final = ("sock",)  # names of sockets that have a folder of their own
LENGTH_MAX: Final = 100  # characters
_PID_NAMESPACE: Final = Path("/proc/self/ns/pid")
_PEER: Final = struct.Struct("=iII")  # struct ucred


def instance_name(options: Options, sock: socket.socket) -> str:
    """What processes and log lines are called after.

    The file name of the socket without its suffix, or its folder where that name says nothing. A
    tool that passes an fd names the VM in the folder (libvirt: domain-1-vm/fs0-fs.sock), in an
    abstract address, or is the VMM itself (qemu -name guest=vm).
    """
    name = _of_path(options.socket_path) if options.socket_path else _of_fd(options.fd, sock)
    return "".join(c if c.isprintable() else "?" for c in name[:LENGTH_MAX])


def instance_key(options: Options, sock: socket.socket) -> bytes:
    """The same for every start of one instance, and another one for each that runs beside it. In
    containers paths are alike: their pid namespaces are not."""
    path = options.socket_path
    own = os.fsencode(Path(path).absolute()) if path else instance_name(options, sock).encode()
    return b"%d %b" % (_PID_NAMESPACE.stat().st_ino, own)


def _of_path(path: str) -> str:
    where = Path(path).absolute()
    return where.parent.name if where.stem in NAMELESS else where.stem


def _of_fd(fd: int | None, sock: socket.socket) -> str:
    address = os.fsdecode(sock.getsockname())
    if address.startswith("/"):
        where = Path(address)
        return where.parent.name if where.stem in NAMELESS else f"{where.parent.name}/{where.stem}"
    return address.lstrip("\0") or _of_peer(sock) or f"fd{fd}"


def _of_peer(sock: socket.socket) -> str:
    """The name that QEMU was given, of the other end of a connection; "" if there is none."""
    with suppress(OSError, ValueError):
        peer = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
        pid, _, _ = _PEER.unpack(peer)
        words = Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0")
        value = words[words.index("-name") + 1]
        return value.split(",")[0].removeprefix("guest=")
    return ""
