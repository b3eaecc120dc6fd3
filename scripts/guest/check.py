# SPDX-License-Identifier: Apache-2.0
"""The scripted session of `scripts/demo --check`: work in the guest, judge on the host.

Every step does something with a real tree inside the guest and then compares the result on the
host's side, byte for byte. Steps build on each other: the first step unpacks `tree`.
"""

import filecmp
import hashlib
import os
import re
import shutil
import stat
import sys
import sysconfig
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from .machine import GuestError, Machine, NoAnswerError

STEP_SECONDS = 300.0
NOT_COPIED = ("site-packages", "dist-packages", "__pycache__", "config-*")
MIB = 1 << 20


class CheckError(Exception):
    """The host does not see what the guest was asked to do."""


@dataclass(frozen=True)
class Session:
    """A guest at work: `host` and `guest` are the paths of the same folder on either side."""

    machine: Machine
    host: Path
    guest: str
    original: Path
    queues: int
    cpus: int

    def run(self, script: str) -> str:
        """Run a script in the guest's view of the folder; it must succeed."""
        return self.machine.check(f"cd {self.guest}\n{script}", STEP_SECONDS)

    def python(self, code: str) -> str:
        """Run Python in the guest's view of the folder."""
        return self.run(f"python3 - <<'EOF'\n{code}\nEOF")


# --- what the host compares ---------------------------------------------------------------------


def walk(root: Path) -> Iterator[Path]:
    """Yield everything below a folder, as paths relative to it, symlinks unfollowed."""
    for folder, folders, files in os.walk(root):
        for name in (*folders, *files):
            yield (Path(folder) / name).relative_to(root)


def require(condition: bool, message: str) -> None:
    """Fail the step unless the condition holds."""
    if not condition:
        raise CheckError(message)


def compare(left: Path, right: Path, renamed: str = "") -> int:
    """Compare two trees: names, types, permissions, times and bytes; return the file count.

    Regular files of the right tree have `renamed` at the end of their names.
    """
    files = 0
    expected = set()
    for path in walk(left):
        regular = (left / path).is_file() and not (left / path).is_symlink()
        twin = path.with_name(path.name + renamed) if regular else path
        expected.add(twin)
        compare_one(left / path, right / twin)
        files += regular
    surplus = sorted(set(walk(right)) - expected)
    require(not surplus, f"{right} has names that {left} lacks: {surplus[:3]}")
    return files


def compare_one(left: Path, right: Path) -> None:
    """Compare two files, folders or symlinks."""
    require(os.path.lexists(right), f"{right} is missing")
    one, other = left.lstat(), right.lstat()
    found, expected = f"{other.st_mode:o}", f"{one.st_mode:o}"
    require(found == expected, f"{right}: mode is {found}; expected {expected}")
    if stat.S_ISLNK(one.st_mode):
        require(left.readlink() == right.readlink(), f"{right} leads to {right.readlink()}")
    elif stat.S_ISREG(one.st_mode):
        require(filecmp.cmp(left, right, shallow=False), f"{right} differs from {left}")
        require(int(one.st_mtime) == int(other.st_mtime), f"{right}: the modification time differs")


def sha256(path: Path) -> str:
    """Return a file's SHA-256 in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def copy_library(target: Path) -> None:
    """Copy this Python's library: a real tree of some thousand files."""
    library = sysconfig.get_path("stdlib")
    shutil.copytree(library, target, symlinks=True, ignore=shutil.ignore_patterns(*NOT_COPIED))


# --- the steps ----------------------------------------------------------------------------------


def unpack(session: Session) -> str:
    session.run("tar -xf source.tar --no-same-owner")
    return f"{compare(session.original, session.host / 'tree')} files out of a tar"


def checksum(session: Session) -> str:
    seen = session.run("cd tree; find . -type f -print0 | xargs -0 sha256sum")
    lines = seen.splitlines()
    for line in lines:
        digest, name = line.split("  ", 1)
        require(digest == sha256(session.original / name), f"the guest reads {name} wrongly")
    files = sum(1 for path in walk(session.original) if is_regular(session.original / path))
    require(len(lines) == files, f"the guest reads {len(lines)} of {files} files")
    return f"{files} files read in the guest"


def is_regular(path: Path) -> bool:
    """Return whether a path is a regular file and not a symlink to one."""
    return stat.S_ISREG(path.lstat().st_mode)


def copy(session: Session) -> str:
    session.run("cp -a tree copy")
    return f"{compare(session.original, session.host / 'copy')} files copied"


