# SPDX-License-Identifier: Apache-2.0
"""The requests that a mount sends to its device, and the end of a mount whose device lies."""

import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.conftest import require
from tests.system.mounted import Mounted
from tests.waiting import HANG, wait_until
from vfsd.transport.vhost_user import Number

from .backend import INIT, OUT_HEADER, Answer, Backend, Request, reply
from .device import Device

GETATTR, STATFS, OPENDIR, READDIR, DESTROY = 3, 17, 27, 28, 38
ATTR_OUT = struct.pack("<QII", 0, 0, 0) + struct.pack(
    "<6Q3I7I", 1, 0, 0, 0, 0, 0, 0, 0, 0, 0o40755, 2, 0, 0, 0, 4096, 0
)
SPLICE = 7 << 7
DEVICE_ONLY_2 = 1 << 3 | 1 << 5 | 1 << 7 | 1 << 9 | 1 << 10


@pytest.fixture(autouse=True)
def what_a_mount_needs() -> None:
    for what in ("root", "/dev/fuse"):
        require(what)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def served(
    stack: ExitStack, folder: Path, answers: dict[int, Answer], *arguments: str
) -> tuple[Backend, Mounted]:
    backend = stack.enter_context(Backend(folder / "s", answers, {}))
    return backend, stack.enter_context(Mounted(folder, backend.path, *arguments))


def answer_with(body: bytes) -> Answer:
    return lambda _backend, device, request: reply(device, request, body)


def shape(request: Request) -> tuple[list[int], list[int]]:
    """The sizes of a request's readable descriptors, and of its writable descriptors."""
    readable = [d.size for d in request.chain if not d.writable]
    return readable, [d.size for d in request.chain if d.writable]


def test_requests_are_laid_out_as_in_linux(stack: ExitStack, tmp_path: Path) -> None:
    answers = {
        GETATTR: answer_with(ATTR_OUT),
        STATFS: answer_with(bytes(80)),
        OPENDIR: answer_with(bytes(16)),
        READDIR: answer_with(b""),
    }
    backend, mounted = served(stack, tmp_path, answers)
    subprocess.run(["stat", "-f", str(mounted.path)], check=True, timeout=HANG, capture_output=True)
    subprocess.run(["ls", str(mounted.path)], check=True, timeout=HANG, capture_output=True)
    assert mounted.unmount() == 0
    seen = {request.opcode: request for request in backend.requests}
    assert shape(seen[INIT]) == ([40, 64], [16, 64])
    assert shape(seen[GETATTR]) == ([40, 16], [16, 104])
    assert shape(seen[STATFS]) == ([40], [16, 80])
    assert shape(seen[OPENDIR]) == ([40, 8], [16, 16])
    assert shape(seen[DESTROY]) == ([40], [16])
    readable, (header, *pages) = shape(seen[READDIR])
    assert readable == [40, 40]
    assert header == 16
    assert set(pages) == {4096}
    assert all(d.gpa % 4096 == 0 for d in seen[READDIR].chain[3:])
    assert backend.messages[-4:] == [Number.SET_VRING_ENABLE] * 2 + [Number.GET_VRING_BASE] * 2


def test_init_offers_what_a_guest_would(stack: ExitStack, tmp_path: Path) -> None:
    backend, mounted = served(stack, tmp_path, {})
    assert mounted.unmount() == 0
    major, _, _, flags, flags2 = struct.unpack_from("<IIIII", backend.requests[0].body)
    assert major == 7
    assert not flags & SPLICE
    assert not flags2 & DEVICE_ONLY_2


SLOW_SECONDS, SLOW_REPLIES = 0.001, 1000
ASK = """
import os, sys, time
took = []
for i in range(int(sys.argv[2])):
    start = time.monotonic()
    os.stat(sys.argv[1])  # sends a GETATTR, as attributes are not cached
    took.append(time.monotonic() - start)
print(sorted(took)[len(took) // 10])
"""


def answer_late(_backend: Backend, device: Device, request: Request) -> int:
    time.sleep(SLOW_SECONDS)
    return reply(device, request, ATTR_OUT)


def cpu_seconds(pid: int) -> float:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def cpu_of_waiting(stack: ExitStack, folder: Path, poll: str) -> float:
    folder.mkdir()
    _, mounted = served(stack, folder, {GETATTR: answer_late}, "--poll-us", poll)
    before = cpu_seconds(mounted.process.pid)
    argv = [sys.executable, "-c", ASK, str(mounted.path), str(SLOW_REPLIES)]
    subprocess.run(argv, check=True, timeout=HANG, stdout=subprocess.DEVNULL)
    return cpu_seconds(mounted.process.pid) - before


