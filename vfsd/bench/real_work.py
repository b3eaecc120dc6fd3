# SPDX-License-Identifier: Apache-2.0
"""`vfsd bench --compare --real-work`: everyday commands in a mounted share, for each contender.

The mount is `vfsd mount` for every contender; the same commands also run in a bare directory. Every
command has a deadline. A command that fails ends its contender's turn, not the comparison.

Each turn has a new file system of its own, in an image: ext4 searches longer and longer for inodes
that were not deleted just now, so the next contender would pay for the files that an earlier
contender removed.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Final

from vfsd.bench.arena import STOP_SECONDS, Arena, Contender, Sample
from vfsd.bench.compare import Comparison, RowResult, rotated
from vfsd.bench.rows import Row, Target
from vfsd.transport.errors import OperatorError

BARE: Final = "bare directory"
FOLDERS: Final = 260
FILES: Final = 20  # files per folder
COMMAND_SECONDS: Final = 300.0
FIO_BYTES: Final = 128 << 20
FORGET_SECONDS: Final = 1.0  # long enough for some ten thousand FORGETs
DROP_CACHES: Final = Path("/proc/sys/vm/drop_caches")
NEEDED: Final = ("tar", "find", "git", "fio", "rm", "mkfs.ext4", "losetup", "mount", "umount")
IMAGE_BYTES: Final = 4 << 30  # the file is sparse


@dataclass(frozen=True)
class Task:
    """A command that sh runs in the share. `rate`: the field of fio's report to compare; if empty,
    the time is compared. `target`: the limit of the time above that in a bare directory, as a ratio
    to the best peer's."""

    name: str
    title: str
    command: str
    cold: bool = False  # drop the caches first, if permitted
    rate: str = ""
    target: Target | None = None

    @property
    def row(self) -> Row:
        metric, unit = ("rate", "") if self.rate else ("value", "s")
        return Row(self.name, self.title, metric, _alone, self.target, unit=unit)


def _alone(_arena: Arena) -> Sample:
    raise AssertionError("a task of real work cannot be measured alone")


def _fio(name: str, title: str, side: str, arguments: str) -> Task:
    # `FIO` contains the size and the time; the report goes to standard output.
    command = f"fio --name=fio --filename=fio.data --output-format=json $FIO {arguments}"
    return Task(name, title, command, rate=side)


def _random(side: str, depth: int) -> Task:
    engine = f"--rw=rand{side} --bs=4k --direct=1 --ioengine=libaio --iodepth={depth}"
    return _fio(f"fio-rand{side}-{depth}", f"fio rand{side} 4 KiB, depth {depth}", side, engine)


HALF: Final = Target(0.5)
TASKS: Final = (
    Task("untar", f"untar {FOLDERS * FILES} files", 'tar -xf "$SOURCE"', target=HALF),
    Task("find", "find -printf, cold", "find . -printf '%p %s %m %u\\n' >/dev/null", cold=True,
         target=HALF),
    Task("read", "read everything, cold", "find . -type f -exec cat {} + >/dev/null", cold=True),
    Task("read-again", "read everything again", "find . -type f -exec cat {} + >/dev/null"),
    Task("build", "compile all Python files", f"{sys.executable} -m compileall -q tree"),
    Task("git-add", "git init, git add", "git init -q . && git add -A", target=HALF),
    Task("git-commit", "git commit",
         "git -c gc.auto=0 -c maintenance.auto=0 -c user.name=v -c user.email=v@localhost"
        " commit -qm all", target=HALF),
    Task("git-status", "git status", "git status --short", cold=True, target=HALF),
    Task("rm", "rm -rf", "rm -rf tree .git", target=HALF),
    *(_random(side, depth) for side in ("read", "write") for depth in (1, 16, 32)),
    _fio("fio-read", "fio read 1 MiB", "read", "--rw=read --bs=1M --ioengine=psync"),
    _fio("fio-write", "fio write 1 MiB", "write", "--rw=write --bs=1M --ioengine=psync"),
    _fio("fio-fsync", "fio write 4 KiB + fsync", "write",
         "--rw=randwrite --bs=4k --ioengine=psync --fsync=1"),
)  # fmt: skip


@dataclass(frozen=True)
class Work:
    """What to do, and for how long: `seconds` bound each run of fio."""

    contenders: Sequence[Contender]
    rounds: int
    seconds: float
    folder: Path | None = None


def compare_real_work(work: Work, report: Callable[[str], object]) -> Comparison:
    """Run every task for every contender and in a bare directory."""
    check_programs("--real-work", NEEDED)
    results = {task.name: RowResult(task.row) for task in TASKS}
    with tempfile.TemporaryDirectory(prefix="vfsd-bench-", dir=work.folder) as name:
        source = Path(name) / "source.tar"
        _make_source(source)
        for number in range(work.rounds):
            for contender in rotated((*work.contenders, None), number):
                who = contender.name if contender else BARE
                report(f"round {number + 1} of {work.rounds}: real work, {who}")
                _turn(work, contender, source, results)
    ours = next(c.name for c in work.contenders if c.is_ours)
    names = [contender.name for contender in work.contenders]
    return Comparison(ours, (*names, BARE), tuple(results.values()), BARE)


def check_programs(option: str, needed: Sequence[str]) -> None:
    """Raise OperatorError if a program is missing that the option needs."""
    missing = [program for program in needed if shutil.which(program) is None]
    if missing:
        raise OperatorError(f"{option} needs {', '.join(missing)}; install them first")


