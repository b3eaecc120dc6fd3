# SPDX-License-Identifier: Apache-2.0
"""Programs and test suites of other projects, at work in a share.

Each of them is known to succeed in an ordinary directory, so a failure here is a fault of vfsd.
"""

import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.conftest import require
from tests.waiting import HANG

from .conftest import Backend, Share, serve
from .mounted import run

OPTIONS = ("-o", "xattr,flock,posix_lock,posix_acl")

# Modules of CPython's own test suite. The modules of LONG_SUITES take longer.
SUITES = ("test_os", "test_posix", "test_shutil", "test_fcntl", "test_mmap", "test_fileio")
LONG_SUITES = ("test_tarfile", "test_mailbox", "test_largefile")

STRESSORS = (
    "access", "chattr", "chdir", "chmod", "chown", "copy-file", "dentry", "dir", "dirdeep",
    "dirmany", "dup", "fallocate", "fcntl", "fiemap", "file-ioctl", "filename", "flock", "fpunch",
    "fsize", "fstat", "getdent", "handle", "hdd", "inode-flags", "io", "iomix", "lease", "link",
    "locka", "lockf", "lockofd", "mknod", "open", "rename", "symlink", "sync-file", "touch",
    "utime", "xattr",
)  # fmt: skip


@pytest.fixture(scope="module", params=[1, 4], ids=["1-queue", "4-queues"])
def place(request: pytest.FixtureRequest) -> Iterator[Share]:
    with ExitStack() as stack:
        yield serve(Backend("", request.param, OPTIONS), stack)


@pytest.fixture
def folder(place: Share, request: pytest.FixtureRequest) -> Path:
    """A new folder of the share, as the mount shows it."""
    name: str = request.node.name
    path = place.mount / name.split("[", maxsplit=1)[0]
    path.mkdir(exist_ok=True)
    return path


