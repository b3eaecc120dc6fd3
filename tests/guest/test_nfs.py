# SPDX-License-Identifier: Apache-2.0
"""A shared directory on NFS. Linux' NFS server and client run in a guest, with a daemon and
`vfsd mount`.

The guest has the host's file system read-only, and with it this project and its Python. The export
has root_squash and belongs to the one user that works in it.
"""

import lzma
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from guest import daemon, machine, packages

pytestmark = [pytest.mark.guest, pytest.mark.timeout(900)]

SUITE = packages.KERNEL_SUITE
TAG = "host"
PATIENCE = 300.0  # seconds; the CPU is emulated, and the machine may be loaded
USER = 1000
ROUNDS = 10
MODULES = ("nfsd", "nfsv4")
NFS = "vers=4.2,addr=127.0.0.1,clientaddr=127.0.0.1"
# /srv is exported by NFS and mounted on /host/mnt/nfs. The daemon shares /host/mnt/nfs, and its
# share is mounted on /host/mnt/fuse.
SERVE_AND_MOUNT = """
{insert}
mkdir -p /var/lib/nfs/v4recovery /srv
mount -t nfsd nfsd /proc/fs/nfsd
mount -t tmpfs export /srv
chown {user}:{user} /srv; chmod 755 /srv
touch /var/lib/nfs/etab /var/lib/nfs/rmtab
echo '/srv 127.0.0.1(rw,root_squash,insecure,fsid=1,no_subtree_check)' >/etc/exports
{run}/exportfs -a
{run}/rpc.mountd --foreground --no-nfs-version 3 >/tmp/mountd.log 2>&1 &
echo -3 >/proc/fs/nfsd/versions
echo tcp 2049 >/proc/fs/nfsd/portlist
echo 4 >/proc/fs/nfsd/threads
echo Y >/proc/fs/nfsd/v4_end_grace
for name in tmp run mnt; do mount -t tmpfs $name /host/$name; done
for name in proc sys dev; do mount --rbind /$name /host/$name; done
mkdir /host/mnt/nfs /host/mnt/fuse
mount -i -t nfs4 -o {options} 127.0.0.1:/srv /host/mnt/nfs
"""
SHARE = """
chroot /host {bin}/virtiofsd --shared-dir=/mnt/nfs --socket-path=/run/s >/tmp/daemon.log 2>&1 &
until grep -q pool: /tmp/daemon.log; do sleep 0.2; done
chroot /host {bin}/vfsd mount /run/s /mnt/fuse --queues 2 >/tmp/mount.log 2>&1 &
until grep -q ^mounted /tmp/mount.log; do kill -0 $!; sleep 0.2; done
"""
AS_USER = f"cd /host/mnt/fuse; setpriv --reuid={USER} --regid={USER} --clear-groups"
WORK = """
set -ex
echo one >a; echo two >>a; touch a; chmod 600 a; truncate -s 5 a; cat a | grep -q one
mv a b; ln b c; ln -s b link; readlink link; mkdir d; chmod 700 d; echo x >d/f; ls -l d
stat d/f; rm -r b c link d
test -z "$(ls)"
"""
REMOVE = """
import os
for name in map(str, range({rounds})):
    os.mkdir(name)
    for file in "123":
        with open(name + "/" + file, "w") as out:
            out.write(file)
        open(name + "/" + file).read()
    for file in "123":
        os.unlink(name + "/" + file)
    print(os.listdir("/srv/" + name))
    os.rmdir(name)
"""
HARD_LINKS = """
import os
os.mkdir("d")
with open("a", "w") as out:
    out.write("content")
os.link("a", "d/b")
os.stat("d/b")
os.unlink("d/b")
print(os.listdir("/srv/d"))
os.rmdir("d")
print(open("a").read(), os.stat("a").st_nlink)
with open("c", "w") as out:
    out.write("new")
path = os.open("a", os.O_PATH)
os.rename("c", "a")
print(os.listdir("/srv"), open("a").read())
os.unlink("a")
"""
OPEN = """
import os
os.mkdir("e")
with open("e/f", "w+") as file:
    file.write("kept")
    file.flush()
    os.unlink("e/f")
    print(len(os.listdir("/srv/e")))
    file.seek(0)
    print(file.read(), os.fstat(file.fileno()).st_nlink)
os.rmdir("e")
"""


