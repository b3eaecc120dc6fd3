# SPDX-License-Identifier: Apache-2.0
"""The rules and the random I/O of tests/semantics in a real guest, which has another kernel and
another driver than this machine."""

import ast
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from guest import daemon, machine

from tests.semantics.conftest import DEEP
from tests.semantics.known_differences import expected
from tests.semantics.rules import RULES
from tests.semantics.share import ALL_FEATURES
from tests.semantics.test_exerciser import OPERATIONS
from tests.semantics.test_rules import comparable

pytestmark = pytest.mark.guest

CPUS = 4
TAG = "rules"
SECONDS = 300.0
SETUP = "4-queues"  # the name of this setup in known_differences.py; it has every feature
SEMANTICS = Path(__file__).parents[1] / "semantics"

# This program runs in the guest, which has no pytest. The share holds the rules and the folders
# that they work in. Here on_the_host() also returns paths in the guest's mount, because only
# tests/semantics/test_rules.py tests changes that are made on the host.
PROGRAM = """
import json, sys
from pathlib import Path
sys.dont_write_bytecode = True
sys.path.insert(0, "/mnt")
from semantics.rules import RULES, outcome
for path in sorted(Path("/mnt/semantics").glob("rules_*.py")):
    __import__(f"semantics.{path.stem}")
from semantics.share import Place, Setup
place = Place(Setup("guest"), Path("/mnt/cases"), Path("/mnt/cases"))
for name in json.loads(Path("/mnt/selection").read_text()):
    rule = RULES[name]
    try:
        found = outcome(rule, place)
    except AssertionError as error:
        found = repr(error)
    print(json.dumps([name, repr(found)]), flush=True)
"""
# A signal does not end the wait in virtiofs: the driver sends no INTERRUPT, and a process cannot
# leave a request that the device has.
NOT_HERE = {"a signal ends the wait for a lock"}
SELECTION = [name for name in RULES if name not in NOT_HERE]


# Each process works on its own file. The name of the file's folder has the seed.
EXERCISE = """
import sys
from pathlib import Path
sys.dont_write_bytecode = True
sys.path.insert(0, "/mnt")
from semantics.exerciser import Exerciser
from semantics.process import all_results
def exercise(seed):
    folder = Path(f"/mnt/cases/exercise-{seed}")
    folder.mkdir()
    exerciser = Exerciser(str(folder / "file"), seed)
    exerciser.run(OPERATIONS)
    (folder / "model").write_bytes(exerciser.content())
all_results([lambda seed=seed: exercise(seed) for seed in SEEDS], SECONDS)
"""
SEEDS = range(1, 5)


@dataclass(frozen=True)
class Guest:
    """A guest that has the modules of tests/semantics in its share, mounted on /mnt."""

    machine: machine.Machine
    shared: Path

    def python(self, code: str) -> str:
        return self.machine.check(f"cd /; python3 - <<'EOF'\n{code}\nEOF", SECONDS)


@pytest.fixture(
    scope="module", params=[1, 4] if DEEP else [4], ids=lambda queues: f"{queues}-queues"
)
def guest(request: pytest.FixtureRequest) -> Iterator[Guest]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vfsd-rules-")))
        shared = folder / "share"
        (shared / "cases").mkdir(parents=True)
        unwanted = shutil.ignore_patterns("test_*", "conftest.py", "__pycache__")
        shutil.copytree(SEMANTICS, shared / "semantics", ignore=unwanted)
        (shared / "selection").write_text(json.dumps(SELECTION))
        argv = [*daemon.command(""), *ALL_FEATURES]
        back_end = stack.enter_context(daemon.serve(argv, shared, folder))
        share = machine.Share(back_end.socket, TAG, request.param)
        booted = stack.enter_context(machine.boot([share], machine.Hardware(CPUS)))
        booted.mount(TAG, options="nosuid,nodev")
        yield Guest(booted, shared)
        booted.power_off()


@pytest.fixture(scope="module")
def found(guest: Guest) -> dict[str, str]:
    """The outcome of each rule in the guest, as repr() writes it."""
    return dict(json.loads(line) for line in guest.python(PROGRAM).splitlines())


@pytest.mark.parametrize("name", SELECTION)
def test_the_guest_sees_what_the_rule_says(found: dict[str, str], name: str) -> None:
    wanted = expected(name, SETUP, RULES[name].expected)
    assert comparable(ast.literal_eval(found[name])) == comparable(wanted)


def test_a_file_holds_what_was_done_to_it_at_random(guest: Guest) -> None:
    """The exerciser runs in one process per CPU, so that several queues are in use."""
    constants = f"OPERATIONS, SEEDS, SECONDS = {OPERATIONS}, {list(SEEDS)}, {SECONDS}"
    guest.python(f"{constants}\n{EXERCISE}")
    for seed in SEEDS:
        folder = guest.shared / "cases" / f"exercise-{seed}"
        assert (folder / "file").read_bytes() == (folder / "model").read_bytes()
        assert (folder / "model").stat().st_size > 0
