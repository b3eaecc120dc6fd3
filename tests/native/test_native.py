# SPDX-License-Identifier: Apache-2.0
"""C without its Python: each program here is compiled with sanitizers and run.

ASan and UBSan end a program at the first thing they see, and leaks are checked at its end. The
tables that several workers share are looked at by TSan too; guest memory is not, because the
driver's stores race with ours by design.
"""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
FLAGS = ("-std=gnu11", "-g", "-O1", "-D_GNU_SOURCE", "-fno-omit-frame-pointer")
WARNINGS = ("-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter")
ADDRESS = "address,undefined"
UNDEFINED = "undefined"  # what is stepped through has fewer instructions then
THREAD = "thread"  # gcc warns that it does not see fences, which here only order what is atomic
OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=1:strict_string_checks=1:detect_stack_use_after_return=1",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "TSAN_OPTIONS": "halt_on_error=1:second_deadlock_stack=1",
}
SECONDS = 300  # far more than any program takes: the machine may be loaded

MEMORY = ("transport/guest_memory",)
VRING = (
    *MEMORY,
    "transport/vring",
    "transport/split_ring",
    "transport/bad_chain",
    "transport/inflight",
)
TABLES = (
    "worker/inode_table",
    "worker/inode_fd",
    "worker/mount_table",
    "worker/fhandle",
    "worker/file_system",
    "worker/handle_client",
    "worker/handle_protocol",
    "worker/file_table",
    "worker/reclaim",
    "worker/siphash",
    "worker/worker_table",
    "worker/entry",
    "worker/idmap",
    "worker/credentials",
)
BRIDGE = (
    "frontend/driver_ring",
    "frontend/fuse_bridge",
    "frontend/hiprio",
    "frontend/init_request",
    "frontend/request_layout",
    "transport/split_ring",
)
WORKER = (
    *VRING,
    *TABLES,
    "transport/device_state",
    "transport/fuse_ops",
    "worker/direct_io",
    "worker/file_capability",
    "worker/set_id",
    "worker/inode_trim",
    "worker/intent",
    "worker/label",
    "worker/xattrmap",
    "worker/lock_wait",
    "worker/offload",
    "worker/poll",
    "worker/request",
    "worker/ring",
    "worker/serve",
    "worker/sigbus",
)


@dataclass(frozen=True)
class Program:
    """A test_<name>.c, what of ours it is linked with, and the sanitizers it runs under."""

    name: str
    sources: tuple[str, ...]
    sanitize: str = ADDRESS

    def __str__(self) -> str:
        return self.name if self.sanitize == ADDRESS else f"{self.name}-{self.sanitize}"


PROGRAMS = (
    Program("guest_memory", MEMORY),
    Program("vring", VRING),
    Program("vring_model", VRING),
    Program("vring_race", VRING),
    Program("inflight", VRING),
    Program("request", (*MEMORY, "transport/fuse_ops", "worker/request")),
    Program("tables", TABLES),
    Program("fhandle", TABLES),
    Program("unlinked", TABLES),
    Program("tables_threads", TABLES),
    Program("tables_threads", TABLES, THREAD),
    Program("tables_death", TABLES, UNDEFINED),
    Program("siphash", ("worker/siphash",)),
    Program("handle_broker", (*TABLES, "worker/handle_broker")),
    Program("offload", ("worker/offload", "worker/credentials", "worker/reclaim")),
    Program("offload", ("worker/offload", "worker/credentials", "worker/reclaim"), THREAD),
    Program("serve", WORKER),
    Program("fuse_bridge", BRIDGE),
)


def source(name: str) -> str:
    """`worker/ring` is vfsd/worker/csrc/ring.c."""
    package, stem = name.split("/")
    return str(ROOT / "vfsd" / package / "csrc" / f"{stem}.c")


def build(program: Program, folder: Path) -> Path:
    binary = folder / str(program)
    sources = [str(HERE / f"test_{program.name}.c"), *map(source, program.sources)]
    sanitize = [f"-fsanitize={program.sanitize}", "-fno-sanitize-recover=all"]
    if program.sanitize == THREAD:
        sanitize.append("-Wno-tsan")
    includes = ("-I", str(ROOT / "vfsd"), "-I", str(HERE))
    argv = ["gcc", *FLAGS, *WARNINGS, *sanitize, *includes, *sources, "-o", str(binary), "-pthread"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return binary


@pytest.mark.timeout(SECONDS + 100)
@pytest.mark.parametrize("program", PROGRAMS, ids=str)
def test_program(program: Program, tmp_path: Path) -> None:
    binary = build(program, tmp_path)
    done = subprocess.run(
        [str(binary)],
        cwd=tmp_path,
        env={**os.environ, **OPTIONS},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
