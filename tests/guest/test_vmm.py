# SPDX-License-Identifier: Apache-2.0
"""Events that QEMU can cause while a guest works in a share; docs/vmms.md has the list.

A boot takes seconds, so all tests but the last ones run on the same machine, in the order of this
file.
"""

import lzma
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from guest import daemon, machine, packages
from guest.qmp import QmpError

pytestmark = pytest.mark.guest

TAG = "share"
MIB = 1 << 20
PATIENCE = 60.0  # seconds; the machine may be loaded
PORTS = ("-device", "pcie-root-port,id=port1,chassis=1,slot=1")
GROWING = ("-object", "memory-backend-memfd,id=growing,size=256M,share=on")
VIRTIO_MEM = ("-device", "virtio-mem-pci,id=vmem,memdev=growing,requested-size=0")
HARDWARE = machine.Hardware(
    cpus=2,
    memory_mib=512,
    slots="slots=4,maxmem=4G",
    more=(*PORTS, *GROWING, *VIRTIO_MEM, "-device", "intel-iommu,intremap=off"),
)
# Copies blocks to the share and compares them, past the guest's cache, until /tmp/stop exists.
LOAD = """
rm -f /tmp/stop
(n=0; until [ -e /tmp/stop ]; do
    head -c 1M /dev/urandom >/tmp/block
    cp /tmp/block load || echo FAILED
    dd if=load iflag=direct bs=256k status=none | cmp - /tmp/block || echo FAILED
    rm load; n=$((n + 1))
done; echo rounds: $n) </dev/null >/tmp/load.log 2>&1 &
"""
LOAD_ENDS = """
touch /tmp/stop
for n in $(seq 600); do grep -q rounds /tmp/load.log && break; sleep 0.1; done
cat /tmp/load.log
"""


@dataclass(frozen=True)
class Running:
    """A guest that has mounted the share on /mnt. `folder` is on the host, for other files of
    tests."""

    machine: machine.Machine
    back_end: daemon.Daemon
    shared: Path
    folder: Path

    @contextmanager
    def load(self) -> Iterator[None]:
        """In this context the guest reads and writes the share; it must meet no error."""
        self.machine.check(f"cd /mnt{LOAD}")
        yield
        assert self.machine.check(LOAD_ENDS, PATIENCE).startswith("rounds: ")

    def memory_mib(self) -> int:
        """The memory of the guest's kernel, in MiB."""
        return int(self.machine.check("grep MemTotal /proc/meminfo").split()[1]) // 1024

    def works(self, name: str) -> bool:
        """Can the host read a file that the guest writes?"""
        self.machine.check(f"cd /mnt; echo {name} >{name}; cat {name}")
        return (self.shared / name).read_text() == f"{name}\n"


@pytest.fixture(autouse=True)
def nothing_left_behind() -> None:
    """Override the check of tests/conftest.py: the guest and the back-end outlive the tests, and
    their fixtures end them."""


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.2)


@contextmanager
def running(
    folder: Path, back_end: daemon.Daemon, hardware: machine.Hardware, properties: str = ""
) -> Iterator[Running]:
    """Boot a guest, which mounts the share of a back-end."""
    share = machine.Share(back_end.socket, TAG, hardware.cpus, properties=properties)
    with machine.boot([share], hardware) as booted:
        booted.mount(TAG)
        yield Running(booted, back_end, folder / "share", folder)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="vfsd-vmm-") as name:
        (Path(name) / "share").mkdir()
        yield Path(name)


@pytest.fixture(scope="module")
def back_end(folder: Path) -> Iterator[daemon.Daemon]:
    argv = [*daemon.command(""), "--keep-listening"]
    with daemon.serve(argv, folder / "share", folder) as serving:
        yield serving


@pytest.fixture(scope="module")
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture(scope="module")
def guest(folder: Path, back_end: daemon.Daemon, stack: ExitStack) -> Running:
    return stack.enter_context(running(folder, back_end, HARDWARE))


def test_a_device_is_plugged_and_unplugged(guest: Running) -> None:
    qemu, other = guest.machine, guest.folder / "other"
    (other / "share").mkdir(parents=True)
    with guest.load(), daemon.serve(daemon.command(""), other / "share", other) as plugged:
        address = {"type": "unix", "data": {"path": str(plugged.socket)}}
        backend = {"type": "socket", "data": {"addr": address, "server": False}}
        qemu.control("chardev-add", {"id": "plugged", "backend": backend})
        device = {"driver": "vhost-user-fs-pci", "id": "fs1", "bus": "port1"}
        qemu.control("device_add", {**device, "chardev": "plugged", "tag": "plugged"})
        qemu.check(
            """
            mkdir -p /plugged
            for n in $(seq 100); do mount -t virtiofs plugged /plugged && break; sleep 0.2; done
            echo hello >/plugged/file
            umount /plugged
            """,
            PATIENCE,
        )
        assert (other / "share/file").read_text() == "hello\n"
        qemu.control("device_del", {"id": "fs1"})
        qemu.wait_event("DEVICE_DELETED")
        qemu.control("chardev-remove", {"id": "plugged"})
        assert plugged.process.wait(PATIENCE) == 0