def _make_source(path: Path) -> None:
    """An archive of small Python files, the same each time."""
    with tarfile.open(path, "w") as archive:
        for number in range(FOLDERS * FILES):
            lines = 10 + number * 7919 % 300
            text = "".join(f"value_{n} = {n * number}  # of {number}\n" for n in range(lines))
            name = f"tree/d{number // FILES:03}/f{number:05}.py"
            info = tarfile.TarInfo(name)
            info.size = len(text)
            archive.addfile(info, BytesIO(text.encode()))


def _turn(
    work: Work, contender: Contender | None, source: Path, results: dict[str, RowResult]
) -> None:
    """Run all tasks for one contender; after a task has failed the others would make no sense."""
    who = contender.name if contender else BARE
    samples: dict[str, Sample] = {}
    task = TASKS[0]
    try:
        with _file_system(work.folder) as folder, _place(contender, folder) as place:
            for task in TASKS:
                samples[task.name] = _run(task, place, source, work.seconds)
    except OperatorError as error:
        results[task.name].errors[who] = str(error)
    for name, result in results.items():
        result.samples.setdefault(who, []).append(samples.get(name))


@contextmanager
def _file_system(folder: Path | None) -> Iterator[Path]:
    """A new ext4, mounted; its image is in `folder`. The path is short, since sockets will be below
    it."""
    with (
        tempfile.NamedTemporaryFile(prefix="vfsd-bench-", dir=folder) as image,
        tempfile.TemporaryDirectory(prefix="vfsd-bench-") as target,
    ):
        try:
            image.truncate(IMAGE_BYTES)
        except OSError as error:
            raise OperatorError(f"cannot make {image.name}: {error.strerror}") from None
        _command("mkfs.ext4", "-q", "-F", image.name)
        # Not through the page cache of the image: fio must reach the disk.
        device = _command("losetup", "--find", "--show", "--direct-io=on", image.name)
        try:
            _command("mount", "-o", "noinit_itable", device, target)
            yield Path(target)
        finally:
            _clean_up("umount", target) or _clean_up("umount", "-l", target)
            _clean_up("losetup", "--detach", device)  # takes effect at the last umount


def _command(*argv: str) -> str:
    """Run a program; return its output."""
    done = subprocess.run(
        argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise OperatorError(f"{argv[0]} fails: {_first_line(done.stderr)}")
    return done.stdout.strip()


def _clean_up(*argv: str) -> bool:
    """Run a command that cleans up, even after an error or Ctrl-C (in a process group of its own).
    Return: did the command succeed?"""
    return subprocess.run(argv, capture_output=True, check=False, process_group=0).returncode == 0


@contextmanager
def _place(contender: Contender | None, folder: Path) -> Iterator[Path]:
    """A directory to work in: bare, or the mounted share of a contender."""
    if contender is None:
        with tempfile.TemporaryDirectory(prefix="vfsd-bench-", dir=folder) as name:
            yield Path(name)
        return
    with (
        Arena(contender, folder, 0).backend() as backend,
        tempfile.TemporaryDirectory(prefix="vfsd-bench-mnt-") as name,
    ):
        process = subprocess.Popen(
            [str(Path(sys.executable).parent / "vfsd"), "mount", str(backend.socket), name],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        )
        try:
            _wait_mounted(process)
            yield Path(name)
        finally:
            _unmount(process, name)


def _wait_mounted(process: subprocess.Popen[bytes]) -> None:
    """`vfsd mount` prints a line when the share is mounted, and says itself what it waits for."""
    assert process.stdout
    if not process.stdout.readline():
        raise OperatorError("vfsd mount did not mount the share")


def _unmount(process: subprocess.Popen[bytes], target: str) -> None:
    """Send SIGTERM twice, since the second signal does not wait for users of the mount. The mount
    must be gone before its folder is removed."""
    for _ in range(2):
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
            break
        except subprocess.TimeoutExpired:
            continue
    else:
        process.kill()
        process.wait()
        subprocess.run(["umount", "-l", target], check=False)
    if process.stdout:
        process.stdout.close()


def _run(task: Task, place: Path, source: Path, seconds: float) -> Sample:
    fio = f"--size={FIO_BYTES} --time_based --runtime={seconds}"
    if task.cold:
        _drop_caches()
    start = time.monotonic()
    output = shell(task.command, place, os.environ | {"SOURCE": str(source), "FIO": fio})
    took = time.monotonic() - start
    if not task.rate:
        return Sample(value=took)
    report = json.loads(output[output.index("{") :])
    return Sample(rate=report["jobs"][0][task.rate]["iops"])


def shell(command: str, place: Path, environment: Mapping[str, str]) -> str:
    """Run a command and every process that it starts; return its output. No process is left
    afterwards."""
    process = subprocess.Popen(
        ["sh", "-c", command], cwd=place, env=environment, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        output, errors = process.communicate(timeout=COMMAND_SECONDS)
    except subprocess.TimeoutExpired:
        raise OperatorError(f"not done after {COMMAND_SECONDS:.0f} seconds") from None
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    if process.returncode != 0:
        raise OperatorError(f"fails: {_first_line(errors)}")
    return output


def _first_line(text: str) -> str:
    """The first line is the cause; most of the lines after it are consequences."""
    return next(iter(text.strip().splitlines()), "without a message")


def _drop_caches() -> None:
    """Twice: a back-end that holds files by fds closes them when the guest has forgotten the files,
    and only then can the host also forget them."""
    os.sync()
    for pause in (FORGET_SECONDS, 0):
        try:
            DROP_CACHES.write_text("3")
        except OSError:
            return  # the cache then stays warm for every contender
        time.sleep(pause)