@pytest.fixture(autouse=True)
def nothing_left_behind() -> None:
    """Override the check of tests/conftest.py: the fixture `guest` ends guest and back-end."""


def unpack_modules(folder: Path) -> list[str]:
    """Unpack MODULES and the modules that they need into the folder; returns the names of the files
    in the order in which to insert them."""
    root = packages.kernel(SUITE).image.parents[1]
    packed = {
        path.name.removesuffix(".ko.xz"): path for path in root.glob("usr/lib/modules/*/**/*.ko.xz")
    }
    order: list[str] = []

    def unpack(name: str) -> None:
        if name not in packed or f"{name}.ko" in order:
            return  # built into the kernel, or unpacked already
        data = lzma.decompress(packed[name].read_bytes())
        needed = re.search(rb"\0depends=([^\0]*)", data)
        for other in needed[1].decode().split(",") if needed else ():
            unpack(other)
        (folder / f"{name}.ko").write_bytes(data)
        order.append(f"{name}.ko")

    for name in MODULES:
        unpack(name)
    return order


def nfs_programs(folder: Path) -> Path:
    """Write scripts into the folder that run the programs of the NFS server from the folder where
    they were unpacked."""
    root = packages.unpacked_root(SUITE, ["nfs-kernel-server"])
    linker, option, libraries = packages.linker_argv(root)
    below = ":".join(f"/host{path}" for path in libraries.split(":"))
    for name in ("exportfs", "rpc.mountd"):
        script = folder / name
        program = f"/host{root}/usr/sbin/{name}"
        script.write_text(f'#!/bin/sh\nexec /host{linker} {option} {below} {program} "$@"\n')
        script.chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def guest() -> Iterator[machine.Machine]:
    """A guest in which a share on NFS is mounted on /host/mnt/fuse."""
    with tempfile.TemporaryDirectory(prefix="vfsd-nfs-") as name:
        folder = Path(name)
        modules = unpack_modules(folder)
        programs = nfs_programs(folder)
        argv = [*daemon.command(""), "--readonly"]
        with (
            daemon.serve(argv, Path("/"), folder) as host,
            machine.boot([machine.Share(host.socket, TAG, 2)], machine.Hardware(cpus=2)) as booted,
        ):
            booted.mount(TAG, "/host")
            script = SERVE_AND_MOUNT.format(
                insert="\n".join(f"insmod /host{folder}/{name}" for name in modules),
                run="/tmp", user=USER, options=NFS,
            )  # fmt: skip
            booted.check(f"cp /host{programs}/exportfs /host{programs}/rpc.mountd /tmp\n{script}")
            booted.check(SHARE.format(bin=daemon.PROJECT / ".venv/bin"), PATIENCE)
            yield booted


def python(guest: machine.Machine, script: str) -> list[str]:
    """Run a Python script as the user in the mount; returns the lines that it prints."""
    return guest.check(f"{AS_USER} python3 - <<'END'\n{script}END", PATIENCE).splitlines()


def test_a_user_may_do_what_the_server_allows_that_user(guest: machine.Machine) -> None:
    guest.check(f"{AS_USER} bash <<'END'\n{WORK}END", PATIENCE)


def test_root_may_not(guest: machine.Machine) -> None:
    result = guest.run("cd /host/mnt/fuse; touch roots", PATIENCE)
    assert result.status != 0
    assert "Permission denied" in result.output


def test_a_removed_file_leaves_no_other_name(guest: machine.Machine) -> None:
    assert python(guest, REMOVE.format(rounds=ROUNDS)) == ["[]"] * ROUNDS


def test_nor_does_one_with_another_link_or_one_that_is_replaced(guest: machine.Machine) -> None:
    assert python(guest, HARD_LINKS) == ["[]", "content 1", "['a'] new"]


def test_what_is_open_is_kept_until_it_is_closed(guest: machine.Machine) -> None:
    names, content = python(guest, OPEN)
    assert names == "1"
    assert content.startswith("kept ")
