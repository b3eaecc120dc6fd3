# SPDX-License-Identifier: Apache-2.0
"""scripts/fuzz: build a target, search for a while, keep the inputs that cover something new."""

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.fuzz.targets import BUILD, FUZZER, ROOT, TARGETS, Target, build

CRASHES: Final = BUILD / "crashes"
CORPUS_MAX: Final = 300  # files in the corpus of one target
ONE_INPUT_SECONDS: Final = 25
MEMORY_MB: Final = 2048
_LAST: Final = re.compile(r"^#(\d+)\s+\S+\s+cov: (\d+) ft: (\d+)", re.MULTILINE)
_FLAGS: Final = (f"-timeout={ONE_INPUT_SECONDS}", f"-rss_limit_mb={MEMORY_MB}", "-print_funcs=0")
ENVIRONMENT: Final = {
    "ASAN_OPTIONS": "detect_leaks=1:handle_abort=1:detect_stack_use_after_return=1",
    "UBSAN_OPTIONS": "print_stacktrace=1",
}


@dataclass(frozen=True)
class Searched:
    """The result of a search. `status` is libFuzzer's: 0 if nothing was found."""

    status: int
    runs: int
    edges: int
    features: int
    seconds: float
    log: Path


def program_of(target: Target) -> Path:
    """The program that fuzzes the target; a target in C is built again if a source has changed."""
    BUILD.mkdir(parents=True, exist_ok=True)
    if not target.is_python:
        return build(target, FUZZER)
    # libFuzzer starts itself again to merge, so the program must be one file.
    program = BUILD / f"{target.name}-fuzzer"
    program.write_text(
        f'#!/bin/sh\ncd "{ROOT}" && exec "{sys.executable}" -m tests.fuzz.python_fuzzer'
        f' {target.name} "$0" "$@"\n'
    )
    program.chmod(0o755)
    return program


def _call(argv: list[str], log: Path) -> int:
    with log.open("w") as output:
        return subprocess.run(
            argv,
            stdout=output,
            stderr=output,
            env={**os.environ, **ENVIRONMENT},
            check=False,
        ).returncode


def search(target: Target, program: Path, seconds: int) -> Searched:
    """Fuzz for `seconds`, beginning with the corpus and the inputs that earlier searches found."""
    found = BUILD / "found" / target.name
    for folder in (found, CRASHES, target.corpus):
        folder.mkdir(parents=True, exist_ok=True)
    CRASHES.chmod(0o777)  # a process that crashes may have another user's ids
    log = BUILD / f"{target.name}.log"
    start = time.monotonic()
    status = _call(
        [
            str(program),
            *_FLAGS,
            f"-max_total_time={seconds}",
            f"-max_len={target.max_len}",
            "-len_control=20",
            "-reload=0",
            f"-artifact_prefix={CRASHES}/{target.name}-",
            str(found),
            str(target.corpus),
        ],
        log,
    )
    rows = _LAST.findall(log.read_text(errors="replace")) or [("0", "0", "0")]
    runs, edges, features = map(int, rows[-1])
    return Searched(status, runs, edges, features, time.monotonic() - start, log)


def _merge(target: Target, program: Path, into: Path, sources: list[Path]) -> None:
    """Add to `into` the smallest inputs of `sources` that reach what no input there reaches.

    What is reached is an edge; in Python, which has few edges, also how often an edge is taken.
    """
    counters = f"-use_counters={int(target.is_python)}"
    argv = [str(program), *_FLAGS, "-merge=1", counters, str(into), *map(str, sources)]
    log = BUILD / f"{target.name}-merge.log"
    if _call(argv, log):
        raise RuntimeError(f"{target.name}: merging failed; see {log}")


def keep(target: Target, program: Path) -> int:
    """Add what was found to the corpus. Return: the number of files in the corpus."""
    found = BUILD / "found" / target.name
    _merge(target, program, target.corpus, [found])
    if len(list(target.corpus.iterdir())) > CORPUS_MAX:
        small = BUILD / "small" / target.name
        shutil.rmtree(small, ignore_errors=True)
        small.mkdir(parents=True)
        _merge(target, program, small, [target.corpus])
        shutil.rmtree(target.corpus)
        shutil.copytree(small, target.corpus)
    return len(list(target.corpus.iterdir()))


def fuzz(target: Target, seconds: int) -> bool:
    """Search, and print the result in a line or two. Return: False if something was found."""
    program = program_of(target)
    done = search(target, program, seconds)
    print(
        f"{target.name}: {done.runs} runs in {done.seconds:.0f} s,"
        f" {done.edges} edges, {done.features} features",
        flush=True,
    )
    if done.status:
        print(f"{target.name}: FOUND an input that fails, status {done.status}; see {done.log}:")
        for line in done.log.read_text(errors="replace").splitlines()[-4:]:
            print(f"  {line}")
        return False
    print(f"{target.name}: {keep(target, program)} files in the corpus", flush=True)
    return True


def main() -> int:
    """Exit status: 0, 1 if something was found, 2 for a wrong command line."""
    parser = argparse.ArgumentParser(prog="scripts/fuzz", description="Fuzz one target, or all.")
    parser.add_argument("target", nargs="?", choices=[*TARGETS, "all"], metavar="TARGET")
    parser.add_argument("seconds", nargs="?", type=int, default=60, metavar="SECONDS")
    arguments = parser.parse_args()
    if arguments.target is None:
        for target in TARGETS.values():
            print(f"{target.name:16}{target.about}")
        return 0
    names = TARGETS if arguments.target == "all" else [arguments.target]
    sound = [fuzz(TARGETS[name], arguments.seconds) for name in names]
    return int(not all(sound))


if __name__ == "__main__":
    sys.exit(main())
