# SPDX-License-Identifier: Apache-2.0
"""`vfsd bench --compare --count`: the requests that everyday work makes a guest send.

Counts do not depend on the speed of the machine. With the timeouts of the contenders, which are one
second by default, they depend on it a little: a guest asks again for attributes that it has had for
longer.

The tree `old` was made and written back on the host SETTLE_SECONDS ago, as most files of a share
were long ago. All jobs run in the mount, one after the other.
"""

import os
import sys
import tarfile
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Final

from vfsd.bench.arena import Arena, Contender
from vfsd.bench.counted_mount import counted_mount
from vfsd.bench.real_work import check_programs, shell
from vfsd.frontend.bridge import Bridges
from vfsd.frontend.vmm import connect
from vfsd.transport.errors import OperatorError

FOLDERS: Final = 20
FILES: Final = 15  # per folder
C_FILES: Final = 20
COMMITS: Final = 100
SETTLE_SECONDS: Final = 12.0  # keep_cache.c: a change must be 10 seconds old
QUIET_SECONDS: Final = 0.05
QUIET_TRIES: Final = 100  # of a guest that does not stop sending requests
NEEDED: Final = ("tar", "find", "grep", "git", "cp", "rm", "cc")
PROGRAM: Final = "program"
WHEEL: Final = "example-1-py3-none-any.whl"

GIT: Final = "git -c gc.auto=0 -c maintenance.auto=0 -c core.preloadIndex=false"
GIT_DATE: Final = "2000-01-01T00:00:00Z"  # the names of objects depend on it
AUTHOR: Final = "-c user.name=v -c user.email=v@localhost"
READ: Final = "find old -type f -exec cat {} + >/dev/null"
SQLITE: Final = """import sqlite3, sys
db = sqlite3.connect("data.db")
db.execute("create table t (a integer primary key, b text)")
for number in range(int(sys.argv[1])):
    with db:
        db.execute("insert into t values (?, ?)", (number, "text"))
db.close()
"""
PYTHON: Final = f"'{sys.executable}'"
PIP: Final = "-m pip install -q --no-index --no-deps --target lib"


@dataclass(frozen=True)
class EverydayJob:
    """A command that sh runs in the mount."""

    name: str
    title: str
    command: str


JOBS: Final = (
    EverydayJob("untar", f"untar {FOLDERS * FILES} files", 'tar -xf "$WORK/source.tar"'),
    EverydayJob("find", "find -printf", "find old -printf '%p %s %m %u\\n' >/dev/null"),
    EverydayJob("ls", "ls -lR", "ls -lR old >/dev/null"),
    EverydayJob("read", f"read {FOLDERS * FILES} files", READ),
    EverydayJob("read-again", "read the files again", READ),
    EverydayJob("grep", "grep -r", "grep -r 'no such text' old; test $? = 1"),
    EverydayJob("cp", "cp -a", "cp -a old copy"),
    EverydayJob("git-add", "git init, git add", f"cd tree && {GIT} init -q . && {GIT} add -A"),
    EverydayJob("git-commit", "git commit", f"cd tree && {GIT} {AUTHOR} commit -qm all"),
    EverydayJob("git-status", "git status", f"cd tree && {GIT} status --short"),
    EverydayJob("pip", "pip install of a wheel", f'{PYTHON} {PIP} "$WORK/{WHEEL}"'),
    EverydayJob("cc", f"compile {C_FILES} C files, link",
        'cp -r "$WORK/c" . && cd c && for f in *.c; do cc -O0 -c "$f" || exit; done'
        " && cc -o program *.o"),
    EverydayJob("sqlite", f"{COMMITS} commits of SQLite", f"{PYTHON} -c '{SQLITE}' {COMMITS}"),
    EverydayJob("rm", "rm -rf of all", "rm -rf old copy tree lib c data.db"),
)  # fmt: skip

Counts = dict[str, Counter[str]]  # requests by opcode, for each job by its name


@dataclass(frozen=True)
class Counted:
    """What each contender was sent; `errors`: why a contender has not done all jobs."""

    contenders: tuple[str, ...]
    counts: dict[str, Counts]
    errors: dict[str, str]


def count_requests(
    contenders: Sequence[Contender], folder: Path | None, report: Callable[[str], object]
) -> Counted:
    """Count the requests of every job for every contender."""
    check_programs("--count", NEEDED)
    ret = Counted(tuple(contender.name for contender in contenders), {}, {})
    with tempfile.TemporaryDirectory(prefix="vfsd-bench-", dir=folder) as name:
        work = Path(name)
        _make_sources(work)
        for contender in contenders:
            report(f"counting requests, {contender.name}")
            counts = ret.counts[contender.name] = {}
            try:
                counts |= _turn(contender, folder, work)
            except OperatorError as error:
                ret.errors[contender.name] = str(error)
    return ret


def _turn(
    contender: Contender, folder: Path | None, work: Path
) -> Iterator[tuple[str, Counter[str]]]:
    environment = os.environ | {
        "WORK": str(work),
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_AUTHOR_DATE": GIT_DATE,
        "GIT_COMMITTER_DATE": GIT_DATE,
        "PIP_CONFIG_FILE": "/dev/null",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "LC_ALL": "C.UTF-8",
    }
    with _mounted(contender, folder, work) as (bridges, mount):
        before = _quiet(bridges)
        for job in JOBS:
            try:
                shell(job.command, mount, environment)
            except OperatorError as error:
                raise OperatorError(f"{job.title} {error}") from None
            after = _quiet(bridges)
            yield job.name, after - before
            before = after


