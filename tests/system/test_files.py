# SPDX-License-Identifier: Apache-2.0
"""File work through `vfsd mount`, against every back-end, compared with the host directory."""

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from guest import check

from tests.waiting import HANG

from .conftest import MEMORY, Backend, Share, serve
from .mounted import run

FILES = 5000
SMALL = 64 << 10
MIB = 1 << 20


@pytest.fixture(scope="module")
def tree() -> Iterator[tuple[Path, Path]]:
    """A tree of at least FILES small files, and a tar archive of it."""
    with tempfile.TemporaryDirectory(prefix="vfsd-tree-", dir=MEMORY) as name:
        folder = Path(name) / "tree"
        files = copies = 0
        while files < FILES:
            part = folder / f"copy{copies}"
            check.copy_library(part)
            files += prune(part)
            copies += 1
        run("tar -cf tree.tar tree", Path(name))
        yield folder, Path(name) / "tree.tar"


def prune(folder: Path) -> int:
    """Remove large files; return the number of files that stay."""
    files = 0
    for path in check.walk(folder):
        if check.is_regular(folder / path):
            if (folder / path).stat().st_size > SMALL:
                (folder / path).unlink()
            else:
                files += 1
    return files


def test_it_is_mounted_as_virtiofs(module_share: Share) -> None:
    queues = module_share.backend.queues
    count = "1 queue" if queues == 1 else f"{queues} queues"
    line = f"mounted {module_share.daemon.socket} on {module_share.mount}, {count}"
    assert module_share.mounted.line == line
    table = Path("/proc/mounts").read_text().splitlines()
    entry = next(row.split() for row in table if str(module_share.mount) in row)
    assert entry[0] == str(module_share.daemon.socket)
    assert entry[2] == "fuse.virtiofs"
    assert {"default_permissions", "allow_other", "nosuid", "nodev"} <= set(entry[3].split(","))


def test_what_is_written_is_on_the_host(module_share: Share) -> None:
    run("echo from the mount >a; cat a; stat -f . >/dev/null", module_share.mount)
    assert (module_share.host / "a").read_text() == "from the mount\n"
    (module_share.host / "b").write_text("from the host\n")
    assert run("cat b", module_share.mount) == "from the host\n"


def test_names_links_and_attributes(module_share: Share) -> None:
    run(
        """
        mkdir -m 750 names; cd names; touch x; ln x hard; ln -s nowhere soft; mkfifo -m 600 fifo
        chmod 4711 x; touch -d 2001-02-03T04:05:06Z x; mv hard moved; truncate -s 12345 moved
        rm x; mkdir d; rmdir d; ! rmdir nothing 2>/dev/null; ! mkdir d/e 2>/dev/null
        """,
        module_share.mount,
    )
    folder = module_share.host / "names"
    assert sorted(path.name for path in folder.iterdir()) == ["fifo", "moved", "soft"]
    assert (folder / "moved").stat().st_size == 12345
    assert (folder / "moved").stat().st_nlink == 1
    assert str((folder / "soft").readlink()) == "nowhere"
    assert folder.stat().st_mode & 0o7777 == 0o750


def test_a_name_of_any_bytes(module_share: Share) -> None:
    name = "ü \n\t\\" + "x" * 240
    (module_share.host / "odd").mkdir()
    (module_share.host / "odd" / name).write_text("found")
    listed = run("cd odd; for name in *; do cat \"$name\"; echo -n ' '; ls -N | wc -c; done",
                 module_share.mount)  # fmt: skip
    assert listed == f"found {len(os.fsencode(name)) + 1}\n"


@pytest.mark.parametrize("size", [0, 1, 4095, 4097, MIB - 1, MIB + 1, 3 * MIB + 5])
def test_bytes_of_every_length(module_share: Share, size: int) -> None:
    content = os.urandom(size)
    (module_share.host / "in").write_bytes(content)
    run("cp in out; cmp in out; rm in", module_share.mount)
    assert (module_share.host / "out").read_bytes() == content


