# SPDX-License-Identifier: Apache-2.0
"""A copy of the dynamic loader, by which the pool's interpreter is executed.

THEORY

Purpose. /proc/self/exe leads to the file that was executed, from any namespace and any root
directory: the kernel lets every process follow its own link. A worker that was taken over could
open that file, and open_by_handle_at(2) then finds every file of the same file system, which for an
installed interpreter is the host's root. So the file that is executed is a memfd with a copy of
ld.so, and ld.so loads the interpreter as its program. Files that a process has only mapped cannot
be opened that way: the links in /proc/self/map_files need CAP_CHECKPOINT_RESTORE.

The copy has about 200 KiB, is made once and can never change.
"""

import os
import struct
from pathlib import Path
from typing import BinaryIO, Final

from vfsd.transport.shared_memory import create_blob

_ELF_64: Final = b"\x7fELF\x02"
_HEADER: Final = struct.Struct("=16sHHIQQQIHHH")  # Elf64_Ehdr as far as e_phnum; native order
_PROGRAM: Final = struct.Struct("=IIQQQQ")  # Elf64_Phdr as far as p_filesz
_PT_INTERP: Final = 3


def copy_loader(program: str) -> int | None:
    """A memfd with the loader that `program` asks for, to be executed with the program as its first
    argument. None if the program has no loader, or the kernel does not allow executable memfds."""
    try:
        with Path(program).open("rb") as file:
            loader = _interpreter(file)
        if not loader:
            return None
        return create_blob("vfsd-loader", Path(loader).read_bytes(), is_executable=True)
    except (OSError, struct.error):
        return None


def _interpreter(file: BinaryIO) -> str | None:
    """The path in PT_INTERP of an ELF file; None if the file has no PT_INTERP."""
    ident, _, _, _, _, start, _, _, _, size, count = _HEADER.unpack(file.read(_HEADER.size))
    if not ident.startswith(_ELF_64):
        return None
    for i in range(count):
        file.seek(start + i * size)
        kind, _, offset, _, _, length = _PROGRAM.unpack(file.read(_PROGRAM.size))
        if kind == _PT_INTERP:
            file.seek(offset)
            return os.fsdecode(file.read(length).rstrip(b"\0"))
    return None
