# SPDX-License-Identifier: Apache-2.0
"""Instructions that the hot ops spend in user space, held to what is recorded.

Time is too noisy to see a regression of a few percent; callgrind's counts differ by one or two
from run to run. They are of one request, so of CREATE, RELEASE, UNLINK and FORGET together for
`create`. What the kernel does is not in them: tests/hostile/test_syscalls.py counts its calls. Nor
are the defences that vfsd/_native_build.py has the compiler add.

After a change that is worth its price, or makes one cheaper:

    VFSD_RECORD_INSTRUCTIONS=1 scripts/test -n 0 tests/native/test_instructions.py
"""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.conftest import require

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
RECORD = HERE / "instructions.json"
TOLERANCE = 0.05
OTHER_COMPILER = 0.30  # what another compiler makes of the same source may differ by this
FLAGS = ("-std=gnu11", "-g", "-O2", "-D_GNU_SOURCE")
NOT_ON_THE_PATH = (
    "clone_process.c", "handle_guard.c", "isolate.c", "seccomp.c", "syscall_filter.c",
)  # fmt: skip


def compiler() -> str:
    argv = ["gcc", "-dumpfullversion"]
    version = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip()
    return f"gcc {version.split('.')[0]} {os.uname().machine}"


def build(folder: Path) -> Path:
    binary = folder / "count_instructions"
    sources = [
        str(path)
        for part in ("transport", "worker")
        for path in sorted((ROOT / "vfsd" / part / "csrc").glob("*.c"))
        if path.name not in NOT_ON_THE_PATH
    ]
    argv = ["gcc", *FLAGS, "-I", str(ROOT / "vfsd"), "-I", str(HERE)]
    argv += [str(HERE / "count_instructions.c"), *sources, "-o", str(binary), "-pthread"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return binary


def count(folder: Path) -> dict[str, int]:
    """Instructions of one request, by op."""
    (folder / "share").mkdir()
    argv = ["valgrind", "--tool=callgrind", "--toggle-collect=serve"]
    argv += [f"--callgrind-out-file={folder}/out", str(build(folder)), str(folder / "share")]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
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


@pytest.mark.timeout(180)
def test_no_op_takes_more_instructions_than_recorded(tmp_path: Path) -> None:
    require("valgrind")
    found = count(tmp_path)
    if os.environ.get("VFSD_RECORD_INSTRUCTIONS"):
        content = {"compiler": compiler(), "instructions": found}
        RECORD.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
    recorded = json.loads(RECORD.read_text())
    wanted = recorded["instructions"]
    tolerance = TOLERANCE if recorded["compiler"] == compiler() else OTHER_COMPILER
    off = {
        op: f"{found.get(op)}, recorded {wanted.get(op)}"
        for op in wanted | found
        if op not in found or op not in wanted or abs(found[op] / wanted[op] - 1) > tolerance
    }
    assert not off, f"instructions of an op: {off}; see the top of this file"