def test_shared_memory_is_plugged(guest: Running) -> None:
    before = guest.memory_mib()
    with guest.load():
        dimm = {"qom-type": "memory-backend-memfd", "id": "m0", "size": 256 * MIB, "share": True}
        guest.machine.control("object-add", dimm)
        guest.machine.control("device_add", {"driver": "pc-dimm", "id": "d0", "memdev": "m0"})
        wait_until(lambda: guest.memory_mib() > before + 200, "the guest has more memory")
        # The page cache and a tmpfs each have a copy, which is more memory than was free before.
        (guest.shared / "large").write_bytes(bytes(range(256)) * (160 * MIB // 256))
        guest.machine.check("cp /mnt/large /tmp/large; cmp /mnt/large /tmp/large", PATIENCE)
        guest.machine.check("rm /tmp/large /mnt/large")


def test_virtio_mem_grows_and_shrinks(guest: Running) -> None:
    before = guest.memory_mib()
    (module,) = packages.kernel().image.parents[1].glob("usr/lib/modules/*/**/virtio_mem.ko.xz")
    with lzma.open(module) as packed, (guest.shared / "virtio_mem.ko").open("wb") as unpacked:
        shutil.copyfileobj(packed, unpacked)

    def request(mib: int) -> None:
        value = {"path": "/machine/peripheral/vmem", "property": "requested-size"}
        guest.machine.control("qom-set", {**value, "value": mib * MIB})

    with guest.load():
        guest.machine.check("insmod /mnt/virtio_mem.ko")
        request(256)
        wait_until(lambda: guest.memory_mib() > before + 200, "the guest has more memory")
        request(0)
        wait_until(lambda: guest.memory_mib() < before + 200, "it gives memory back")


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("migrate", {"uri": "exec:cat >/dev/null"}),
        ("human-monitor-command", {"command-line": "savevm before"}),
    ],
)
def test_a_migration_is_refused_by_qemu(
    guest: Running, command: str, arguments: dict[str, str]
) -> None:
    try:
        said = guest.machine.control(command, arguments)
    except QmpError as error:
        said = str(error)
    assert "VHOST_USER_PROTOCOL_F_LOG_SHMFD" in said
    assert guest.works("after-a-migration")


def test_a_pause_is_not_noticed(guest: Running) -> None:
    with guest.load():
        for _ in range(3):
            guest.machine.control("stop")
            guest.machine.control("cont")


def test_a_reset_under_load(guest: Running) -> None:
    guest.machine.check(f"cd /mnt{LOAD}")
    guest.machine.reboot()
    guest.machine.mount(TAG)
    assert guest.works("after-a-reset")
    assert "the guest has reset the device" in guest.back_end.log()


def test_memory_that_is_not_shared_is_plugged(guest: Running) -> None:
    """Requests whose buffers are in that memory fail, and the share lives. The guest is damaged
    then, so this test is the last one on its machine."""
    before = guest.memory_mib()
    private = {"qom-type": "memory-backend-ram", "id": "m1", "size": 128 * MIB}
    guest.machine.control("object-add", private)
    guest.machine.control("device_add", {"driver": "pc-dimm", "id": "d1", "memdev": "m1"})
    wait_until(lambda: guest.memory_mib() > before + 100, "the guest has more memory")
    guest.machine.run("cd /mnt; for n in $(seq 50); do head -c 1M /dev/zero >$n; rm $n; done")
    wait_until(lambda: guest.machine.run("ls /mnt").status == 0, "the share lives")
    assert guest.back_end.process.poll() is None
    assert "the VMM went away" not in guest.back_end.log()


def test_another_qemu_after_one_that_was_killed(guest: Running, stack: ExitStack) -> None:
    """The same daemon serves the next QEMU, which has another machine type and asks for packed=on,
    a feature that the daemon does not offer."""
    guest.machine.run(f"cd /mnt{LOAD}")
    guest.machine.process.kill()
    stack.close()
    hardware = machine.Hardware(cpus=1, memory_mib=512, machine="pc")
    with running(guest.folder, guest.back_end, hardware, "packed=on") as after, after.load():
        assert after.works("another")


@pytest.fixture
def short_lived(tmp_path: Path) -> Iterator[daemon.Daemon]:
    (tmp_path / "share").mkdir()
    with daemon.serve(daemon.command(""), tmp_path / "share", tmp_path) as serving:
        yield serving


def test_memory_that_is_not_shared_is_refused_at_the_start(short_lived: daemon.Daemon) -> None:
    hardware = machine.Hardware(cpus=1, memory_mib=512, backend="memory-backend-ram")
    with machine.boot([machine.Share(short_lived.socket, TAG)], hardware) as booted:
        wait_until(lambda: "Error starting vhost" in booted.said(), "QEMU prints an error")
        (line,) = [line for line in short_lived.log().splitlines() if "error" in line]
        assert "the VMM shares no memory with virtiofsd; QEMU needs memory-backend-memfd" in line
