# SPDX-License-Identifier: Apache-2.0
"""What users of a share do while its processes die: one function for a round of each workload.

A round works in `home`, a new folder of the mount; `host` is the same folder on the host. A failure
is an exception.
"""

import fcntl
import os
import random
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.semantics.exerciser import Exerciser
from tests.waiting import HANG

from .tree import Tree
from .workload import LostLockError, Steps

if TYPE_CHECKING:
    import sqlite3

# Steps, home, host, chance, and the time (monotonic) at which the round should end.
Workload = Callable[[Steps, Path, Path, random.Random, float], None]

LIBRARY: Final = Path(sysconfig.get_path("stdlib"))
ACCOUNTS: Final = 20
START_BALANCE: Final = 1000
FIO: Final = (
    *("fio", "--name=verify", "--rw=randrw", "--bs=4k", "--size=1m", "--numjobs=4", "--fsync=16"),
    *("--verify=crc32c", "--verify_fatal=1", "--verify_backlog=64", "--ioengine=psync"),
    *("--loops=3", "--thread", "--minimal"),
)
GIT: Final = """
exec 2>&1; export HOME=$PWD GIT_CONFIG_NOSYSTEM=1
git config --global user.name n; git config --global user.email e@x
git init -q -b main .
for i in 1 2 3; do
    mkdir d$i; cp {library}/json/*.py d$i; echo $i >>d1/decoder.py
    git add .; git commit -qm $i; git fsck --strict --no-progress
done
git gc -q; git fsck --strict --no-progress
test -z "$(git status --porcelain -- 'd*')"; test $(git log --oneline | wc -l) = 3
"""
TAR: Final = """
exec 2>&1
tar -cf all.tar -C {library} json email; mkdir out; tar -xf all.tar -C out
diff -r {library}/json out/json; diff -r {library}/email out/email
"""
# Two processes hold a lock in turn. Each of them creates a file outside of the share while it is
# inside, which fails if the other process is inside as well.
TWO_INSIDE: Final = "two are inside"
PARTNER: Final = "from tests.chaos.workloads import take_turns; take_turns()"


def shell(script: str, steps: Steps, home: Path, *_: object) -> None:
    steps.next("bash", home)
    argv = ["bash", "-euc", script.format(library=LIBRARY)]
    subprocess.run(argv, cwd=home, capture_output=True, text=True, check=True)


def fio(steps: Steps, home: Path, _host: Path, chance: random.Random, _until: float) -> None:
    steps.next("fio", home)
    argv = [*FIO, f"--directory={home}", f"--randseed={chance.randrange(1 << 31)}"]
    subprocess.run(
        argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True, cwd="/"
    )


def tree(steps: Steps, home: Path, host: Path, chance: random.Random, _until: float) -> None:
    made = Tree(home, chance, steps)
    made.run(400)
    made.check(host)


def file(steps: Steps, home: Path, host: Path, chance: random.Random, _until: float) -> None:
    steps.next("exerciser", home)
    exerciser = Exerciser(str(home / "file"), chance.randrange(1 << 31))
    exerciser.run(100)
    assert (host / "file").read_bytes() == exerciser.content(), "the host has other data"


def sqlite(
    mode: str, steps: Steps, home: Path, _host: Path, chance: random.Random, until: float
) -> None:
    """A ledger: the sum of all accounts is constant, and each transfer that was committed is in the
    journal exactly once."""
    path, committed = home / "ledger.db", 0
    steps.next("sqlite: create", path)
    with closing(_connect(path)) as base:
        base.execute(f"PRAGMA journal_mode={mode}")
        base.execute("CREATE TABLE account (id INTEGER PRIMARY KEY, balance)")
        base.execute("CREATE TABLE journal (number UNIQUE, noise)")
        rows = [(number, START_BALANCE) for number in range(ACCOUNTS)]
        base.executemany("INSERT INTO account VALUES (?, ?)", rows)
        while committed < 100 and time.monotonic() < until:
            steps.next("sqlite: transfer", path)
            _transfer(base, chance, committed)
            committed += 1
            if committed % 20 == 0:
                _audit(steps, path, committed)
    _audit(steps, path, committed)