def pack(session: Session) -> str:
    session.run("tar -cf packed.tar -C copy .")
    names = set()
    with tarfile.open(session.host / "packed.tar") as archive:
        for member in archive:
            original = session.original / member.name
            names.add(str(Path(member.name)))
            require(os.path.lexists(original), f"{member.name} is in the tar but not in the tree")
            if member.isreg():
                packed = archive.extractfile(member)
                same = packed is not None and packed.read() == original.read_bytes()
                require(same, f"{member.name} was packed with other bytes")
    expected = {str(path) for path in walk(session.original)}
    require(names == expected | {"."}, f"{len(expected)} names became {len(names) - 1}")
    return f"{len(expected)} files and folders into a tar"


def rename_tree(session: Session, folder: str) -> str:
    """Rename every file of a folder that is a copy of the tree, and the folder itself, twice."""
    session.python(f"""
import os
os.rename("{folder}", "moved")
for folder, _, names in os.walk("moved"):
    for name in names:
        path = os.path.join(folder, name)
        if not os.path.islink(path):
            os.rename(path, path + ".renamed")
""")
    session.run("mv moved elsewhere")
    files = compare(session.original, session.host / "elsewhere", ".renamed")
    require(not (session.host / folder).exists(), "the old name is still there")
    return f"{files} files and their folder renamed"


def rename(session: Session) -> str:
    return rename_tree(session, "copy")


def link(session: Session) -> str:
    session.run("cp -al tree hard; cp -as $PWD/tree soft")
    files = 0
    for path in walk(session.original):
        if not is_regular(session.original / path):
            continue
        files += 1
        name, hard, soft = (session.host / part / path for part in ("tree", "hard", "soft"))
        require(hard.samefile(name) and hard.lstat().st_nlink == 2, f"{hard} is not a hard link")
        target = f"{session.guest}/tree/{path}"
        require(str(soft.readlink()) == target, f"{soft} does not lead to {target}")
    return f"{files} hard links and as many symlinks"


def find(session: Session) -> str:
    seen = session.run("cd tree; find . -mindepth 1 -printf '%y %m %P\\n'").splitlines()
    letters = {stat.S_IFDIR: "d", stat.S_IFREG: "f", stat.S_IFLNK: "l"}
    expected = set()
    for path in walk(session.host / "tree"):
        mode = (session.host / "tree" / path).lstat().st_mode
        expected.add(f"{letters[stat.S_IFMT(mode)]} {stat.S_IMODE(mode):o} {path}")
    difference = expected.symmetric_difference(seen)
    require(not difference, f"guest and host list differently: {sorted(difference)[:3]}")
    return f"{len(seen)} names listed"


def fsync(session: Session) -> str:
    seen = session.run("""
dd if=/dev/urandom of=synced bs=1M count=16 conv=fsync 2>/dev/null
sync synced; sha256sum <synced
""")
    require(seen.split()[0] == sha256(session.host / "synced"), "the host reads wrong bytes")
    return "16 MiB written and synced"


def mapped(session: Session) -> str:
    session.python("""
import mmap
with open("mapped", "w+b") as file:
    file.truncate(4 << 20)
    with mmap.mmap(file.fileno(), 4 << 20) as memory:
        for offset in range(0, 4 << 20, 512):
            memory[offset : offset + 8] = offset.to_bytes(8, "little")
        memory.flush()
""")
    expected = b"".join(
        offset.to_bytes(8, "little") + bytes(504) for offset in range(0, 4 * MIB, 512)
    )
    require((session.host / "mapped").read_bytes() == expected, "the host reads wrong bytes")
    (session.host / "by-host").write_bytes(expected)
    seen = session.python("""
import hashlib, mmap
with open("by-host", "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as memory:
    print(hashlib.sha256(memory).hexdigest())
""")
    require(seen.strip() == hashlib.sha256(expected).hexdigest(), "the guest maps wrong bytes")
    return "4 MiB stored through mmap, and read"


def verify(session: Session) -> str:
    session.run(f"""
fio --name=verify --rw=randwrite --bs=4k --size=4m --numjobs=4 --ioengine=psync --direct=1 \\
    --cpus_allowed=0-{session.cpus - 1} --cpus_allowed_policy=split \\
    --verify=crc32c --verify_fatal=1 --group_reporting --output=fio.out
""")
    sizes = [path.stat().st_size for path in session.host.glob("verify.*")]
    require(sizes == [4 * MIB] * 4, f"fio left files of sizes {sizes}")
    return "fio: 4 jobs of random writes, verified by crc32c"


