# SPDX-License-Identifier: Apache-2.0
"""Play a worker that a guest has taken over: system calls made by a living process of a daemon.

The process is stopped with ptrace(2), one of its threads makes the calls one after the other, and
then the thread continues as if nothing had happened. Everything that confines the process is in
force for these calls: seccomp filters, capabilities, namespaces, Landlock, no_new_privs. A filter
that kills is seen as Killed. The tracer must be root outside of the sandbox.

    with Injector(pid) as worker:
        fd = worker.call("openat", AT_FDCWD, "/etc/shadow", os.O_RDWR)  # an fd, or -errno

Arguments are integers, text or bytes (copied into the process, with a zero byte at the end), a
bytearray (copied in before the call and out after it), or None for a null pointer. Other threads
of the process continue to run. ptrace(2) answers only the thread that attached: use an Injector in
one thread.
"""

import ctypes
import errno
import os
import platform
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Self

from tests.conftest import cannot_run, require

AT_FDCWD: Final = -100
Argument = int | str | bytes | bytearray | Path | None

_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_SECCOMP: Final = ctypes.CDLL("libseccomp.so.2")
# ptrace(2).
_SINGLESTEP, _GETREGS, _SETREGS, _DETACH, _SEIZE, _INTERRUPT = 9, 12, 13, 17, 0x4206, 0x4207
_WALL: Final = 0x4000_0000  # waitpid(2): also wait for threads
_SYSCALL: Final = b"\x0f\x05"  # the instruction `syscall`
_SCRATCH_BYTES: Final = 1 << 20
_ARGUMENT_REGISTERS: Final = ("rdi", "rsi", "rdx", "r10", "r8", "r9")
_MAX_ERRNO: Final = 4095

# These calls are newer than the libseccomp of Debian 12; their numbers are the same on every
# architecture.
_YOUNG: Final = {"fchmodat2": 452, "open_tree_attr": 467}


