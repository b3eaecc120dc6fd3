# SPDX-License-Identifier: Apache-2.0
"""How the daemons of one host differ: a name for people, and a key that outlives restarts."""

import os
import socket
import struct
from contextlib import suppress
from pathlib import Path
from typing import Final

from vfsd.supervisor.options import Options

NAMELESS: Final = ("sock",)  # socket names that say nothing: their folder names the instance
LENGTH_MAX: Final = 100  # characters
_PID_NAMESPACE: Final = Path("/proc/self/ns/pid")
_PEER: Final = struct.Struct("=iII")  # struct ucred


def instance_name(options: Options, sock: socket.socket | None) -> str:
    """The name of this daemon in process titles and log lines.

    The name is the file name of the socket without its suffix, or the socket's folder if the file
    name says nothing. A tool that passes an fd has the name of the VM in the folder of the socket
    (libvirt: domain-1-vm/fs0-fs.sock), in an abstract address, or in the command line of the VMM
    that is the other end (qemu -name guest=vm).
    """
    path = options.socket_path or options.connect
    name = _of_path(path) if path else _of_fd(options.fd, sock)
    return "".join(c if c.isprintable() else "?" for c in name[:LENGTH_MAX])


def instance_key(options: Options, sock: socket.socket | None) -> bytes:
    """A key that is the same at every start of one instance, and differs between instances that run
    at the same time. The pid namespace is part of the key, because paths in different containers
    may be equal."""
    path = options.socket_path or options.connect
    own = os.fsencode(Path(path).absolute()) if path else instance_name(options, sock).encode()
    return b"%d %b" % (_PID_NAMESPACE.stat().st_ino, own)


def _of_path(path: str) -> str:
    where = Path(path).absolute()
    return where.parent.name if where.stem in NAMELESS else where.stem


def _of_fd(fd: int | None, sock: socket.socket | None) -> str:
    assert sock
    address = os.fsdecode(sock.getsockname())
    if address.startswith("/"):
        where = Path(address)
        return where.parent.name if where.stem in NAMELESS else f"{where.parent.name}/{where.stem}"
    return address.lstrip("\0") or _of_peer(sock) or f"fd{fd}"


def _of_peer(sock: socket.socket) -> str:
    """The value of -name in the command line of QEMU at the other end of a connection; "" if there
    is none."""
    with suppress(OSError, ValueError):
        peer = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
        pid, _, _ = _PEER.unpack(peer)
        words = Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0")
        value = words[words.index("-name") + 1]
        return value.split(",")[0].removeprefix("guest=")
    return ""