def _connect(path: Path) -> "sqlite3.Connection":
    import sqlite3  # noqa: PLC0415 - the Python of a guest lacks it

    return sqlite3.connect(path, timeout=HANG, isolation_level=None)


def _transfer(base: "sqlite3.Connection", chance: random.Random, number: int) -> None:
    payer, payee = chance.sample(range(ACCOUNTS), 2)
    amount = chance.randint(1, 100)
    base.execute("BEGIN IMMEDIATE")
    base.execute("UPDATE account SET balance = balance - ? WHERE id = ?", (amount, payer))
    base.execute("UPDATE account SET balance = balance + ? WHERE id = ?", (amount, payee))
    noise = chance.randbytes(chance.randint(1, 3000))
    base.execute("INSERT INTO journal VALUES (?, ?)", (number, noise))
    base.execute("COMMIT")


def _audit(steps: Steps, path: Path, committed: int) -> None:
    steps.next("sqlite: audit", path)
    with closing(_connect(path)) as base:
        (verdict,) = base.execute("PRAGMA integrity_check").fetchone()
        assert verdict == "ok", verdict
        (total,) = base.execute("SELECT sum(balance) FROM account").fetchone()
        assert total == ACCOUNTS * START_BALANCE, f"the accounts have {total}"
        numbers = [row[0] for row in base.execute("SELECT number FROM journal ORDER BY number")]
        assert numbers == [*range(committed)], f"{len(numbers)} of {committed} transfers are left"


def locks(kind: str, steps: Steps, home: Path, host: Path, *_: object) -> None:
    steps.next(f"locks: {kind}", home)
    turns, counter = 100, home / "counter"
    counter.write_text("0")
    inside = host.parent.parent / f"inside-{kind}"  # not in the share
    inside.unlink(missing_ok=True)
    partners = [
        subprocess.Popen(
            [sys.executable, "-c", PARTNER, kind, counter, inside, str(turns), str(mine)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for mine in (0, 1)
    ]
    outputs = _await_partners(partners)
    if any(TWO_INSIDE in output for output in outputs):
        raise LostLockError(f"{kind}: two processes held the lock")
    assert not any(partner.returncode for partner in partners), outputs
    assert counter.read_text() == str(2 * turns), f"the counter is {counter.read_text()}"


def _await_partners(partners: list[subprocess.Popen[str]]) -> list[str]:
    """Wait for both partners; if one of them fails, the turn of the other one never comes."""
    while None in (codes := [partner.poll() for partner in partners]):
        if any(codes):
            for partner in partners:
                partner.kill()
        time.sleep(0.02)
    return [partner.communicate()[0] for partner in partners]


def take_turns() -> None:
    """One of the two partners; the counter is even when it is the turn of partner 0."""
    kind, counter, inside, turns, mine = sys.argv[1:]
    lock = {"fcntl": fcntl.lockf, "flock": fcntl.flock}[kind]
    fd = os.open(counter, os.O_RDWR)
    done = 0
    while done < int(turns):
        lock(fd, fcntl.LOCK_EX)
        try:
            marker = os.open(inside, os.O_CREAT | os.O_EXCL)
        except FileExistsError:
            sys.exit(TWO_INSIDE)
        number = int(os.pread(fd, 20, 0))
        if number % 2 == int(mine):
            os.pwrite(fd, str(number + 1).encode(), 0)
            done += 1
        os.close(marker)
        Path(inside).unlink()
        lock(fd, fcntl.LOCK_UN)
        if number % 2 != int(mine):
            time.sleep(0.001)


WORKLOADS: Final[dict[str, Workload]] = {
    "fio": fio,
    "tree": tree,
    "file": file,
    "sqlite-rollback": partial(sqlite, "DELETE"),
    "sqlite-wal": partial(sqlite, "WAL"),
    "git": partial(shell, GIT),
    "tar": partial(shell, TAR),
    "fcntl": partial(locks, "fcntl"),
    "flock": partial(locks, "flock"),
}
