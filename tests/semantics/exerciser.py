# SPDX-License-Identifier: Apache-2.0
"""Random operations on one file, each compared with a model in memory.

The seed determines the sequence of operations, so a sequence that failed can be run again. The
error has a log of the last operations.
"""

import mmap
import os
import random
from collections import deque
from collections.abc import Callable
from typing import Final

from .process import attempt
from .syscalls import FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, FALLOC_ZERO_RANGE, fallocate

SIZE_MAX: Final = 256 * 1024
LENGTH_MAX: Final = 48 * 1024
SECTOR: Final = 4096
LOG: Final = 20


class Exerciser:
    """A file, its model, and operations on both. Only bytes from `begin` to `end` are touched."""

    def __init__(self, path: str, seed: int, *, begin: int = 0, end: int = SIZE_MAX) -> None:
        self._path = path
        self._random = random.Random(seed)  # noqa: S311
        self._begin, self._end = begin, end
        self._log: deque[str] = deque(maxlen=LOG)
        self._seed = seed
        self.alone = end - begin == SIZE_MAX  # no other Exerciser changes the file's size
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        self.model = bytearray(0 if self.alone else SIZE_MAX)

    def run(self, count: int) -> None:
        """Do `count` operations, then compare the whole file with the model."""
        shared = (
            *(self._write, self._write, self._read, self._read, self._map_write, self._map_read),
            *(self._punch, self._zero, self._copy, self._reopen, self._sync, self._write_vector),
            *(self._direct_write, self._direct_read),
        )
        alone = (self._truncate, self._truncate_path, self._append, self._allocate, self._keep_size)
        calls: list[Callable[[], str]] = [*shared, *(alone if self.alone else ())]
        try:
            for number in range(count):
                call = self._random.choice(calls)
                self._log.append(f"{number} {call.__name__}")
                self._log[-1] += f" {call()}"
                self._check_size()
            self._reopen()
            self._check(self._begin, self._pread(self._begin, self._end - self._begin))
        except BaseException as error:
            log = "\n  ".join(self._log)
            raise AssertionError(f"seed {self._seed}: {error!r} after\n  {log}") from error
        finally:
            os.close(self._fd)

    def content(self) -> bytes:
        return bytes(self.model)

    # ---- the model ----

    def _check_size(self) -> None:
        size = os.fstat(self._fd).st_size
        assert size == len(self.model), f"the file has {size} bytes, not {len(self.model)}"

    def _check(self, offset: int, data: bytes) -> None:
        wanted = self.model[offset : offset + len(data)] if data else b""
        if data == wanted:
            return
        pairs = enumerate(zip(data, wanted, strict=False))
        at = next((i for i, (a, b) in pairs if a != b), len(wanted))
        raise AssertionError(f"byte {offset + at} of {len(self.model)}: not what was written")

    def _put(self, offset: int, data: bytes) -> None:
        if offset > len(self.model):
            self.model.extend(bytes(offset - len(self.model)))
        self.model[offset : offset + len(data)] = data

    def _resize(self, size: int) -> None:
        del self.model[size:]
        self.model.extend(bytes(size - len(self.model)))

    def _range(self, *, within: bool = False) -> tuple[int, int]:
        """A random offset and length; with `within`, they are inside of the file's current size."""
        end = min(self._end, len(self.model)) if within else self._end
        if end <= self._begin:
            return self._begin, 0
        offset = self._random.randrange(self._begin, end)
        return offset, self._random.randint(1, min(LENGTH_MAX, end - offset))

    def _data(self, length: int) -> bytes:
        return self._random.randbytes(length)

    def _pread(self, offset: int, length: int) -> bytes:
        pieces = b""
        while len(pieces) < length:
            piece = os.pread(self._fd, length - len(pieces), offset + len(pieces))
            if not piece:
                break
            pieces += piece
        return pieces

    # ---- operations ----

    def _write(self) -> str:
        offset, length = self._range()
        data = self._data(length)
        assert os.pwrite(self._fd, data, offset) == length, "a short write"
        self._put(offset, data)
        return f"{length} at {offset}"

    def _write_vector(self) -> str:
        offset, length = self._range()
        data = self._data(length)
        cut = self._random.randint(0, length)
        assert os.pwritev(self._fd, [data[:cut], data[cut:]], offset) == length, "a short write"
        self._put(offset, data)
        return f"{cut}+{length - cut} at {offset}"

    def _read(self) -> str:
        offset, length = self._range()
        data = self._pread(offset, length)
        wanted = max(0, min(length, len(self.model) - offset))
        assert len(data) == wanted, f"{len(data)} bytes read, not {wanted}"
        self._check(offset, data)
        return f"{length} at {offset}"

    def _append(self) -> str:
        if len(self.model) > SIZE_MAX - 5000:
            return "full"
        data = self._data(self._random.randint(1, 5000))
        fd = os.open(self._path, os.O_WRONLY | os.O_APPEND)
        os.write(fd, data)
        os.close(fd)
        self.model += data
        return f"{len(data)}"

    def _truncate(self) -> str:
        size = self._random.randint(0, SIZE_MAX)
        os.ftruncate(self._fd, size)
        self._resize(size)
        return f"to {size}"

    def _truncate_path(self) -> str:
        size = self._random.randint(0, SIZE_MAX)
        os.truncate(self._path, size)
        self._resize(size)
        return f"to {size}"

    def _fallocate(self, mode: int, *, zero: bool, grow: bool) -> str:
        offset, length = self._range()
        outcome = attempt(fallocate, self._fd, mode, offset, length)
        if outcome == "ENOTSUP":
            return outcome
        assert outcome == "ok", outcome
        if grow and offset + length > len(self.model):
            self._resize(offset + length)
        until = min(offset + length, len(self.model))
        if zero and until > offset:
            self.model[offset:until] = bytes(until - offset)
        return f"{length} at {offset}"

    def _punch(self) -> str:
        return self._fallocate(FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE, zero=True, grow=False)

    def _zero(self) -> str:
        return self._fallocate(FALLOC_ZERO_RANGE, zero=True, grow=True)

    def _allocate(self) -> str:
        return self._fallocate(0, zero=False, grow=True)

    def _keep_size(self) -> str:
        return self._fallocate(FALLOC_KEEP_SIZE, zero=False, grow=False)

    def _copy(self) -> str:
        offset, length = self._range(within=True)
        to, _ = self._range()
        length = min(length, self._end - to)
        if not length or abs(to - offset) < length:
            return "nothing"
        done = 0
        while done < length:
            copied = os.copy_file_range(self._fd, self._fd, length - done, offset + done, to + done)
            assert copied, "nothing copied"
            done += copied
        self._put(to, bytes(self.model[offset : offset + length]))
        return f"{length} from {offset} to {to}"

    def _map_write(self) -> str:
        offset, length = self._range(within=True)
        if not length:
            return "nothing"
        data = self._data(length)
        with mmap.mmap(self._fd, len(self.model)) as memory:
            memory[offset : offset + length] = data
            if self._random.random() < 0.3:
                memory.flush()
        self._put(offset, data)
        return f"{length} at {offset}"

    def _map_read(self) -> str:
        offset, length = self._range(within=True)
        if not length:
            return "nothing"
        with mmap.mmap(self._fd, len(self.model), prot=mmap.PROT_READ) as memory:
            self._check(offset, memory[offset : offset + length])
        return f"{length} at {offset}"

    def _reopen(self) -> str:
        os.close(self._fd)
        self._fd = os.open(self._path, os.O_RDWR)
        return ""

    def _sync(self) -> str:
        self._random.choice((os.fsync, os.fdatasync))(self._fd)
        return ""

    def _sectors(self) -> tuple[int, int]:
        offset, length = self._range()
        begin, end = -(-offset // SECTOR) * SECTOR, (offset + length) // SECTOR * SECTOR
        return begin, max(0, end - begin)

    def _direct_write(self) -> str:
        offset, length = self._sectors()
        if not length:
            return "nothing"
        data = self._data(length)
        fd = os.open(self._path, os.O_RDWR | os.O_DIRECT)
        with mmap.mmap(-1, length) as buffer:
            buffer[:] = data
            assert os.pwritev(fd, [buffer], offset) == length, "a short direct write"
        os.close(fd)
        self._put(offset, data)
        return f"{length} at {offset}"

    def _direct_read(self) -> str:
        offset, length = self._sectors()
        if not length:
            return "nothing"
        fd = os.open(self._path, os.O_RDWR | os.O_DIRECT)
        with mmap.mmap(-1, length) as buffer:
            got = os.preadv(fd, [buffer], offset)
            wanted = max(0, min(length, len(self.model) - offset))
            assert got == wanted, f"{got} bytes read, not {wanted}"
            self._check(offset, buffer[:got])
        os.close(fd)
        return f"{length} at {offset}"