def git(session: Session) -> str:
    session.run("""
mkdir repository; cp -a tree/json tree/email tree/asyncio repository; cd repository
git init -q; git add .; git commit -q -m 'a tree'
git fsck --strict; cd ..; git clone -q repository clone; cd clone; git status --porcelain
""")
    files = 0
    for name in ("json", "email", "asyncio"):
        for path in walk(session.original / name):
            mine, cloned = session.original / name / path, session.host / "clone" / name / path
            if is_regular(mine):
                require(filecmp.cmp(mine, cloned, shallow=False), f"{cloned} differs")
                files += 1
    return f"{files} files committed, checked and cloned"


def compiler(session: Session) -> str:
    (session.host / "sum.c").write_text("""
#include <stdio.h>
int main(void)
{
	unsigned long sum = 0;
	for (unsigned long n = 1; n <= 1000; n++)
		sum += n * n;
	return printf("%lu\\n", sum) < 0;
}
""")
    seen = session.run("cc -o sum sum.c; ./sum").strip()
    require(seen == "333833500", f"the program prints {seen!r}")
    require((session.host / "sum").read_bytes()[:4] == b"\x7fELF", "the host sees no program")
    return "a C program compiled and run"


def queues(session: Session) -> str:
    """Read without a cache on each CPU in turn, and see which queue's interrupt count rises."""
    served: set[str] = set()
    for cpu in range(session.cpus):
        before = interrupts(session)
        session.run(f"taskset -c {cpu} dd if=synced of=/dev/null bs=64k iflag=direct 2>/dev/null")
        after = interrupts(session)
        busiest = max(after, key=lambda name: after[name] - before[name])
        require(after[busiest] - before[busiest] >= 100, f"CPU {cpu} reads, but no queue is busy")
        served.add(busiest)
    names = sorted(int(name) for name in served)
    require(len(names) == session.queues, f"of {session.queues} request queues only {names} serve")
    return f"CPUs 0-{session.cpus - 1} read through {len(names)} request queue(s)"


def interrupts(session: Session) -> dict[str, int]:
    """Return the number of completion interrupts of each request queue."""
    counts = {}
    for line in session.run("cat /proc/interrupts").splitlines():
        match = re.match(r"\s*\d+:([ \d]+) .*virtio\d+-requests\.(\d+)$", line)
        if match:
            counts[match[2]] = sum(map(int, match[1].split()))
    require(bool(counts), "the guest shows no request queue in /proc/interrupts")
    return counts


def remove(session: Session) -> str:
    files = sum(1 for _ in walk(session.host))
    session.run("rm -rf ./*")
    left = list(session.host.iterdir())
    require(not left, f"still there: {left[:3]}")
    return f"{files} files and folders"


Step = Callable[[Session], str]

STEPS: tuple[tuple[str, Step], ...] = (
    ("tar -x", unpack),
    ("sha256sum", checksum),
    ("cp", copy),
    ("tar -c", pack),
    ("mv", rename),
    ("ln", link),
    ("find", find),
    ("fsync", fsync),
    ("mmap", mapped),
    ("fio", verify),
    ("git", git),
    ("cc", compiler),
    ("queues", queues),
    ("rm", remove),
)


def run_steps(session: Session) -> int:
    """Run the steps, print a line for each, and return how many failed."""
    tick, cross = ("✓", "✗") if "utf" in (sys.stdout.encoding or "").lower() else ("ok", "FAILED")
    failed = 0
    for name, step in STEPS:
        started = time.monotonic()
        error: Exception | None = None
        try:
            seen = step(session)
        except (CheckError, GuestError, OSError, tarfile.TarError) as caught:
            error = caught
            failed += 1
            seen = "\n".join(str(error).splitlines()[-20:])
        seconds = time.monotonic() - started
        print(f"  {cross if error else tick} {name:<10} {seconds:6.1f} s  {seen}", flush=True)
        if isinstance(error, NoAnswerError) or session.machine.process.poll() is not None:
            print("the guest is stuck or gone: the other steps cannot run", flush=True)
            break
    return failed


def prepare(folder: Path, host: Path, minimum: int = 0) -> Path:
    """Make the tree to compare with, put a tar of it into the shared folder, and return the tree.

    The tree has at least `minimum` regular files.
    """
    tree = folder / "tree"
    copy_library(tree)
    copies = 0
    while sum(1 for path in walk(tree) if is_regular(tree / path)) < minimum:
        copies += 1
        copy_library(tree / f"again{copies}")
    with tarfile.open(host / "source.tar", "w", format=tarfile.GNU_FORMAT) as archive:
        archive.add(tree, "tree")
    return tree
