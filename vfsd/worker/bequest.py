# SPDX-License-Identifier: Apache-2.0
"""What a pool leaves to the sandbox that takes the place of its own: namespaces, files, an image.

The supervisor passes the socket to that sandbox with each order, so the pool keeps nothing, and the
next pool can carry the order out again. The workers have been halted before the files are sent:
nobody changes the tables then.
"""

import os
from collections.abc import Sequence
from typing import Any

from vfsd.transport.errors import ProtocolError
from vfsd.transport.heritage import Image, Namespaces, send_files, send_namespaces
from vfsd.transport.native import check, ffi, lib
from vfsd.transport.shared_memory import map_segment, unmap_segment
from vfsd.worker.inheritance import Inheritance
from vfsd.worker.sandbox import Sandbox
from vfsd.worker.sweep import read_fds


def show_namespaces(fds: Sequence[int], sandbox: Sandbox) -> None:
    """Carry out "show". `fds`: the socket to the other sandbox."""
    if len(fds) != 1:
        raise ProtocolError("'show' needs a socket")
    mount, user = (_open_namespace(sandbox, name) for name in ("mnt", "user"))
    try:
        send_namespaces(fds[0], Namespaces(sandbox.root_fd, mount, user))
    finally:
        os.close(mount)
        os.close(user)


def _open_namespace(sandbox: Sandbox, name: str) -> int:
    return os.open(f"self/ns/{name}", os.O_RDONLY | os.O_CLOEXEC, dir_fd=sandbox.proc_fd)


def bequeath(fds: Sequence[int], inherited: Inheritance) -> None:
    """Carry out "bequeath". `fds`: the socket to the other sandbox, and an empty segment for the
    image."""
    if len(fds) != 2:
        raise ProtocolError("'bequeath' needs a socket and a segment")
    sock, image = fds
    size = _write_image(inherited, image)
    tables = inherited.tables
    files = read_fds(lib.inode_table_fds, tables.inodes)
    files |= read_fds(lib.file_table_fds, tables.files)
    send_files(sock, sorted(files), Image(image, size))


def _write_image(inherited: Inheritance, segment: int) -> int:
    """Write the session image; returns its size."""
    job, tables = inherited.job, inherited.tables
    source: Any = ffi.new("struct image_tables *")
    source.inodes, source.files, source.workers = tables.inodes, tables.files, tables.workers
    source.inode_capacity, source.file_capacity = job.inode_capacity, job.file_capacity
    room = os.fstat(segment).st_size
    addr = map_segment(segment, room)
    try:
        return check(lib.session_image_write(source, addr, room))
    finally:
        unmap_segment(addr, room)
