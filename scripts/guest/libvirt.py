# SPDX-License-Identifier: Apache-2.0
"""libvirtd of Debian, in namespaces of its own, with a domain that has one share.

The files of libvirtd below /etc, /run and /var are in memory and end with it. Its processes, which
include domains and daemons, are in a pid namespace that also ends with it.
"""

import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from . import initramfs, machine, packages

START_SECONDS: Final = 120.0  # takes 5 on a quiet machine: libvirtd asks QEMU for its features
DOMAIN: Final = "vfsd-test"
TAG: Final = "share"
# The user that QEMU would run as must exist; the package that creates it is not needed otherwise.
USER: Final = "libvirt-qemu"
PREPARE: Final = r"""
mount --make-rprivate /
for folder in /etc/libvirt /var/lib/libvirt /var/log/libvirt /var/cache/libvirt /run; do
    mkdir -p $folder
    mount -t tmpfs tmpfs $folder
done
for name in passwd group; do
    mount --bind "$1/$name" /etc/$name
done
cp "$1/qemu.conf" /etc/libvirt/
# The shell stays as the first process of its namespace, to reap processes whose parent has ended.
libvirtd -f "$1/libvirtd.conf" &
wait $!
"""
QEMU_CONF: Final = """
user = "root"
group = "root"
security_driver = "none"
cgroup_controllers = []
namespaces = []
stdio_handler = "file"
remember_owner = 0
"""
LIBVIRTD_CONF: Final = """
unix_sock_dir = "{folder}"
auth_unix_rw = "none"
log_outputs = "3:stderr"
"""
DOMAIN_XML: Final = """
<domain type='qemu'>
  <name>{name}</name>
  <memory unit='MiB'>768</memory>
  <memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>{kernel}</kernel>
    <initrd>{initrd}</initrd>
    <cmdline>{options}</cmdline>
  </os>
  <features><acpi/><apic/></features>
  <cpu mode='maximum'><feature policy='disable' name='la57'/></cpu>
  <devices>
    <emulator>{emulator}</emulator>
    {filesystem}
    <serial type='file'><source path='{folder}/console'/></serial>
    <channel type='unix'>
      <source mode='bind' path='{folder}/scripts'/>
      <target type='virtio' name='vfsd.scripts'/>
    </channel>
    <memballoon model='none'/>
  </devices>
</domain>
"""


class Domain(machine.Machine):
    """A guest that libvirtd runs; it takes scripts like any other machine."""

    def __init__(self, libvirtd: "subprocess.Popen[bytes]", folder: Path) -> None:
        self.accel = "tcg"
        self.boot_seconds = 0.0
        self.process = libvirtd
        self.console_path = folder / "console"
        self._folder = folder
        self._received = bytearray()
        self._scripts = socket.socket(socket.AF_UNIX)

    def virsh(self, *arguments: str) -> str:
        """Run a command of virsh, which must succeed, and return its output."""
        uri = f"qemu:///system?socket={self._folder}/libvirt-sock"
        done = subprocess.run(
            ["virsh", "-q", "-c", uri, *arguments], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"virsh {arguments[0]}: {done.stderr}{self.log()}"
        return done.stdout.strip()

    def log(self) -> str:
        return (self._folder / "libvirtd.log").read_text(errors="replace")

    def wait_listening(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not (self._folder / "libvirt-sock").exists():
            assert self.process.poll() is None, self.log()
            assert time.monotonic() < deadline, f"libvirtd does not listen: {self.log()}"
            time.sleep(0.05)

    def start(self) -> None:
        """Start the domain and wait until its guest takes scripts."""
        self.virsh("create", str(self._folder / "domain.xml"))
        self._scripts.connect(str(self._folder / "scripts"))
        self.wait_ready(START_SECONDS)

    def close(self) -> None:
        self._scripts.close()


def own_daemon(binary: str, source: Path) -> str:
    """The element for a share whose daemon libvirtd starts."""
    return (
        "<filesystem type='mount' accessmode='passthrough'><driver type='virtiofs' queue='1024'/>"
        f"<binary path='{binary}' xattr='on'><cache mode='always'/>"
        "<sandbox mode='namespace'/></binary>"
        f"<source dir='{source}'/><target dir='{TAG}'/></filesystem>"
    )


def external_daemon(path: Path) -> str:
    """The element for a share whose daemon listens already."""
    return (
        "<filesystem type='mount'><driver type='virtiofs' queue='1024'/>"
        f"<source socket='{path}'/><target dir='{TAG}'/></filesystem>"
    )


@contextmanager
def host(filesystem: str) -> Iterator[Domain]:
    """libvirtd with a domain that is not started yet; both are ended with the block."""
    with tempfile.TemporaryDirectory(prefix="vfsd-libvirt-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        _write_configuration(folder, filesystem)
        with (folder / "libvirtd.log").open("wb") as log:
            libvirtd = subprocess.Popen(
                ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc",
                 "sh", "-ec", PREPARE, "sh", str(folder)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        domain = Domain(libvirtd, folder)
        try:
            domain.wait_listening()
            yield domain
        finally:
            domain.close()
            libvirtd.terminate()
            with suppress(subprocess.TimeoutExpired):
                libvirtd.wait(10.0)
            libvirtd.kill()
            libvirtd.wait()


def _write_configuration(folder: Path, filesystem: str) -> None:
    (folder / "qemu.conf").write_text(QEMU_CONF)
    (folder / "libvirtd.conf").write_text(LIBVIRTD_CONF.format(folder=folder))
    entries = {"passwd": f"{USER}:x:64055:64055::/nonexistent:/usr/sbin/nologin\n",
               "group": f"{USER}:x:64055:\n"}  # fmt: skip
    for name, entry in entries.items():
        (folder / name).write_text(Path(f"/etc/{name}").read_text() + entry)
    emulator = shutil.which("qemu-system-x86_64")
    xml = DOMAIN_XML.format(
        name=DOMAIN,
        kernel=packages.kernel().image,
        initrd=initramfs.initramfs(),
        options=machine.KERNEL_OPTIONS,
        emulator=emulator,
        filesystem=filesystem,
        folder=folder,
    )
    (folder / "domain.xml").write_text(xml)
