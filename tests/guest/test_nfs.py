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
from dataclasses import dataclass
from pathlib import Path

import pytest
from guest import daemon, machine, packages

pytestmark = [pytest.mark.guest, pytest.mark.timeout(900)]

SUITE = packages.KERNEL_SUITE
TAG = "host"
PATIENCE = 300.0  # seconds; the CPU is emulated, and the machine may be loaded
USER = 1000
ROUNDS = 10
MODULES = ("nfsd", "nfsv3", "nfsv4")
PROGRAMS = ("exportfs", "rpcbind", "rpc.mountd")
MOUNTD_PORT = 20048
VERSIONS = {
    "3": "vers=3,nolock,proto=tcp,port=2049,addr=127.0.0.1,mountproto=tcp,mountvers=3,"
    f"mountaddr=127.0.0.1,mountport={MOUNTD_PORT}",
    "4.2": "vers=4.2,addr=127.0.0.1,clientaddr=127.0.0.1",
}
# /srv is exported by NFS, and mounted on /host/mnt/nfsVERSION. A daemon shares that directory, and
# its share is mounted on /host/mnt/VERSION.
SERVE = """
{insert}
mkdir -p /var/lib/nfs/v4recovery /srv
mount -t nfsd nfsd /proc/fs/nfsd
mount -t tmpfs export /srv
chown {user}:{user} /srv; chmod 755 /srv
touch /var/lib/nfs/etab /var/lib/nfs/rmtab
echo '/srv 127.0.0.1(rw,root_squash,insecure,fsid=1,no_subtree_check)' >/etc/exports
cp /host{programs}/* /host{root}/etc/netconfig /host{root}/etc/services /etc
cp /host{root}/etc/protocols /host{root}/etc/rpc /etc
ip link set lo up
mkdir -p /run/rpcbind
echo '_rpc:x:107:65534::/run/rpcbind:/bin/false' >>/etc/passwd
/etc/rpcbind -f >/tmp/rpcbind.log 2>&1 &
until grep -q :006F /proc/net/tcp; do kill -0 $! || cat /tmp/rpcbind.log; sleep 0.2; done
/etc/exportfs -a
/etc/rpc.mountd --foreground --port {port} >/tmp/mountd.log 2>&1 &
echo tcp 2049 >/proc/fs/nfsd/portlist
echo 4 >/proc/fs/nfsd/threads
echo Y >/proc/fs/nfsd/v4_end_grace
for name in run mnt; do mount -t tmpfs $name /host/$name; done
for name in proc sys dev; do mount --rbind /$name /host/$name; done
"""
SHARE = """
cd /host/mnt
mkdir nfs{version} {version}
for attempt in 1 2 3 4 5 6 7 8 9; do  # the server's programs may need a moment
  mount -i -t nfs{kind} -o {options} 127.0.0.1:/srv nfs{version} && break
  sleep 1
done
grep -q "/nfs{version} nfs{kind} .*vers={version}" /proc/mounts
log=/tmp/daemon{version}.log
arguments="--shared-dir=/mnt/nfs{version} --socket-path=/run/{version}"
TMPDIR=/run chroot /host {bin}/virtiofsd $arguments >$log 2>&1 &
until grep -q pool: $log; do kill -0 $! || cat $log; sleep 0.2; done
log=/tmp/mount{version}.log
chroot /host {bin}/vfsd mount /run/{version} /mnt/{version} --queues 2 >$log 2>&1 &
until grep -q ^mounted $log; do kill -0 $!; sleep 0.2; done
"""
AS_USER = f"setpriv --reuid={USER} --regid={USER} --clear-groups"
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
LIST = """
import ctypes, os, random
libc = ctypes.CDLL(None)
libc.fdopendir.restype = libc.readdir.restype = ctypes.c_void_p
libc.telldir.restype = ctypes.c_long
libc.readdir.argtypes = libc.telldir.argtypes = libc.closedir.argtypes = [ctypes.c_void_p]
libc.seekdir.argtypes = [ctypes.c_void_p, ctypes.c_long]
wanted = [f"name {number}" for number in range(500)]
os.mkdir("many")
for name in wanted:
    open("many/" + name, "w").close()
stream = libc.fdopendir(os.open("many", os.O_RDONLY))
NAME = 19  # its offset in struct dirent

def read(cpu):
    os.sched_setaffinity(0, {cpu})
    entry = libc.readdir(stream)
    return entry and ctypes.string_at(entry + NAME).decode()

found, places = [], []
while name := read(len(found) % 2):
    found.append(name)
    places.append(libc.telldir(stream))
print(sorted(set(wanted) ^ set(found) - {".", ".."}))
wrong = []
for turn in range(50):
    at = random.randrange(len(found) - 1)
    libc.seekdir(stream, places[at])
    if (name := read(turn % 2)) != found[at + 1]:
        wrong.append((at, name))
print(wrong)
libc.closedir(stream)
for name in wanted:
    os.unlink("many/" + name)
os.rmdir("many")
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


def write_programs(root: Path, folder: Path) -> None:
    """Write scripts into the folder that run the programs of the NFS server from `root`, the folder
    where they were unpacked."""
    linker, option, libraries = packages.linker_argv(root)
    below = ":".join(f"/host{path}" for path in libraries.split(":"))
    for name in PROGRAMS:
        script = folder / name
        program = f"/host{root}/usr/sbin/{name}"
        script.write_text(f'#!/bin/sh\nexec /host{linker} {option} {below} {program} "$@"\n')
        script.chmod(0o755)


@pytest.fixture(scope="module")
def server() -> Iterator[machine.Machine]:
    """A guest that exports /srv."""
    root = packages.unpacked_root(SUITE, ["nfs-kernel-server"])
    with tempfile.TemporaryDirectory(prefix="vfsd-nfs-") as name:
        folder = Path(name)
        modules = unpack_modules(folder)
        programs = folder / "programs"
        programs.mkdir()
        write_programs(root, programs)
        argv = [*daemon.command(""), "--readonly"]
        with (
            daemon.serve(argv, Path("/"), folder) as host,
            machine.boot([machine.Share(host.socket, TAG, 2)], machine.Hardware(cpus=2)) as booted,
        ):
            booted.mount(TAG, "/host")
            script = SERVE.format(
                insert="\n".join(f"insmod /host{folder}/{name}" for name in modules),
                programs=programs, root=root, user=USER, port=MOUNTD_PORT,
            )  # fmt: skip
            booted.check(script, PATIENCE)
            yield booted


@dataclass(frozen=True)
class NfsShare:
    """A share on NFS, mounted in the guest."""

    guest: machine.Machine
    mount: str

    def run(self, script: str) -> machine.Result:
        return self.guest.run(f"cd {self.mount}\n{script}", PATIENCE)

    def check(self, script: str) -> str:
        return self.guest.check(f"cd {self.mount}\n{script}", PATIENCE)

    def python(self, script: str) -> list[str]:
        """Run a Python script as the user; returns the lines that it prints."""
        return self.check(f"{AS_USER} python3 - <<'END'\n{script}END").splitlines()


@pytest.fixture(scope="module", params=VERSIONS)
def share(server: machine.Machine, request: pytest.FixtureRequest) -> NfsShare:
    version = request.param
    script = SHARE.format(
        version=version, kind=version.partition(".")[0].replace("3", ""),
        options=VERSIONS[version], bin=daemon.PROJECT / ".venv/bin",
    )  # fmt: skip
    server.check(script, PATIENCE)
    return NfsShare(server, f"/host/mnt/{version}")


def test_a_user_may_do_what_the_server_allows_that_user(share: NfsShare) -> None:
    share.check(f"{AS_USER} bash <<'END'\n{WORK}END")


def test_root_may_not(share: NfsShare) -> None:
    result = share.run("touch roots")
    assert result.status != 0
    assert "Permission denied" in result.output


def test_a_removed_file_leaves_no_other_name(share: NfsShare) -> None:
    assert share.python(REMOVE.format(rounds=ROUNDS)) == ["[]"] * ROUNDS


def test_nor_does_one_with_another_link_or_one_that_is_replaced(share: NfsShare) -> None:
    assert share.python(HARD_LINKS) == ["[]", "content 1", "['a'] new"]


def test_what_is_open_is_kept_until_it_is_closed(share: NfsShare) -> None:
    names, content = share.python(OPEN)
    assert names == "1"
    assert content.startswith("kept ")


def test_a_directory_is_listed_from_any_offset_by_any_queue(share: NfsShare) -> None:
    assert share.python(LIST) == ["[]", "[]"]
