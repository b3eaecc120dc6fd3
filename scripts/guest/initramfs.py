# SPDX-License-Identifier: Apache-2.0
"""The guest's root file system: an uncompressed cpio archive of Debian programs and one init.

It is uncompressed because an emulated CPU would take longer to unpack it than the host takes to
copy it. Only programs that a test or a visitor can use are packed, with the libraries they load.
"""

import hashlib
import re
import stat
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path, PurePath
from typing import BinaryIO

from . import packages

PACKAGES = (
    "busybox-static",
    "acl",
    "attr",
    "bash",
    "coreutils",
    "diffutils",
    "findutils",
    "fio",
    "git",
    "libc6-dev",
    "python3-minimal",
    "tar",
    "tcc",
    "util-linux",
)

# Real programs where busybox has only an imitation (which busybox' own shell would prefer).
COMMANDS = """
    bash cat chacl chgrp chmod chown cmp cp cut date dd df diff du env fallocate find fio flock
    getfacl getfattr git head id install link ln ls mkdir mkfifo mknod mktemp mv nproc od readlink
    realpath rm rmdir seq setfacl setfattr setpriv sha256sum shuf sleep sort split stat sync tail
    tar taskset tcc tee test timeout touch tr true truncate uniq unlink wc xargs yes
"""
# Globs below the unpacked packages. The libraries that the programs are linked with are added.
PROGRAMS = (
    "usr/bin/busybox",
    "usr/bin/python3.[0-9]*",
    "usr/lib/python3.[0-9]*/lib-dynload/_ctypes.*.so",
    *(f"usr/bin/{name}" for name in COMMANDS.split()),
)
FILES = (
    f"usr/lib64/{packages.LINKER}",
    f"usr/lib/x86_64-linux-gnu/{packages.LINKER}",
    "usr/bin/python3",
    "usr/bin/git-receive-pack",
    "usr/bin/git-upload-pack",
    "usr/share/git-core/templates/**/*",
    "usr/lib/python3.[0-9]*/**/*",
    # files that a C compiler needs besides itself
    "usr/lib/x86_64-linux-gnu/tcc/**/*",
    "usr/lib/x86_64-linux-gnu/*crt*.o",
    "usr/lib/x86_64-linux-gnu/libc.so",
    "usr/lib/x86_64-linux-gnu/libc_nonshared.a",
    "usr/include/*.h",
    "usr/include/asm-generic/*.h",
    "usr/include/linux/**/*.h",
    "usr/include/x86_64-linux-gnu/**/*.h",
)
ETC = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:user:/tmp:/bin/sh\n",
    "etc/group": "root:x:0:\nuser:x:1000:\nshared:x:2000:user\n",
    "etc/gitconfig": (
        "[user]\n\tname = guest\n\temail = guest@example.org\n[safe]\n\tdirectory = *\n"
    ),
}

# Two ways in: the console (a shell for a person), and a virtio-serial port that takes scripts. Each
# line on the port is a command: a marker and a script in base64. The answer is the script's output,
# followed by a line with the marker and the exit status. At each boot the guest first writes
# `ready`.
INIT = r"""#!/usr/bin/busybox sh
set -e
/usr/bin/busybox --install -s /usr/sbin
export PATH=/usr/bin:/usr/sbin HOME=/root
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm /run /tmp /mnt /root
mount -t devpts devpts /dev/pts
mount -t tmpfs tmp /tmp
mount -t tmpfs shm /dev/shm
ln -s /proc/self/fd /dev/fd
hostname guest
ip link set lo up
set +e

option() { sed -n "s/.*\b$1=\([^ ]*\).*/\1/p" /proc/cmdline; }

serve_scripts() {
    exec 3<>"$1"
    echo "ready $(uname -r)" >&3
    while read -r marker script <&3; do
        echo "$script" | base64 -d >/run/script
        (cd /mnt && exec bash /run/script) </dev/null >&3 2>&1 3>&-
        printf '\n%s %d\n' "$marker" $? >&3
    done
}

for name in /sys/class/virtio-ports/*/name; do
    [ "$(cat "$name" 2>/dev/null)" = vfsd.scripts ] || continue
    port=${name%/name}
    serve_scripts "/dev/${port##*/}" &
done

if [ -n "$(option vfsd.shell)" ]; then
    stty rows "$(option vfsd.rows)" cols "$(option vfsd.columns)" </dev/console
    mount -t virtiofs "$(option vfsd.shell)" /mnt && cd /mnt
    TERM=$(option vfsd.term) PS1='guest:\w# ' setsid cttyhack bash --norc
    cd / && umount /mnt
    poweroff -f
fi
while :; do sleep 1000; done
"""


