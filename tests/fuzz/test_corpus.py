# SPDX-License-Identifier: Apache-2.0
"""Every input that the fuzzers have found is run again, and the fuzzers find planted mistakes.

The corpora of targets in C run under ASan and UBSan, the corpora of targets in Python in this
process. The objects are kept in build/fuzz, so a second run compiles only what has changed.
"""

import importlib
import importlib.util
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

from tests.conftest import cannot_run, require
from tests.fuzz.run import CORPUS_MAX, ENVIRONMENT
from tests.fuzz.targets import BUILD, CORPUS, FUZZER, REPLAY, ROOT, TARGETS, build, path_of
from tests.waiting import HANG

BYTES_MAX: Final = 1 << 20  # bytes in all corpora
IN_C: Final = sorted(name for name, target in TARGETS.items() if not target.is_python)
IN_PYTHON: Final = sorted(name for name, target in TARGETS.items() if target.is_python)
# Target, source, a check in the source, the mistake in its place: a guest, a VMM or a device would
# like to see each of these checks gone.
PLANTED: Final = (
    ("ring", "transport/vring", "if (ret->head >= v->size)", "if (ret->head > v->size)"),
    ("request", "worker/request/request", "if (head.size > *left - len)", "if (head.size > *left)"),
    (
        "memory",
        "transport/guest_memory",
        "r->offset + r->size > (uint64_t)st.st_size",
        "!st.st_size",
    ),
    ("driver_ring", "frontend/driver_ring", "if (len > r->heads[id].room)", "if (id > r->size)"),
)
SEARCH_SECONDS: Final = 60  # at most: on an idle machine a search takes a second or two


def inputs(name: str) -> list[Path]:
    return sorted(TARGETS[name].corpus.iterdir())


def run_program(argv: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        argv,
        cwd=ROOT,
        env={**os.environ, **ENVIRONMENT},
        capture_output=True,
        text=True,
        errors="replace",
        timeout=HANG,
        check=False,
    )


def replay(program: Path, files: list[Path]) -> subprocess.CompletedProcess[str]:
    return run_program([str(program), *map(str, files)])


def search(argv: list[str], folder: Path, seeds: Path) -> list[Path]:
    """Search, beginning with a corpus. Return: the inputs that made the target fail."""
    flags = [f"-max_total_time={SEARCH_SECONDS}", f"-artifact_prefix={folder}/"]
    done = run_program([*argv, *flags, str(seeds)])
    assert done.returncode, f"nothing was found: {done.stderr[-2000:]}"
    return list(folder.glob("crash-*"))


@pytest.mark.parametrize("name", IN_C)
def test_what_was_found_in_c_stays_mended(name: str) -> None:
    done = replay(build(TARGETS[name], REPLAY), inputs(name))
    assert done.returncode == 0, done.stdout[-300:] + done.stderr


@pytest.mark.parametrize("name", IN_PYTHON)
def test_what_was_found_in_python_stays_mended(name: str) -> None:
    run = importlib.import_module(f"tests.fuzz.{name}").run
    for path in inputs(name):
        try:
            run(path.read_bytes())
        except Exception as error:
            error.add_note(f"with the input {path}")
            raise


def test_each_target_has_a_corpus_and_each_corpus_a_target() -> None:
    assert {path.name for path in CORPUS.iterdir()} == set(TARGETS)
    for name in TARGETS:
        assert 5 <= len(inputs(name)) <= CORPUS_MAX, name


def test_the_corpora_stay_small() -> None:
    sizes = [path.stat().st_size for name in TARGETS for path in inputs(name)]
    assert sum(sizes) <= BYTES_MAX


@pytest.mark.parametrize(
    ("name", "source", "right", "wrong"), PLANTED, ids=[row[0] for row in PLANTED]
)
def test_a_planted_mistake_is_found_in_c(
    name: str, source: str, right: str, wrong: str, tmp_path: Path
) -> None:
    require("clang")
    text = path_of(source).read_text()
    assert text.count(right) == 1
    planted = {source: tmp_path / path_of(source).name}
    planted[source].write_text(text.replace(right, wrong))
    honest = TARGETS[name]
    target = replace(honest, name=f"planted-{name}")
    program = build(target, FUZZER, BUILD, planted)
    seeds = shutil.copytree(honest.corpus, tmp_path / "seeds")
    crashes = search([str(program), f"-max_len={honest.max_len}"], tmp_path, seeds)
    assert len(crashes) == 1
    assert replay(build(honest, REPLAY), crashes).returncode == 0
    assert replay(build(target, REPLAY, BUILD, planted), crashes).returncode == 1


def test_a_planted_mistake_is_found_in_python(tmp_path: Path) -> None:
    if importlib.util.find_spec("atheris") is None:
        cannot_run("needs atheris, which is not built for this Python")
    argv = [sys.executable, "-m", "tests.fuzz.python_fuzzer", "planted", "planted"]
    (tmp_path / "seeds").mkdir()
    assert len(search(argv, tmp_path, tmp_path / "seeds")) == 1