def has_tests() -> bool:
    command = [sys.executable, "-c", "import test.test_os"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_cpythons_own_tests(place: Share, folder: Path) -> None:
    if not has_tests():
        require("the module test of CPython (Debian: libpython3.x-testsuite)")
    modules = SUITES + (LONG_SUITES if place.backend.queues == 4 else ())
    command = [sys.executable, "-m", "test", "-j2", "--tempdir", str(folder), *modules]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=2 * HANG,
        check=False,
        cwd=folder,
        env=os.environ | {"TMPDIR": str(folder), "LC_ALL": "C.UTF-8"},
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


def test_git(folder: Path) -> None:
    library = sysconfig.get_path("stdlib")
    run(
        f"""
export HOME=$PWD GIT_CONFIG_NOSYSTEM=1
git config --global user.name n; git config --global user.email e@x
mkdir work; cp -a {library}/json {library}/email {library}/asyncio work; cd work
git init -q -b main .; git add .; git commit -qm one
test -z "$(git status --porcelain)"
git checkout -qb side; echo more >>json/decoder.py; git commit -qam two
git checkout -q main; git merge -q side; git gc -q; git fsck --strict
cd ..; git clone -q work clone; diff -r -x .git work clone
git -C clone log --oneline | wc -l | grep -qx 2
""",
        folder,
        120,
    )


def test_tar_and_rsync_keep_everything(place: Share, folder: Path) -> None:
    """Hard links, ACLs, extended attributes, holes, times, owners and modes are kept."""
    run(
        """
mkdir -p from/a/b; cd from
echo one >a/one; ln a/one a/b/two; ln -s ../one a/b/three; mkfifo a/pipe
truncate -s 5M a/hole; echo end >>a/hole
chmod 4751 a/one; chown 1000:1001 a/b; touch -d '2001-02-03 04:05:06.789' a/hole
touch -h -d '2002-02-02 02:02:02' a/pipe a/b/three a/one
setfattr -n user.colour -v blue a/one; setfacl -m u:1234:rwx,d:g:4321:r a/b
cd ..
rsync -aHAX --sparse from/ copy/
tar --acls --xattrs --sparse -cf all.tar -C from .; mkdir out
tar --acls --xattrs --same-owner -xpf all.tar -C out
for x in copy out; do
    diff <(cd from; getfacl -R . ; getfattr -R -d . ) <(cd $x; getfacl -R .; getfattr -R -d .)
    diff <(cd from; find . ! -type d -printf '%p %m %n %U %G %s %T@ %l\\n' | sort) \\
         <(cd $x; find . ! -type d -printf '%p %m %n %U %G %s %T@ %l\\n' | sort)
    test "$(stat -c %i $x/a/one)" = "$(stat -c %i $x/a/b/two)"
done
rsync -aHAXn --itemize-changes --delete from/ copy/ | tee changes
test ! -s changes
""",
        folder,
    )
    there = place.host / folder.name / "copy/a"
    assert (there / "one").stat().st_mode & 0o7777 == 0o4751
    assert os.getxattr(there / "one", "user.colour") == b"blue"
    assert (there / "hole").stat().st_blocks * 512 < 1 << 20


def test_dpkg_installs_upgrades_and_removes(folder: Path) -> None:
    run(
        """
for version in 1 2; do
    mkdir -p pkg$version/DEBIAN pkg$version/usr/share/thing pkg$version/etc
    printf 'Package: thing\\nVersion: %s\\nArchitecture: all\\nMaintainer: x <x@x>\\n' $version \\
        >pkg$version/DEBIAN/control
    echo 'Description: a thing' >>pkg$version/DEBIAN/control
    for i in $(seq 200); do echo $version $i >pkg$version/usr/share/thing/$i; done
    echo setting >pkg$version/etc/thing.conf; echo /etc/thing.conf >pkg$version/DEBIAN/conffiles
    dpkg-deb --build --root-owner-group pkg$version thing$version.deb >/dev/null
done
mkdir -p root/var/lib/dpkg/info root/var/lib/dpkg/updates; touch root/var/lib/dpkg/status
dpkg --root=$PWD/root --force-script-chrootless -i thing1.deb
grep -qx '1 200' root/usr/share/thing/200
dpkg --root=$PWD/root --force-script-chrootless -i thing2.deb
grep -qx '2 200' root/usr/share/thing/200
test "$(dpkg --root=$PWD/root -L thing | wc -l)" -gt 200
dpkg --root=$PWD/root --verify thing
dpkg --root=$PWD/root --force-script-chrootless --purge thing
test ! -e root/usr/share/thing; test ! -e root/etc/thing.conf
""",
        folder,
    )


def test_a_c_program_is_built(folder: Path) -> None:
    run(
        """
for i in $(seq 30); do echo "int f$i(void) { return $i; }" >f$i.c; done
{ for i in $(seq 30); do echo "int f$i(void);"; done
  echo '#include <stdio.h>'
  echo 'int main(void) { int sum = 0;'; for i in $(seq 30); do echo "sum += f$i();"; done
  echo 'return printf("%d\\n", sum) < 0; }'; } >main.c
for f in *.c; do echo $f; done | xargs -P4 -n4 gcc -c
ar rcs libf.a f*.o; gcc -o sum main.o -L. -lf
test "$(./sum)" = 465
""",
        folder,
    )


def test_stress_ng_finds_no_fault(place: Share, folder: Path) -> None:
    """Stressors of stress-ng's file-system class run at the same time, each in two processes. Each
    share runs one half of them."""
    program = require("stress-ng")
    half = STRESSORS[::2] if place.backend.queues == 1 else STRESSORS[1::2]
    arguments = [part for name in half for part in (f"--{name}", "2")]
    done = subprocess.run(
        [program, "--temp-path", str(folder), "--verify", "-t", "15s", *arguments],
        capture_output=True,
        text=True,
        timeout=HANG,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert list(folder.iterdir()) == []


def test_fio_verifies_what_it_wrote(folder: Path) -> None:
    """Four jobs with each I/O engine of Debian's fio, with direct and with buffered I/O."""
    for engine, direct in (("psync", 1), ("psync", 0), ("libaio", 1), ("mmap", 0)):
        run(
            f"""
fio --name=v --directory=. --rw=randrw --bs=4k --size=8m --numjobs=4 --iodepth=8 \\
    --ioengine={engine} --direct={direct} --verify=crc32c --verify_fatal=1 --end_fsync=1 \\
    --group_reporting --output=fio.out; rm -f v.*
""",
            folder,
        )
