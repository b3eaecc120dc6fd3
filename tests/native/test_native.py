# SPDX-License-Identifier: Apache-2.0
"""C without its Python: each program here is compiled with sanitizers and run.

ASan and UBSan end a program at the first error, and leaks are checked at its end. TSan also checks
the tables that several workers share; TSan does not check guest memory, because the driver's stores
race with ours by design.
"""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
FLAGS = ("-std=gnu11", "-g", "-O1", "-D_GNU_SOURCE", "-fno-omit-frame-pointer")
WARNINGS = ("-Wall", "-Wextra", "-Wconversion", "-Werror", "-Wno-unused-parameter")
ADDRESS = "address,undefined"
# A program that is stepped through has fewer instructions with this sanitizer alone.
UNDEFINED = "undefined"
THREAD = "thread"  # gcc warns that TSan does not see fences; here fences only order atomic accesses
OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=1:strict_string_checks=1:detect_stack_use_after_return=1",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "TSAN_OPTIONS": "halt_on_error=1:second_deadlock_stack=1",
}
SECONDS = 300  # far more than any program takes, since the machine may be loaded

MEMORY = ("transport/guest_memory",)
VRING = (
    *MEMORY,
    "transport/vring",
    "transport/split_ring",
    "transport/bad_chain",
    "transport/inflight",
)
TABLES = (
    "worker/tables/forgotten",
    "worker/tables/inode_cache",
    "worker/tables/inode_hash",
    "worker/tables/inode_leave",
    "worker/tables/inode_restore",
    "worker/tables/inode_slots",
    "worker/tables/inode_table",
    "worker/fs/inode_fd",
    "worker/fs/mount_handles",
    "worker/tables/mount_table",
    "worker/host/fhandle",
    "worker/host/file_system",
    "worker/broker/handle_client",
    "worker/broker/handle_protocol",
    "worker/tables/file_table",
    "worker/tables/lock_notes",
    "worker/tables/reclaim",
    "worker/host/siphash",
    "worker/tables/session_image",
    "worker/tables/worker_table",
    "worker/fs/entry",
    "worker/fs/entry_attr",
    "worker/fs/entry_open",
    "worker/fs/idmap",
    "worker/host/credentials",
    "worker/host/identity",
    "worker/host/proc_fd",
)
OFFLOAD = (
    "worker/loop/offload",
    "worker/host/credentials",
    "worker/host/thread",
    "worker/tables/reclaim",
)
WATCHDOG = ("worker/host/watchdog", "worker/host/thread")
BRIDGE = (
    "frontend/driver_ring",
    "frontend/bridge_wait",
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
    "worker/loop/direct_io",
    "worker/fs/as_requester",
    "worker/fs/file_capability",
    "worker/fs/fs_init",
    "worker/fs/set_id",
    "worker/fs/inode_forget",
    "worker/fs/inode_trim",
    "worker/request/intent",
    "worker/fs/keep_cache",
    "worker/host/page_state",
    "worker/fs/label",
    "worker/fs/mount_facts",
    "worker/fs/ops",
    "worker/fs/requester",
    "worker/fs/xattrmap",
    "worker/loop/lock_wait",
    "worker/loop/offload",
    "worker/loop/poll",
    "worker/loop/records",
    "worker/request/request",
    "worker/loop/ring",
    "worker/loop/adopt",
    "worker/loop/closing",
    "worker/loop/deferred",
    "worker/loop/requests",
    "worker/loop/serve",
    "worker/loop/turn",
    "worker/loop/worker",
    "worker/loop/sigbus",
    "worker/host/thread",
    "worker/host/watchdog",
)


def all_of(*folders: str) -> tuple[str, ...]:
    """Every C file in these folders of the worker."""
    csrc = ROOT / "vfsd" / "worker" / "csrc"
    return tuple(
        f"worker/{folder}/{path.stem}"
        for folder in folders
        for path in sorted((csrc / folder).glob("*.c"))
    )


# The ops as a library: no file of the loop, so neither a ring nor a thread.
OPS = (
    *MEMORY,
    "transport/fuse_ops",
    *all_of("fs", "request", "tables", "host"),
    "worker/broker/handle_client",
    "worker/broker/handle_protocol",
)


@dataclass(frozen=True)
class Program:
    """A test_<name>.c, the files of the project that it is linked with, and its sanitizers."""

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
    Program("request", (*MEMORY, "transport/fuse_ops", "worker/request/request")),
    Program("tables", TABLES),
    Program("inode_cache", TABLES),
    Program("file_table", TABLES),
    Program("lock_notes", TABLES, UNDEFINED),
    Program("reclaim", TABLES),
    Program("session_image", TABLES),
    Program("forgotten", TABLES),
    Program("forgotten", TABLES, THREAD),
    Program("fhandle", TABLES),
    Program("unlinked", TABLES),
    Program("tables_threads", TABLES),
    Program("tables_threads", TABLES, THREAD),
    Program("tables_death", TABLES, UNDEFINED),
    Program("chains_death", TABLES, UNDEFINED),
    Program("tables_killed", TABLES, UNDEFINED),
    Program("siphash", ("worker/host/siphash",)),
    Program("handle_broker", (*TABLES, "worker/broker/handle_broker")),
    Program("offload", OFFLOAD),
    Program("offload", OFFLOAD, THREAD),
    Program("watchdog", WATCHDOG),
    Program("watchdog", WATCHDOG, THREAD),
    Program("ops", OPS),
    Program("record_locks", OPS, UNDEFINED),
    Program("serve", WORKER),
    Program("fuse_bridge", BRIDGE),
)


def source(name: str) -> str:
    """The path of a source: `worker/loop/ring` is vfsd/worker/csrc/loop/ring.c."""
    package, _, stem = name.partition("/")
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