@contextmanager
def _mounted(
    contender: Contender, folder: Path | None, work: Path
) -> Iterator[tuple[Bridges, Path]]:
    with (
        Arena(contender, folder, 0).backend() as backend,
        tempfile.TemporaryDirectory(prefix="vfsd-bench-mnt-") as target,
    ):
        shell(
            f'tar -xf "{work}/source.tar" && mv tree old && sync -f .',
            backend.socket.parent / "dir", os.environ,
        )  # fmt: skip
        time.sleep(SETTLE_SECONDS)
        with connect(str(backend.socket)) as vmm, counted_mount(vmm, target) as bridges:
            yield bridges, Path(target)


def _quiet(bridges: Bridges) -> Counter[str]:
    """The counts, as soon as each file is released: a guest does not wait for RELEASE."""
    sent = bridges.sent()
    for _ in range(QUIET_TRIES):
        time.sleep(QUIET_SECONDS)
        before, sent = sent, bridges.sent()
        files = sent["OPEN"] + sent["CREATE"] - sent["RELEASE"]
        if not files and sent["OPENDIR"] == sent["RELEASEDIR"] and sent == before:
            break
    return sent


# --- what the jobs work on -----------------------------------------------------------------------


def _make_sources(work: Path) -> None:
    """The same files each time."""
    with tarfile.open(work / "source.tar", "w") as archive:
        for name, text in _python_files("tree"):
            info = tarfile.TarInfo(name)
            info.size = len(text)
            archive.addfile(info, BytesIO(text))
    with zipfile.ZipFile(work / WHEEL, "w") as wheel:
        for name, text in _python_files("example"):
            wheel.writestr(name, text)
        wheel.writestr(
            "example-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: example\nVersion: 1\n"
        )
        wheel.writestr(
            "example-1.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\n"
            "Tag: py3-none-any\n",
        )  # fmt: skip
        wheel.writestr("example-1.dist-info/RECORD", "")
    (work / "c").mkdir()
    for number in range(C_FILES):
        body = f'#include "{PROGRAM}.h"\nint f{number}(void)\n{{\n\treturn {number};\n}}\n'
        (work / "c" / f"f{number:02}.c").write_text(body)
    declared = "".join(f"int f{number}(void);\n" for number in range(C_FILES))
    (work / "c" / f"{PROGRAM}.h").write_text(declared)
    body = f'#include "{PROGRAM}.h"\nint main(void)\n{{\n\treturn f0();\n}}\n'
    (work / "c" / f"{PROGRAM}.c").write_text(body)


def _python_files(top: str) -> Iterator[tuple[str, bytes]]:
    for number in range(FOLDERS * FILES):
        text = "".join(f"value_{n} = {n * number}\n" for n in range(10 + number * 7919 % 300))
        yield f"{top}/d{number // FILES:02}/f{number:04}.py", text.encode()


# --- the tables ----------------------------------------------------------------------------------


def counts_table(counted: Counted) -> str:
    """Requests of each job, for every contender: all of them, and by opcode."""
    lines = [f"{'':<28}" + "".join(f"{name:>{_width(name)}}" for name in counted.contenders)]
    for job in JOBS:
        lines += ["", f"{job.title:<28}" + _row(counted, job, None)]
        lines += [
            f"  {opcode:<26}" + _row(counted, job, opcode) for opcode in _opcodes(counted, job)
        ]
    lines += ["", *(f"{name}: {error}" for name, error in counted.errors.items())]
    return "\n".join(lines).rstrip() + "\n"


def counts_markdown(counted: Counted) -> str:
    """Requests of each job, for every contender, and the opcodes of ours."""
    ours = counted.contenders[0]
    lines = [f"| requests | {' | '.join(counted.contenders)} | of {ours} |"]
    lines.append("|---|" + "---|" * (len(counted.contenders) + 1))
    for job in JOBS:
        figures = [_figure(counted, name, job, None) for name in counted.contenders]
        found = counted.counts[ours].get(job.name, Counter())
        parts = ", ".join(f"{opcode} {number}" for opcode, number in found.most_common(4))
        lines.append(f"| {' | '.join([job.title, *figures, parts])} |")
    return "\n".join(lines) + "\n"


def _opcodes(counted: Counted, job: EverydayJob) -> list[str]:
    total: Counter[str] = Counter()
    for counts in counted.counts.values():
        total += counts.get(job.name, Counter())
    return [opcode for opcode, _ in total.most_common()]


def _row(counted: Counted, job: EverydayJob, opcode: str | None) -> str:
    return "".join(
        f"{_figure(counted, name, job, opcode):>{_width(name)}}" for name in counted.contenders
    )


def _width(name: str) -> int:
    return max(10, len(name) + 2)


def _figure(counted: Counted, name: str, job: EverydayJob, opcode: str | None) -> str:
    found = counted.counts[name].get(job.name)
    if found is None:
        return ""
    return str(found.total() if opcode is None else found[opcode])