def test_slow_replies_are_slept_for_unless_polling_is_on(stack: ExitStack, tmp_path: Path) -> None:
    """Polling in vain for 200 us before each of 1000 replies would take 0.2 s of CPU. On a busy
    machine it takes less, since a process that polls gives the CPU to others that want it."""
    never, auto, always = (
        cpu_of_waiting(stack, tmp_path / poll, poll) for poll in ("0", "auto", "200")
    )
    assert auto < never + (always - never) / 2


def test_nobody_waits_for_the_reply_of_another(stack: ExitStack, tmp_path: Path) -> None:
    """While the bridge polls for a reply that does not come, it takes other requests."""
    answers = {GETATTR: answer_with(ATTR_OUT), STATFS: lambda *_: None}
    _, mounted = served(stack, tmp_path, answers, "--poll-us", "10000")
    waiting = subprocess.Popen(
        ["stat", "-f", mounted.path], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    argv = [sys.executable, "-c", ASK, str(mounted.path), "200"]
    done = subprocess.run(argv, check=True, timeout=HANG, stdout=subprocess.PIPE)
    assert waiting.poll() is None
    mounted.close()
    assert waiting.wait(HANG) == 1
    assert float(done.stdout) < 0.01 / 2  # the 10th percentile: the machine may be loaded


def wrong(used: int | None = None, body: bytes = ATTR_OUT, **header: int) -> Answer:
    """An answer with a mistake in its reply, or with another length in its used element."""

    def answer(_backend: Backend, device: Device, request: Request) -> int:
        size = reply(device, request, body, **header)
        return size if used is None else used

    return answer


def answer_twice(_backend: Backend, device: Device, request: Request) -> int:
    size = reply(device, request, ATTR_OUT)
    device.use(request.head, size)
    return size


LIES = {
    "another unique": (wrong(unique=12345), "a reply to another request (GETATTR)"),
    "a longer header": (wrong(len=140), "a reply whose length is not that of its used element"),
    "a shorter header": (wrong(len=40), "a reply whose length is not that of its used element"),
    "no header": (wrong(used=OUT_HEADER.size - 1), "a reply whose length is impossible (GETATTR)"),
    "nothing": (wrong(used=0), "a reply whose length is impossible (GETATTR)"),
    "too much": (wrong(used=4096), "used element longer than its chain has room"),
    "half a reply": (wrong(body=ATTR_OUT[:50]), "the kernel refuses the reply (GETATTR)"),
    "a positive error": (wrong(body=b"", error=5), "the kernel refuses the reply (GETATTR)"),
    "an unknown error": (wrong(body=b"", error=-9999), "the kernel refuses the reply (GETATTR)"),
    "an error with data": (wrong(error=-5), "the kernel refuses the reply (GETATTR)"),
    "the same twice": (answer_twice, "used "),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_ends_the_service_and_is_named(stack: ExitStack, tmp_path: Path, lie: str) -> None:
    """The mount stays until it is unmounted, so that no program writes into the folder below."""
    answer, words = LIES[lie]
    _, mounted = served(stack, tmp_path, {GETATTR: answer})
    user = subprocess.run(["stat", mounted.path], capture_output=True, timeout=HANG, check=False)
    wait_until(lambda: "until it is unmounted" in mounted.errors())
    assert user.returncode == 1 or lie == "the same twice"
    assert subprocess.run(["stat", mounted.path / "x"], capture_output=True, check=False).returncode
    assert mounted.errors().startswith(f"vfsd: the back-end breaks the protocol: {words}")
    assert mounted.errors().count("\n") == 1
    assert mounted.is_mounted()
    assert mounted.unmount() == 1


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (wrong(body=b"", error=-71), "the back-end refuses FUSE_INIT"),
        (wrong(body=bytes(24)), "the reply to FUSE_INIT is too short"),
        (wrong(body=bytes(64)), "the back-end speaks another major version of FUSE"),
    ],
)
def test_an_init_that_cannot_be(
    stack: ExitStack, tmp_path: Path, answer: Answer, words: str
) -> None:
    with pytest.raises(AssertionError) as caught:
        served(stack, tmp_path, {INIT: answer})
    assert words in str(caught.value)
    assert str(tmp_path / "mnt") not in Path("/proc/mounts").read_text()


def test_any_bytes_in_a_reply_end_nothing_else(stack: ExitStack, tmp_path: Path) -> None:
    """If the transport finds no mistake in a reply, the kernel judges the content of the reply."""
    answers = {GETATTR: answer_with(b"\xff" * 104)}
    _, mounted = served(stack, tmp_path, answers)
    user = subprocess.run(["stat", mounted.path], capture_output=True, timeout=HANG, check=False)
    assert user.returncode == 1
    assert mounted.unmount() == 0
