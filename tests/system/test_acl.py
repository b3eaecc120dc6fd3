# SPDX-License-Identifier: Apache-2.0
"""POSIX ACLs end to end: the same commands have the same results in a mount of the share and in a
bare directory."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.waiting import HANG

VFSD = Path(sys.executable).parent / "vfsd"

# Creates a file without a name (O_TMPFILE), then links it.
TMPFILE = (
    "import os; fd = os.open('.', os.O_TMPFILE | os.O_RDWR, 0o666);"
    "os.link(f'/proc/self/fd/{fd}', 'tmpfile', src_dir_fd=fd)"
)
AS_USER = "setpriv --reuid=1000 --regid=1000 --groups=3000"
CREATE = f'touch file; mkdir dir; mknod node p; ln -s file link; {sys.executable} -c "{TMPFILE}"'
DEFAULT = "setfacl -d -m u::rwx,g::rx,o::x,u:1001:rw,m::rwx ."

SCRIPTS = {
    "set-and-get": "touch f; chmod 640 f; setfacl -m u:1001:rwx,g:3000:r f; setfacl -m m::rx f",
    "chmod-sets-the-mask": "touch f; setfacl -m u:1001:rwx f; chmod 604 f; stat -c %a f",
    "remove": "touch f; setfacl -m u:1001:rw f; setfacl -b f; mkdir d; setfacl -d -m u:1:r d;"
    " setfacl -k d",
    **{f"umask-{umask}": f"umask {umask}; {CREATE}" for umask in ("000", "022", "077")},
    **{
        f"default-acl-and-umask-{umask}": f"{DEFAULT}; umask {umask}; {CREATE}; mkdir -p dir/deeper"
        for umask in ("000", "022", "077")
    },
    "default-acl-of-a-user": f"chmod 777 .; {DEFAULT}; umask 027; {AS_USER} touch f;"
    f" {AS_USER} mkdir d; {AS_USER} mkfifo p; {AS_USER} ln -s f l",
    "default-acl-and-sgid": f"chgrp 3000 .; chmod 2775 .; {DEFAULT}; umask 022; {CREATE}",
    "named-user-may-create": f"chmod 700 .; setfacl -m u:1000:rwx .; {AS_USER} touch f",
    "named-group-may-create": f"chmod 700 .; setfacl -m g:3000:rwx .; {AS_USER} touch f;"
    f" {AS_USER} mkdir d; {AS_USER} ln -s x l; {AS_USER} mkfifo p",
    "named-group-may-not": f"chmod 700 .; setfacl -m g:3000:rx .; {AS_USER} touch f || echo no",
    "named-user-reads": f"echo x > f; chmod 600 f; setfacl -m u:1000:r f; {AS_USER} cat f;"
    f" {AS_USER} sh -c 'echo y > f' || echo no; setfacl -m u:1000:- f; {AS_USER} cat f || echo no",
    "sgid-goes-with-an-acl-of-a-stranger": "touch f; mkdir d; chown 1000:2000 f d;"
    f" chmod 2770 f d; {AS_USER} setfacl -m u:1001:r f d; stat -c %a f d",
    "sgid-stays-for-a-member": "touch f; mkdir d; chown 1000:3000 f d;"
    f" chmod 2770 f d; {AS_USER} setfacl -m u:1001:r f d; stat -c %a f d",
    "sgid-stays-for-root": "touch f; chown 1000:2000 f; chmod 2770 f; setfacl -m u:1001:r f",
    "sgid-stays-with-a-default-acl": "mkdir d; chown 1000:2000 d; chmod 2770 d;"
    f" {AS_USER} setfacl -d -m u:1001:r d; stat -c %a d",
    "not-the-owner": f"touch f; {AS_USER} setfacl -m u:1000:rw f || echo no",
    "copied": "touch f; setfacl -m u:1001:rwx f; cp -a f g; getfacl -cn g",
}


def run(script: str, folder: Path) -> str:
    """The output of a script, followed by the modes, owners and ACLs of the directory after it."""
    folder.mkdir()
    folder.chmod(0o755)
    report = "find . -printf '%P %y %m %U %G\\n' | sort; getfacl -Rnp . 2>&1"
    said = ""
    for text in (script, report):
        done = subprocess.run(
            ["sh", "-c", f"umask 022; set -e; {text}"],
            cwd=folder, stdout=subprocess.PIPE, text=True, timeout=HANG, check=False,
        )  # fmt: skip
        said += f"{done.returncode}: {done.stdout}"
    return said


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    share, target = folder / "share", folder / "mnt"
    share.mkdir()
    target.mkdir()
    process = subprocess.Popen(
        [VFSD, "mount", "--source", share, target, "--queues=2", "--", "-o", options]
    )
    try:
        deadline = time.monotonic() + HANG
        while not os.path.ismount(target):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield target
    finally:
        process.terminate()
        process.wait(HANG)


@pytest.fixture(scope="module")
def mount(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("acl")
    for path in (folder, folder.parent, folder.parent.parent):
        path.chmod(0o755)  # scripts run as other users as well, and need to reach the folder
    with mounted(folder, "xattr,posix_acl") as target:
        yield target


@pytest.mark.parametrize("name", sorted(SCRIPTS))
def test_the_mount_does_what_a_bare_directory_does(mount: Path, name: str) -> None:
    bare = run(SCRIPTS[name], mount.parent / name)
    assert bare.startswith("0: "), bare
    assert run(SCRIPTS[name], mount / name) == bare
    # The shared directory on the host has the same ACLs.
    report = subprocess.run(["getfacl", "-Rnp", "."], cwd=mount.parent / "share" / name,
                            capture_output=True, text=True, check=True)  # fmt: skip
    assert report.stdout in bare


def test_without_the_option_acls_are_not_there(tmp_path: Path) -> None:
    with mounted(tmp_path, "xattr") as target:
        path = tmp_path / "share/f"
        path.touch()
        subprocess.run(["setfacl", "-m", "u:1001:rw", path], check=True)
        assert os.listxattr(target / "f") == []
        done = subprocess.run(["setfacl", "-m", "u:1002:rw", target / "f"], capture_output=True,
                              text=True, check=False)  # fmt: skip
        assert done.returncode == 1
        assert "not supported" in done.stderr