def _libraries(root: Path, binaries: Iterable[Path]) -> set[Path]:
    """Return the shared libraries that the binaries load, with their symlinks resolved by name."""
    found: set[Path] = set()
    linker = packages.linker_argv(root)
    for binary in binaries:
        done = subprocess.run(
            [*linker, "--list", str(binary)], capture_output=True, text=True, check=False
        )
        # The linker fails for a static program, which has no libraries.
        found.update(
            Path(path) for path in re.findall(rf"({re.escape(str(root))}\S+)", done.stdout)
        )
    return {path for path in found if path.suffix != ".py"}


def _matches(root: Path, globs: Sequence[str]) -> list[Path]:
    found = []
    for pattern in globs:
        some = sorted(root.glob(pattern))
        if not some:
            raise packages.FetchError(
                f"{root} holds no {pattern}: remove that folder to fetch it again"
            )
        found += [path for path in some if not path.is_dir()]
    return found


class Archive:
    """A cpio archive in the `newc` format (Linux Documentation/driver-api/early-userspace)."""

    def __init__(self, out: BinaryIO) -> None:
        self.out = out
        self.count = 0
        self.folders = {"."}

    def _entry(self, name: str, mode: int, data: bytes, device: tuple[int, int] = (0, 0)) -> None:
        self.count += 1
        fields = (self.count, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(name) + 1, 0)
        header = b"070701" + b"".join(b"%08x" % field for field in fields) + name.encode() + b"\0"
        self.out.write(header + bytes(-len(header) % 4) + data + bytes(-len(data) % 4))

    def folder(self, name: str) -> None:
        """Add a folder and its parents, each of them once."""
        for path in (*reversed(PurePath(name).parents), PurePath(name)):
            if str(path) not in self.folders:
                self.folders.add(str(path))
                self._entry(str(path), stat.S_IFDIR | 0o755, b"")

    def add(
        self, name: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)
    ) -> None:
        """Add a file of the type and permissions in `mode`; a symlink's data is its target."""
        self.folder(str(PurePath(name).parent))
        self._entry(name, mode, data, device)

    def file(self, name: str, data: bytes, permissions: int = 0o644) -> None:
        """Add a regular file."""
        self.add(name, stat.S_IFREG | permissions, data)

    def symlink(self, name: str, target: str) -> None:
        """Add a symbolic link."""
        self.add(name, stat.S_IFLNK | 0o777, target.encode())

    def close(self) -> None:
        """Write the end mark."""
        self._entry("TRAILER!!!", 0, b"")


def _contents(root: Path) -> Iterator[tuple[str, Path]]:
    """Yield the name in the guest and the file for everything that comes from packages."""
    programs = _matches(root, PROGRAMS)
    chosen = {*programs, *_matches(root, FILES), *_libraries(root, programs)}
    for path in sorted(chosen):
        yield str(path.relative_to(root)), path


def _write(root: Path, out: BinaryIO) -> None:
    archive = Archive(out)
    for name in ("dev", "proc", "sys", "tmp", "mnt", "root", "run", "usr/sbin", "usr/lib64"):
        archive.folder(name)
    for name in ("bin", "sbin", "lib", "lib64"):
        archive.symlink(name, f"usr/{name}")
    archive.add("dev/console", stat.S_IFCHR | 0o600, device=(5, 1))
    archive.file("init", INIT.encode(), 0o755)
    archive.symlink("usr/bin/sh", "bash")
    archive.symlink("usr/bin/cc", "tcc")
    for name, text in ETC.items():
        archive.file(name, text.encode())
    for name, path in _contents(root):
        if path.is_symlink() and not name.startswith("usr/lib/x86_64-linux-gnu/lib"):
            archive.symlink(name, str(path.readlink()))
        else:
            # Libraries are stored under the names by which they are loaded.
            archive.file(name, path.read_bytes(), stat.S_IMODE(path.stat().st_mode))
    archive.close()


@cache
def initramfs() -> Path:
    """Return the guest's root file system, made at the first call and again after each change
    here."""
    root = packages.unpacked_root(packages.USERLAND_SUITE, PACKAGES)
    recipe = Path(__file__).read_bytes() + root.name.encode()
    key = hashlib.sha256(recipe).hexdigest()[:12]
    path = packages.cache_folder() / f"initramfs-{key}.cpio"
    with packages.locked(packages.cache_folder() / "initramfs.lock"):
        if not path.exists():
            for old in path.parent.glob("initramfs-*.cpio"):
                old.unlink()
            new = path.with_suffix(".new")
            with new.open("wb") as out:
                _write(root, out)
            new.rename(path)
    return path
