# SPDX-License-Identifier: Apache-2.0
"""Instructions that the hot ops spend in user space, held to what is recorded.

Time is too noisy to see a regression of a few percent; callgrind's counts differ by one or two
instructions from run to run, as the program has a clock of its own. Each count is of one request,
or of CREATE, RELEASE, UNLINK and FORGET together for `create`. The kernel's instructions are
not counted: tests/hostile/test_syscalls.py counts system calls. The sources are compiled with the
options that the extension ships with, including its defences.

After a change that is worth its price, or that makes an op cheaper, record the counts again:

    VFSD_RECORD_INSTRUCTIONS=1 scripts/test -n 0 tests/native/test_instructions.py

Recording leaves `limits` as it is: 3 % above a limit is too much, whatever is recorded. A limit is
what a request took before the defences against a hostile guest, at 2aa7a90, counted the same way.
"""

import json
import os
import re
import subprocess
from pathlib import Path
from typing import TypedDict

import pytest

from tests.conftest import require
from tests.waiting import HANG
from vfsd import _native_build

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
RECORD = HERE / "instructions.json"
TOLERANCE = 0.05
ABOVE_LIMIT = 0.03  # no hot op may get slower by more than this
OTHER_COMPILER = 0.30  # the same source may differ by this under another compiler
DEFINES = ("-D_GNU_SOURCE", "-I", str(ROOT), "-I", str(ROOT / "vfsd"), "-I", str(HERE))
NOT_ON_THE_PATH = (
    "clone_process.c", "handle_guard.c", "isolate.c", "seccomp.c", "syscall_filter.c",
)  # fmt: skip


class Record(TypedDict):
    """The content of RECORD: instructions by op."""

    compiler: str
    instructions: dict[str, int]
    limits: dict[str, int]


def compiler() -> str:
    argv = ["gcc", "-dumpfullversion"]
    version = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip()
    return f"gcc {version.split('.')[0]} {os.uname().machine}"


def run(*argv: str) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def build(folder: Path) -> Path:
    """The program that counts is an object of its own, so that the link-time optimizer knows no
    more about serve() and its like than that they are called; this is so in the extension."""
    program, binary = folder / "count_instructions.o", folder / "count_instructions"
    sources = [
        str(path)
        for part in ("transport", "worker")
        for path in sorted((ROOT / "vfsd" / part / "csrc").rglob("*.c"))
        if path.name not in NOT_ON_THE_PATH
    ]
    compiling, linking = _native_build.flags()
    source = str(HERE / "count_instructions.c")
    run("gcc", "-std=gnu11", "-g", "-O2", *DEFINES, "-c", source, "-o", str(program))
    run("gcc", "-fPIC", *compiling, *DEFINES, str(program), *sources, "-o", str(binary),
        "-pthread", *linking)  # fmt: skip
    return binary


def count(folder: Path) -> dict[str, int]:
    """Instructions of one request, by op."""
    (folder / "share").mkdir()
    build(folder)
    argv = [require("valgrind"), "--tool=callgrind", "--toggle-collect=serve"]
    argv += ["--callgrind-out-file=out", "./count_instructions", "share"]
    # The environment lies at the top of the stack, so its size decides the alignment of strings,
    # and with it the number of instructions in libc's functions.
    env = {"PATH": os.defpath}
    done = subprocess.run(
        argv, cwd=folder, env=env, capture_output=True, text=True, timeout=HANG, check=False
    )
    assert done.returncode == 0, done.stderr
    requests = int(done.stdout)
    found = {}
    for path in folder.glob("out.*"):
        text = path.read_text()
        if trigger := re.search(r"^desc: Trigger: Client Request: (\S+)$", text, re.MULTILINE):
            total = re.search(r"^(?:totals|summary): (\d+)", text, re.MULTILINE)
            assert total
            found[trigger[1]] = round(int(total[1]) / requests)
    return found


def recorded_or_record(found: dict[str, int]) -> Record:
    record: Record = json.loads(RECORD.read_text())
    if os.environ.get("VFSD_RECORD_INSTRUCTIONS"):
        record |= {"compiler": compiler(), "instructions": found}
        RECORD.write_text(json.dumps(record, indent=2, sort_keys=True) + "\n")
    return record


def test_no_op_takes_more_instructions_than_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VFSD_SANITIZE", raising=False)
    monkeypatch.setenv("CC", "gcc")
    found = count(tmp_path)
    record = recorded_or_record(found)
    wanted, limits = record["instructions"], record["limits"]
    assert found.keys() == wanted.keys() == limits.keys()
    is_same = record["compiler"] == compiler()
    tolerance = TOLERANCE if is_same else OTHER_COMPILER
    off = {
        op: f"{found[op]}, recorded {wanted[op]}"
        for op in found
        if abs(found[op] / wanted[op] - 1) > tolerance
    }
    assert not off, f"instructions of an op: {off}; see the top of this file"
    above = {
        op: f"{found[op]}, limit {limits[op]}"
        for op in found
        if is_same and found[op] > limits[op] * (1 + ABOVE_LIMIT)
    }
    assert not above, f"instructions of an op: {above}; see the top of this file"