def test_direct_reads_and_writes_at_odd_places(module_share: Share) -> None:
    content = os.urandom(2 * MIB)
    (module_share.host / "in").write_bytes(content)
    run(
        """
        dd if=in of=out bs=1M iflag=direct oflag=direct status=none
        dd if=in of=unaligned bs=12345 status=none
        dd if=in of=part bs=512 skip=3 count=777 iflag=direct status=none
        """,
        module_share.mount,
    )
    assert (module_share.host / "out").read_bytes() == content
    assert (module_share.host / "unaligned").read_bytes() == content
    assert (module_share.host / "part").read_bytes() == content[3 * 512 : 780 * 512]


def test_a_full_directory_is_listed_once(share: Share) -> None:
    folder = share.host / "many"
    folder.mkdir()
    names = {f"file-{number:05}" for number in range(3000)}
    for name in names:
        (folder / name).touch()
    listed = run("ls -lU many | tail -n +2", share.mount).splitlines()
    assert len(listed) == len(names)
    assert {line.split()[-1] for line in listed} == names


def test_a_tree_unpacked_read_renamed_and_removed(
    module_share: Share, tree: tuple[Path, Path]
) -> None:
    original, tar = tree
    mount, host = module_share.mount, module_share.host
    run(f"tar -xf {tar} --no-same-owner", mount)
    run(f"diff -r --no-dereference {original} tree", mount)
    rename = "import os; [os.rename(f'{d}/{n}', f'{d}/{n}.new') for d, _, f in os.walk('moved')"
    names = " for n in f if not os.path.islink(f'{d}/{n}')]"
    run(f'mv tree moved; python3 -c "{rename}{names}"', mount)
    assert check.compare(original, host / "moved", ".new") >= FILES
    run("rm -r moved", mount)
    assert not (host / "moved").exists()


def test_random_writes_of_4_jobs(module_share: Share) -> None:
    run(
        "fio --name=verify --rw=randwrite --bs=4k --size=8m --numjobs=4 --ioengine=psync --direct=1"
        " --verify=crc32c --verify_fatal=1 --group_reporting --output=/dev/null; rm verify.*",
        module_share.mount,
    )


def test_a_mapped_file(module_share: Share) -> None:
    """The kernel writes the pages of a mapping back on its own."""
    script = (
        "import mmap; f = open('mapped', 'w+b'); f.truncate(1 << 20);"
        " m = mmap.mmap(f.fileno(), 1 << 20);"
        " [m.__setitem__(i, i // 4096 % 251) for i in range(0, 1 << 20, 4096)]; m.flush()"
    )
    run(f'python3 -c "{script}"', module_share.mount)
    content = (module_share.host / "mapped").read_bytes()
    assert [content[i] for i in range(0, MIB, 4096)] == [i % 251 for i in range(256)]


def test_a_reader_can_be_killed(module_share: Share) -> None:
    """Killing processes in the middle of requests makes the kernel send INTERRUPT."""
    (module_share.host / "large").write_bytes(bytes(16 * MIB))
    loop = "while :; do dd if=large of=/dev/null bs=64k iflag=direct status=none; done"
    for _ in range(10):
        process = subprocess.Popen(["bash", "-c", loop], cwd=module_share.mount)
        try:
            process.wait(0.1)
        except subprocess.TimeoutExpired:
            process.kill()
        process.wait(HANG)
    assert run("stat -c %s large", module_share.mount) == f"{16 * MIB}\n"


@pytest.mark.parametrize("size", [8, 128])
def test_a_small_queue_is_enough(size: int) -> None:
    """`vfsd mount` limits the kernel's requests to size - 4 pages, and the kernel splits larger
    ones."""
    with ExitStack() as stack:
        share = serve(Backend("", 2), stack, MEMORY, ["--queue-size", str(size)])
        content = os.urandom(3 * MIB + 5)
        (share.host / "in").write_bytes(content)
        run("dd if=in of=out bs=1M status=none; ls -l; seq 2000 | xargs touch; ls", share.mount)
        assert (share.host / "out").read_bytes() == content
        assert share.mounted.unmount() == 0
