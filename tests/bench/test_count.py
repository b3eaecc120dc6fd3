# SPDX-License-Identifier: Apache-2.0
"""The requests of everyday work, held to what is recorded (`vfsd bench --compare --count`).

The guest may trust attributes and names for a day here, so that the counts do not depend on how
fast this machine is. After a change that is worth its price, or that saves requests, record the
counts again:

    VFSD_RECORD_REQUESTS=1 scripts/test -n 0 tests/bench/test_count.py
"""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.conftest import require
from vfsd.bench.arena import Contender
from vfsd.bench.count import JOBS, NEEDED, Counted, count_requests, counts_markdown, counts_table

RECORD = Path(__file__).with_name("requests.json")
PROGRAM = str(Path(sys.executable).parent / "virtiofsd")
ARGV = (PROGRAM, "--socket-path={socket}", "--shared-dir={dir}", "--timeout=86400")
TOLERANCE = 0.03  # of the requests of a job
FEW = 15  # a difference that means nothing
OTHER_PROGRAMS = 0.30  # other versions of the programs, or another kernel, may differ by this


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> Counted:
    for what in ("root", "/dev/fuse", *NEEDED):
        require(what)
    folder = tmp_path_factory.mktemp("count")
    return count_requests([Contender("vfsd", ARGV, is_ours=True)], folder, lambda _line: None)


def programs() -> list[str]:
    """The versions of what decides which requests are sent."""
    found = [os.uname().release.split("-")[0], sys.version.split()[0]]
    for program in ("git", "tar", "cp", "find", "grep", "cc"):
        argv = [program, "--version"]
        output = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
        found.append(output.splitlines()[0])
    return found


def totals(counted: Counted) -> dict[str, int]:
    return {name: counts.total() for name, counts in counted.counts["vfsd"].items()}


def test_no_job_sends_more_requests_than_recorded(counted: Counted) -> None:
    assert not counted.errors
    found = {"programs": programs(), "requests": counted.counts["vfsd"]}
    if os.environ.get("VFSD_RECORD_REQUESTS"):
        RECORD.write_text(json.dumps(found, indent=2, sort_keys=True) + "\n")
    record = json.loads(RECORD.read_text())
    wanted = {name: sum(counts.values()) for name, counts in record["requests"].items()}
    assert totals(counted).keys() == wanted.keys() == {job.name for job in JOBS}
    tolerance = TOLERANCE if record["programs"] == programs() else OTHER_PROGRAMS
    off = {
        name: f"{total}, recorded {wanted[name]}"
        for name, total in totals(counted).items()
        if abs(total - wanted[name]) > max(FEW, tolerance * wanted[name])
    }
    assert not off, f"requests of a job: {off}; see the top of this file"


def test_a_file_that_is_read_again_is_not_sent_again(counted: Counted) -> None:
    counts = counted.counts["vfsd"]
    assert counts["read"]["READ"] > 100
    assert not counts["read-again"]["READ"]
    assert not counts["grep"]["READ"]


def test_the_tables_have_every_contender_and_the_job_that_failed() -> None:
    counts = {"vfsd": {"find": Counter(LOOKUP=3, OPENDIR=2)}, "peer": {"find": Counter(READLINK=7)}}
    counted = Counted(("vfsd", "peer"), counts, {"peer": "ls -lR fails: too many files"})
    lines = counts_table(counted).splitlines()
    assert any(line.split() == ["find", "-printf", "5", "7"] for line in lines)
    assert any(line.split() == ["READLINK", "0", "7"] for line in lines)
    assert lines[-1] == "peer: ls -lR fails: too many files"
    assert "| find -printf | 5 | 7 | LOOKUP 3, OPENDIR 2 |" in counts_markdown(counted)
