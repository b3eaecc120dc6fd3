# SPDX-License-Identifier: Apache-2.0
"""The tables of SECURITY.md, made from the code and the tests that they describe."""

import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from vfsd.supervisor.confinement import CALLS, Call
from vfsd.worker import capabilities, condition, handle_broker, seccomp

ROOT: Final = Path(__file__).resolve().parents[1]
_WORD: Final = (1 << 32) - 1
_ALL: Final = (1 << 64) - 1


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join("| " + " | ".join(c.replace("|", "\\|") for c in row) + " |\n" for row in lines)


def capability_table() -> str:
    """The capabilities that workers and the broker keep."""
    rows = [
        (f"`CAP_{name}`", _keepers(name), capabilities.WHEN.get(name, condition.ALWAYS).words, why)
        for name, why in (capabilities.KEPT | capabilities.FOR_HANDLES).items()
    ]
    return table(("capability", "kept by", "in pool and workers when", "for"), rows)


def _keepers(name: str) -> str:
    return "pool, workers" + (", broker" if name in handle_broker.KEPT else "")


def sandbox_calls() -> str:
    """The system calls of pool and workers, from syscalls.h."""
    rows = [
        (
            f"`{row.name}`",
            ", ".join(row.roles),
            ", ".join(row.conditions) or "always",
            f"`{row.rule}`" if row.rule else "",
            ", ".join(row.callers),
            row.why,
        )
        for row in seccomp.table()
    ]
    return table(("call", "who", "when", "arguments", "callers", "for"), rows)


def trusted_calls() -> str:
    """The system calls of keeper and supervisor, from confinement.py."""
    rows = [_call("keeper, supervisor", call) for call in CALLS]
    return table(("call", "who", "arguments", "callers"), rows)


def _call(who: str, call: Call) -> tuple[str, ...]:
    return f"`{call.name}`", who, _rule(call), call.caller


def _rule(call: Call) -> str:
    if call.argument < 0:
        return ""
    masked = "" if call.mask in (_WORD, _ALL) else f" & {call.mask:#x}"
    return f"`argument {call.argument}{masked} == {call.value:#x}`"


def attempts() -> str:
    """The result that tests/hostile/test_taken_over.py expects of each attempt in each mode."""
    from tests.hostile.test_taken_over import ATTEMPTS, MODES  # noqa: PLC0415 - needs the tests

    rows = [(name, *(found[mode] for mode in MODES)) for name, (_, found) in ATTEMPTS.items()]
    return table(("attempt", *MODES), rows)


class Attack(NamedTuple):
    """A class of attack, its outcome, and the tests that try it. `alike`: why the modes in which
    none of these tests runs need no test."""

    name: str
    outcome: str
    tests: tuple[str, ...]
    alike: str = ""


