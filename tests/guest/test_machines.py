# SPDX-License-Identifier: Apache-2.0
"""A share in QEMU's machine types, with its kinds of memory and of IOMMUs. docs/vmms.md has the
list."""

import lzma
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from guest import daemon, machine, packages

from tests.conftest import require

pytestmark = [pytest.mark.guest, pytest.mark.timeout(300)]

TAG = "share"
PATIENCE = 60.0  # seconds; the machine may be loaded
PAGES = Path("/proc/sys/vm/nr_hugepages")
MIB = 512
PAGE_MIB = 2
# An emulated microvm has no clock by which Linux could measure the frequency of the CPU, so the
# command line states the frequency.
MICROVM = machine.Hardware(
    cpus=1,
    memory_mib=MIB,
    machine="microvm,pcie=on,pit=on,pic=on",
    append="tsc_early_khz=1000000",
)
HUGE = "memory-backend-memfd,share=on,hugetlb=on,hugetlbsize=2M"
WORK = """
cd /{tag}; head -c 4M /dev/urandom >/tmp/data; cp /tmp/data data; cmp data /tmp/data
dd if=data iflag=direct bs=1M status=none | cmp - /tmp/data
mkdir dir; mv data dir; ls dir
"""


@pytest.fixture(autouse=True)
def nothing_left_behind() -> None:
    """Override the check of tests/conftest.py: each test ends its guest and its back-end."""


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def serve(stack: ExitStack, folder: Path) -> machine.Share:
    (folder / "share").mkdir(parents=True)
    serving = daemon.serve(daemon.command(""), folder / "share", folder)
    return machine.Share(stack.enter_context(serving).socket, TAG)


def assert_works(guest: machine.Machine, tag: str, folder: Path) -> None:
    guest.mount(tag, f"/{tag}")
    assert guest.check(WORK.format(tag=tag)) == "data\n"
    assert (folder / "share/dir/data").stat().st_size == 4 << 20


def test_a_microvm_has_it_on_pci_and_on_mmio(stack: ExitStack, tmp_path: Path) -> None:
    pci = serve(stack, tmp_path / "pci")
    mmio = machine.Share(
        serve(stack, tmp_path / "mmio").socket, "mmio", model="vhost-user-fs-device"
    )
    guest = stack.enter_context(machine.boot([pci, mmio], MICROVM))
    assert_works(guest, TAG, tmp_path / "pci")
    root = packages.kernel().image.parents[1]
    (module,) = root.glob("usr/lib/modules/*/**/virtio_mmio.ko.xz")
    (tmp_path / "pci/share/virtio_mmio.ko").write_bytes(lzma.decompress(module.read_bytes()))
    guest.check(f"insmod /{TAG}/virtio_mmio.ko")
    assert_works(guest, "mmio", tmp_path / "mmio")


@contextmanager
def huge_pages(mib: int) -> Iterator[None]:
    """In this context the host has `mib` MiB more of free memory in huge pages."""
    require("root")
    before = int(PAGES.read_text())
    PAGES.write_text(str(before + mib // PAGE_MIB))
    try:
        if int(PAGES.read_text()) < before + mib // PAGE_MIB:
            pytest.skip("the host has no memory left for huge pages")
        yield
    finally:
        PAGES.write_text(str(before))


def test_memory_of_huge_pages_in_a_machine_with_an_iommu(stack: ExitStack, tmp_path: Path) -> None:
    stack.enter_context(huge_pages(MIB))
    share = serve(stack, tmp_path)
    iommu = ("-device", "intel-iommu,intremap=off")
    hardware = machine.Hardware(cpus=2, memory_mib=MIB, backend=HUGE, more=iommu)
    guest = stack.enter_context(machine.boot([share], hardware))
    assert_works(guest, TAG, tmp_path)
    assert "Private_Hugetlb:" in (smaps := Path(f"/proc/{guest.process.pid}/smaps").read_text())
    assert any(
        int(line.split()[1]) for line in smaps.splitlines() if line.startswith("Shared_Hugetlb:")
    )


def test_a_device_behind_the_iommu_is_refused_by_qemu(stack: ExitStack, tmp_path: Path) -> None:
    share = serve(stack, tmp_path)
    behind = machine.Share(share.socket, TAG, properties="iommu_platform=on")
    hardware = machine.Hardware(cpus=1, memory_mib=MIB, more=("-device", "intel-iommu"))
    argv = machine.qemu_argv(hardware, "tcg", [behind])
    with machine.Machine(argv, tmp_path / "console", "tcg") as refused:
        assert refused.process.wait(PATIENCE) == 1
        assert "iommu_platform" in refused.said()