class Killed(Exception):  # noqa: N818 - it is a result
    """The process was ended by a signal: SIGSYS if a seccomp filter killed it."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.signal = signal.Signals(number)


class _Registers(ctypes.Structure):
    """struct user_regs_struct."""

    _fields_ = [
        (name, ctypes.c_uint64)
        for name in (
            "r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx",
            "rdx", "rsi", "rdi", "orig_rax", "rip", "cs", "eflags", "rsp", "ss", "fs_base",
            "gs_base", "ds", "es", "fs", "gs",
        )
    ]  # fmt: skip


class Injector:
    """A stopped thread (`pid` may be a thread's id) that makes system calls on demand.

    `borrow`: use memory that the process has, and restore its content, for a process whose filter
    does not let it map any.
    """

    def __init__(self, pid: int, borrow: bool = False) -> None:
        require("root")
        if platform.machine() != "x86_64":
            cannot_run("system calls are injected on x86-64 only")
        self.pid = pid
        self._attached = False
        self._held_back: list[int] = []  # signals that arrived while the thread was stopped
        self._scratch = 0
        self._used = 0
        self._saved = _Registers()
        self._borrow = borrow
        self._borrowed = b""
        self._entry = _syscall_instruction(pid)

    def __enter__(self) -> Self:
        self._ptrace(_SEIZE)
        self._attached = True
        try:
            self._ptrace(_INTERRUPT)
            self._wait()
            self._ptrace(_GETREGS, self._saved)
            self._take_scratch()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _take_scratch(self) -> None:
        if self._borrow:
            self._scratch = _writable_memory(self.pid)
            self._borrowed = self.read(self._scratch, _SCRATCH_BYTES)
            return
        self._scratch = self._make(number("mmap"), 0, _SCRATCH_BYTES, 3, 0x22, -1, 0)
        assert self._scratch > 0, f"mmap: {self._scratch}"

    def _give_scratch_back(self) -> None:
        if self._borrowed:
            self._write(self._scratch, self._borrowed)
        elif self._scratch > 0:
            self._make(number("munmap"), self._scratch, _SCRATCH_BYTES)

    def close(self) -> None:
        """Let the process continue from the instruction at which it was stopped."""
        if not self._attached:
            return
        with suppress(Killed):
            self._give_scratch_back()
            self._ptrace(_SETREGS, self._saved)
            self._ptrace(_DETACH)
            for held_back in self._held_back:
                os.kill(self.pid, held_back)
        self._attached = False

    def call(self, name: str, *arguments: Argument) -> int:
        """Make a system call. Returns its result, or -errno. Raises Killed if the call ended the
        process."""
        self._used = 0
        words = [self._word(argument) for argument in arguments]
        result = self._make(number(name), *words)
        for argument, word in zip(arguments, words, strict=True):
            if isinstance(argument, bytearray):
                argument[:] = self.read(word, len(argument))
        return result

    def read(self, address: int, size: int) -> bytes:
        """`size` bytes of the memory of the process."""
        with Path(f"/proc/{self.pid}/mem").open("rb", buffering=0) as memory:
            memory.seek(address)
            return memory.read(size)

    def address(self, content: bytes, offset: int = 0) -> int:
        """Place bytes for later calls, `offset` bytes from the middle of the scratch memory, where
        call() does not overwrite them. Returns their address, for structures that contain
        pointers."""
        address = self._scratch + _SCRATCH_BYTES // 2 + offset
        self._write(address, content)
        return address

    @property
    def thread_pointer(self) -> int:
        """The address of the thread's control block."""
        return int(self._saved.fs_base)

    def fds(self) -> dict[int, str]:
        """The fds of the process, each with what /proc says about it."""
        return fds(self.pid)

    def _word(self, argument: Argument) -> int:
        """The value that an argument has in a register."""
        if argument is None:
            return 0
        if isinstance(argument, int):
            return argument
        if isinstance(argument, str | Path):
            argument = os.fsencode(argument)
        address = self._scratch + self._used
        self._write(address, bytes(argument) + b"\0")
        self._used += (len(argument) + 16) & ~15
        assert self._used <= _SCRATCH_BYTES // 2, "the arguments are too long"
        return address

    def _write(self, address: int, content: bytes) -> None:
        with Path(f"/proc/{self.pid}/mem").open("r+b", buffering=0) as memory:
            memory.seek(address)
            assert memory.write(content) == len(content)

    def _make(self, system_call: int, *words: int) -> int:
        registers = _Registers.from_buffer_copy(self._saved)
        registers.rip = self._entry
        registers.rax = system_call
        registers.orig_rax = -1  # otherwise the kernel would begin the interrupted call again
        for register, word in zip(_ARGUMENT_REGISTERS, words, strict=False):
            setattr(registers, register, word & ((1 << 64) - 1))
        self._ptrace(_SETREGS, registers)
        while registers.rip == self._entry:  # a signal may come before the stop
            self._ptrace(_SINGLESTEP)
            self._wait()
            self._ptrace(_GETREGS, registers)
        result = ctypes.c_int64(registers.rax).value
        return result if not -_MAX_ERRNO - 512 <= result < -_MAX_ERRNO else -errno.EINTR

    def _wait(self) -> None:
        """Wait until the thread has stopped; Killed if it has ended instead."""
        _, status = os.waitpid(self.pid, _WALL)
        if os.WIFSTOPPED(status):
            stop = os.WSTOPSIG(status)
            # A filter that traps instead of killing.
            if stop == signal.SIGSYS and status >> 16 == 0:
                self._held_back.append(stop)
                raise Killed(stop)
            if stop != signal.SIGTRAP and status >> 16 == 0:
                self._held_back.append(stop)
            return
        self._attached = False
        raise Killed(os.WTERMSIG(status) if os.WIFSIGNALED(status) else signal.SIGKILL)

    def _ptrace(self, request: int, registers: _Registers | None = None) -> None:
        data: Any = ctypes.byref(registers) if registers is not None else None
        if _LIBC.ptrace(request, self.pid, None, data) < 0:
            if ctypes.get_errno() == errno.ESRCH:
                self._wait()  # killed between two stops
            raise OSError(ctypes.get_errno(), f"ptrace {request:#x} of {self.pid}")


def number(name: str) -> int:
    """The number of a system call."""
    found: int = _SECCOMP.seccomp_syscall_resolve_name(name.encode())
    if found < 0:
        found = _YOUNG[name]
    return found


def error_name(result: int) -> str:
    """ "ok", or the name of the error that a result of call() stands for."""
    return "ok" if result >= 0 else errno.errorcode[-result]


def fds(pid: int) -> dict[int, str]:
    """The fds of a process, each with what /proc says about it."""
    found = {}
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            found[int(path.name)] = str(path.readlink())
    return found


def _writable_memory(pid: int) -> int:
    """The address of enough writable memory in this process."""
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        area, permissions, *_ = line.split()
        start, end = (int(address, 16) for address in area.split("-"))
        if permissions == "rw-p" and end - start >= _SCRATCH_BYTES:
            return start
    raise AssertionError(f"process {pid} has no memory to borrow")


def _syscall_instruction(pid: int) -> int:
    """The address of a `syscall` instruction in executable memory of this process."""
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        area, permissions, *_ = line.split()
        if "x" not in permissions or "[vsyscall]" in line:
            continue
        start, end = (int(address, 16) for address in area.split("-"))
        with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
            memory.seek(start)
            place = memory.read(end - start).find(_SYSCALL)
        if place >= 0:
            return start + place
    raise AssertionError(f"process {pid} has no system call instruction")
