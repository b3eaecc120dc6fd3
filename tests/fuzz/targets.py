# SPDX-License-Identifier: Apache-2.0
"""The fuzz targets, and how each becomes a program. README.md says how to add a target.

A target in C is built twice: with clang as a libFuzzer program (to search), and with gcc and
replay.c as a plain program (to run inputs again). Both have ASan and UBSan. A target in Python is a
module with a function run(data); it is searched by atheris, which is also libFuzzer, and its corpus
is replayed without atheris.
"""

import hashlib
import os
import subprocess
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.native.test_instructions import NOT_ON_THE_PATH
from tests.native.test_native import OPS as LIBRARY

HERE: Final = Path(__file__).resolve().parent
ROOT: Final = HERE.parents[1]
CORPUS: Final = HERE / "corpus"
BUILD: Final = ROOT / "build" / "fuzz"

FLAGS: Final = ("-std=gnu11", "-g", "-O1", "-D_GNU_SOURCE", "-fno-omit-frame-pointer")
WARNINGS: Final = ("-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter")
INCLUDES: Final = (f"-I{ROOT / 'vfsd'}", f"-I{ROOT / 'tests/native'}", f"-I{HERE}")
SANITIZE: Final = "address,undefined"


@dataclass(frozen=True)
class Kind:
    """How a target in C is compiled and linked: `link` is for the last step alone."""

    name: str
    compiler: tuple[str, ...]
    link: tuple[str, ...]


FUZZER: Final = Kind(
    "fuzzer",
    ("clang", f"-fsanitize=fuzzer-no-link,{SANITIZE}"),
    (f"-fsanitize=fuzzer,{SANITIZE}",),
)
REPLAY: Final = Kind("replay", ("gcc", f"-fsanitize={SANITIZE}"), (f"-fsanitize={SANITIZE}",))


@dataclass(frozen=True)
class Target:
    """A part of vfsd to fuzz. Inputs are at most `max_len` bytes long."""

    name: str
    about: str
    max_len: int
    # In C: files below tests/fuzz, and files of the product as "transport/vring" (csrc/vring.c
    # there).
    sources: tuple[str, ...] = ()
    ours: tuple[str, ...] = field(default=(), repr=False)

    @property
    def is_python(self) -> bool:
        return not self.sources

    @property
    def corpus(self) -> Path:
        return CORPUS / self.name


def _all_of(*packages: str) -> tuple[str, ...]:
    return tuple(
        f"{package}/{path.relative_to(ROOT / 'vfsd' / package / 'csrc').with_suffix('')}"
        for package in packages
        for path in sorted((ROOT / "vfsd" / package / "csrc").rglob("*.c"))
        if path.name not in NOT_ON_THE_PATH
    )


VRING: Final = (
    "transport/guest_memory",
    "transport/vring",
    "transport/split_ring",
    "transport/bad_chain",
    "transport/inflight",
)
OPS: Final = ("ops.c", "ops_fs.c", "ops_reply.c", "ops_share.c")
SERVING: Final = _all_of("transport", "worker")

TARGETS: Final = {
    target.name: target
    for target in (
        Target(
            "ring",
            "a guest's ring, indirect tables and requests, of any bytes",
            2048,
            ("ring.c",),
            (*VRING, "transport/fuse_ops", "worker/request/request"),
        ),
        Target(
            "request",
            "requests with any arguments, names and extensions",
            1024,
            ("request.c",),
            ("transport/fuse_ops", "transport/guest_memory", "worker/request/request"),
        ),
        Target(
            "record",
            "in-flight record and intents, of any bytes",
            1024,
            ("record.c",),
            (*VRING, "transport/fuse_ops", "worker/request/intent"),
        ),
        Target(
            "memory",
            "tables of guest memory, and addresses in it",
            512,
            ("memory.c",),
            ("transport/guest_memory",),
        ),
        Target(
            "handle_broker",
            "a worker's requests to the broker of file handles",
            1024,
            ("handle_broker.c",),
            SERVING,
        ),
        Target("ops_names", "ops on names", 1024, (*OPS, "ops_names.c"), LIBRARY),
        Target("ops_attributes", "ops on attributes", 1024, (*OPS, "ops_attributes.c"), LIBRARY),
        Target("ops_files", "ops on open files", 1024, (*OPS, "ops_files.c"), LIBRARY),
        Target("ops_locks", "locks and other ops", 1024, (*OPS, "ops_locks.c"), LIBRARY),
        Target(
            "driver_ring",
            "the used ring as a hostile device writes it, seen by our own driver",
            1024,
            ("driver_ring.c",),
            ("frontend/driver_ring", "transport/split_ring"),
        ),
        Target("stream", "bytes and fds on the vhost-user socket", 1024),
        Target("session", "vhost-user messages: codec and session", 1024),
        Target("zmtp", "the byte stream of a worker's control channel", 1024),
        Target("control", "messages of pool and workers to the supervisor", 2048),
        Target("rules", "the languages of --xattrmap and --translate-uid", 1024),
        Target("options", "command line and configuration file", 1024),
    )
}


def _run(argv: Iterable[str]) -> None:
    done = subprocess.run(list(argv), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stdout + done.stderr)


def _headers() -> bytes:
    """The content of all headers, so that a change of any of them is noticed."""
    paths = [*(ROOT / "vfsd").glob("*/csrc/**/*.h"), *HERE.glob("*.h"), *HERE.glob("../native/*.h")]
    return b"".join(path.read_bytes() for path in sorted(paths))


def path_of(source: str) -> Path:
    """The path of "worker/loop/ring", or of "ring.c" if that is a file of the target's own."""
    package, _, stem = source.partition("/")
    return ROOT / "vfsd" / package / "csrc" / f"{stem}.c" if stem else HERE / source


def _compile(kind: Kind, path: Path, headers: bytes, folder: Path) -> Path:
    """The object of a source, built again when the source or any header has changed."""
    flags = (*kind.compiler, *FLAGS, *WARNINGS, *INCLUDES)
    content = repr(flags).encode() + headers + path.read_bytes()
    name = f"{path.parent.parent.name}-{path.stem}-{hashlib.sha256(content).hexdigest()[:16]}.o"
    result = folder / name
    if not result.exists():
        part = result.with_suffix(f".{os.getpid()}")  # another build may run at the same time
        _run((*flags, "-fno-sanitize-recover=all", "-c", str(path), "-o", str(part)))
        part.rename(result)
    return result


def build(
    target: Target, kind: Kind, folder: Path = BUILD, planted: Mapping[str, Path] | None = None
) -> Path:
    """Build a target in C and return its program. RuntimeError contains the compiler's output.

    `planted` replaces files of the product: a mistake that a test wants the fuzzer to find.
    """
    objects = folder / kind.name
    objects.mkdir(parents=True, exist_ok=True)
    sources = [*target.sources, *target.ours]
    if kind is REPLAY:
        sources.append("replay.c")
    headers = _headers()
    paths = [(planted or {}).get(source) or path_of(source) for source in sources]
    with ThreadPoolExecutor(2) as threads:
        made = list(threads.map(lambda path: _compile(kind, path, headers, objects), paths))
    program = folder / f"{target.name}-{kind.name}"
    _run((kind.compiler[0], *kind.link, *map(str, made), "-o", str(program), "-pthread"))
    return program
