# SPDX-License-Identifier: Apache-2.0
"""The rules of tests/semantics in a real guest, whose kernel and driver are others than here."""

import ast
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from guest import daemon, machine

from tests.semantics.conftest import DEEP
from tests.semantics.known_differences import expected
from tests.semantics.rules import RULES
from tests.semantics.share import ALL_FEATURES
from tests.semantics.test_rules import comparable

pytestmark = [pytest.mark.guest, pytest.mark.timeout(600)]

CPUS = 4
TAG = "rules"
SECONDS = 300.0
SETUP = "4-queues"  # as known_differences.py names a share with every feature
SEMANTICS = Path(__file__).parents[1] / "semantics"

# Runs in the guest, which has no pytest; the share holds the rules and the folders they work in.
# "On the host" is in the guest, too: that is a matter for tests/semantics/test_rules.py.
PROGRAM = """
import json, sys
from pathlib import Path
sys.dont_write_bytecode = True
sys.path.insert(0, "/mnt")
from semantics import rules_attributes, rules_create, rules_data, rules_locks, rules_xattrs
from semantics.rules import RULES, outcome
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
# virtiofs tells the device nothing of a signal, and a request that waits there cannot be left.
NOT_HERE = {"a signal ends the wait for a lock"}
SELECTION = [name for name in RULES if name not in NOT_HERE]


@pytest.fixture(
    scope="module", params=[1, 4] if DEEP else [4], ids=lambda queues: f"{queues}-queues"
)
def found(request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    """What came of each rule in the guest, as Python writes it."""
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
        guest = stack.enter_context(machine.boot([share], machine.Hardware(CPUS)))
        guest.mount(TAG, options="nosuid,nodev")
        output = guest.check(f"cd /; python3 - <<'EOF'\n{PROGRAM}\nEOF", SECONDS)
        yield dict(json.loads(line) for line in output.splitlines())
        guest.power_off()


@pytest.mark.parametrize("name", SELECTION)
def test_the_guest_sees_what_the_rule_says(found: dict[str, str], name: str) -> None:
    wanted = expected(name, SETUP, RULES[name].expected)
    assert comparable(ast.literal_eval(found[name])) == comparable(wanted)