ATTACKS: Final = (
    Attack(
        "a guest names files outside of the share (`..`, absolute paths, symbolic links, a"
        " directory that is moved away)",
        "nothing outside is seen or changed",
        ("hostile/test_escape.py",),
    ),
    Attack(
        "a guest replaces a file between two looks at the file (fifo, device, socket)",
        "the new file is never opened; where the daemon refuses MKNOD of devices, the test makes"
        " them on the host",
        ("hostile/test_two_looks.py",),
    ),
    Attack(
        "queues and two VMs race on few names, on ext4, xfs, btrfs and tmpfs, with each way to hold"
        " inodes",
        "no reply has a wrong type; only files and directories of the share are open",
        ("hostile/test_race.py",),
    ),
    Attack(
        "invalid rings, and memory that changes while it is read",
        "the guest harms only its own ring",
        ("hostile/test_rings.py",),
    ),
    Attack(
        "invalid requests: sizes, offsets, flags, and generated requests",
        "an error for the request",
        ("hostile/test_guest.py", "hostile/test_offsets.py", "hostile/test_fuzz.py"),
    ),
    Attack(
        "a guest acts with the rights of another user, or sets flags and ids that the host decides",
        "each request has its own ids, and the host's flags and project ids stay; with `--userns`"
        " each change of a file clears its set-id bits, and the flag `immutable` is refused",
        ("hostile/test_credentials.py", "hostile/test_ioctl.py", "hostile/test_xattrmap.py"),
    ),
    Attack(
        "a daemon without root: the guest acts for other users, and makes devices",
        "refused; all files belong to the daemon's user",
        ("hostile/test_unprivileged.py",),
        alike="the other columns are daemons that root starts",
    ),
    Attack(
        "messages of a VMM: any order, size and number of fds",
        "the connection ends, and the daemon waits for the next connection",
        ("hostile/test_socket.py", "supervisor/test_session.py"),
    ),
    Attack(
        "a worker that was taken over attacks the host",
        "the table of attempts above",
        ("hostile/test_taken_over.py",),
    ),
    Attack(
        "a worker that was taken over makes a call that its options do not need",
        "the worker dies (SIGSYS), and its queue stops",
        ("worker/test_seccomp.py", "hostile/test_filters.py"),
    ),
    Attack(
        "a worker faults again and again, to guess addresses",
        "after `--worker-faults` its queue stops; each worker has a canary of its own",
        ("hostile/test_faults.py", "worker/test_fault_budget.py"),
    ),
    Attack(
        "a worker faults, the VMM connects again, and the guest goes on guessing addresses",
        "the next sandbox has other addresses",
        ("hostile/test_template.py",),
    ),
    Attack(
        "the first process of the sandbox is killed again and again, while the guest works",
        "the session goes on in another sandbox; only a file without a name is lost",
        ("hostile/test_sandbox_lost.py",),
    ),
    Attack(
        "a worker that was taken over asks the broker for files that are not in the share",
        "refused; with `--userns` there is no broker, because no process can open handles",
        (
            "hostile/test_handle_broker.py",
            "hostile/test_broker_neighbours.py",
            "hostile/test_handles.py",
            "worker/test_handles.py",
        ),
    ),
    Attack(
        "a worker or pool that was taken over sends anything to the supervisor",
        "the connection or the pool ends; memory and log stay bounded",
        ("supervisor/test_taken_over.py", "supervisor/test_pool_channel.py"),
        alike="the test takes the place of the pool, outside of any sandbox, and sends anything",
    ),
    Attack(
        "a supervisor or keeper that was taken over attacks the host",
        "denied, or the process dies",
        ("hostile/test_confinement.py",),
    ),
    Attack(
        "launcher, deputy and template are killed in any order, while the guest works",
        "they take each other's place, and a sandbox that is lost is replaced",
        ("hostile/test_launcher_deaths.py",),
    ),
    Attack(
        "a supervisor that was taken over misuses the launcher",
        "only pools of this share with these options are started or ended",
        ("hostile/test_launcher.py",),
    ),
    Attack(
        "an operator's program or the control process sends anything, other users connect",
        "the connection or the control process ends; supervisor and guest do not notice",
        ("control/test_hostile_clients.py",),
        alike="no process of the sandbox takes part in it",
    ),
    Attack(
        "a host user moves a folder on the way to the share",
        "the share stays the directory that was opened at the start",
        ("hostile/test_shared_dir.py",),
    ),
    Attack(
        "a guest, a VMM or a worker fills the host's log",
        "the log grows by a few KiB a minute",
        ("hostile/test_log.py", "hostile/test_stderr.py"),
    ),
    Attack(
        "a guest opens as many files as it can, or has requests that hang in storage",
        "the host can still open files; the other requests go on",
        ("supervisor/test_file_limit.py", "hostile/test_hung_storage.py"),
    ),
    Attack(
        "under the systemd unit: a guest works; a worker and a launcher that were taken over"
        " attack",
        "the daemon works; devices, files beside the share, networks and bpf are refused",
        ("system/test_unit.py",),
    ),
    Attack(
        "the corpora of all fuzz targets, under ASan and UBSan",
        "no error",
        ("fuzz/test_corpus.py",),
        alike="the targets call the code directly, without a sandbox",
    ),
)


ANY: Final = "alike in all"  # the column of tests that run without a daemon
NONE: Final = "-"
COLUMNS: Final = ("namespace", "userns", "chroot", "none", "unprivileged", ANY)
_MODE: Final = re.compile(r"sandbox=(\w+)")  # tests/sandbox_modes.py


def collected() -> Counter[tuple[str, str]]:
    """The number of tests that pytest finds in each file of ATTACKS, for each of COLUMNS."""
    names = sorted({f"tests/{name}" for attack in ATTACKS for name in attack.tests})
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *names],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env={key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")},
    )
    tests = [line.partition("::") for line in done.stdout.splitlines() if "::" in line]
    return Counter((name, _column(test)) for name, _, test in tests)


def _column(test: str) -> str:
    found = _MODE.search(test)
    return found[1] if found else ANY


def cases(attack: Attack, counts: Counter[tuple[str, str]]) -> dict[str, int]:
    """The number of cases of a class, by column."""
    files = [f"tests/{name}" for name in attack.tests]
    return {column: sum(counts[name, column] for name in files) for column in COLUMNS}


def attack_table() -> str:
    """The table of ATTACKS, with the numbers of their tests."""
    counts = collected()
    rows = [
        (
            attack.name,
            attack.outcome,
            *(str(number or NONE) for number in cases(attack, counts).values()),
            attack.alike,
            ", ".join(f"`tests/{name}`" for name in attack.tests),
        )
        for attack in ATTACKS
    ]
    return table(("attack", "outcome", *COLUMNS, "where there is no number", "tests"), rows)
