# SPDX-License-Identifier: Apache-2.0
"""python -m tests.coherence: race changes of files against guests that open the files, for as long
as wanted. Ends with 1 if a guest has read stale data."""

import argparse
import signal
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from tests.hostile.file_systems import file_system

from .run import WORLDS, run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.coherence", description=__doc__)
    parser.add_argument("--seconds", type=float, default=3600.0)
    parser.add_argument("--files", type=int, default=300)
    parser.add_argument("--world", choices=sorted(WORLDS), default="opens")
    parser.add_argument("--cache", choices=["auto", "always"], default="auto")
    parser.add_argument("--file-system", choices=["ext4", "xfs", "btrfs", "tmpfs"], default="ext4")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # leave no mount behind
    with ExitStack() as stack:
        top = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vfsd-coherence-")))
        folder = stack.enter_context(file_system(options.file_system, top))
        outcome = run(folder, WORLDS[options.world], options.seconds, options.files, options.cache)
    print(f"{options.file_system}, {options.world}: {outcome.opens} opens", end=", ")
    print(f"{sum(outcome.changes.values())} changes, {len(outcome.wrong)} stale reads or more")
    print(f"  changes: {dict(outcome.changes)}\n  requests: {dict(outcome.sent)}")
    print("".join(f"  {text}\n" for text in outcome.wrong), end="")
    return 1 if outcome.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
