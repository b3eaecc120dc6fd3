# SPDX-License-Identifier: Apache-2.0
"""File handles of a guest that drops its caches between making a handle and opening it, as the
programs of xfstests do in generic/426, 467, 756 and 777 (written after the descriptions of these
tests)."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.waiting import wait_until

from .conftest import Backend, Share, serve
from .file_handles import CONNECTABLE, WIDE_MOUNT_ID, handle_of, is_stale, opened
from .mounted import Mounted

FILES = 100
PAGES_AND_INODES = "3"
MODES = {
    "namespace": (),
    "chroot": ("--sandbox=chroot",),
    "none": ("--sandbox=none",),
}
HANDLES = ("auto", "signed", "prefer", "mandatory")
SHORT_LIVED = {  # options with which files are held by fds
    "never": ("--inode-file-handles=never",),
    "userns": ("--userns",),
    "none, auto": ("--sandbox=none",),
}


@dataclass(frozen=True)
class Tree:
    """A folder of files in the mount. Handles are opened by `root`, an fd of another folder."""

    folder: Path
    root: int

    def handles(self, flags: int = 0) -> list[bytes]:
        return [handle_of(path, flags) for path in self.files()]

    def files(self) -> list[Path]:
        return [self.folder / str(number) for number in range(FILES)]

    def create(self) -> None:
        self.folder.mkdir()
        for path in self.files():
            path.write_text(path.name)

    def forget(self) -> None:
        os.sync()
        Path("/proc/sys/vm/drop_caches").write_text(PAGES_AND_INODES)

    def stale(self, handles: Sequence[bytes]) -> list[int]:
        """The indexes of the stale ones, after the guest has dropped its caches."""
        self.forget()
        return [index for index, handle in enumerate(handles) if is_stale(self.root, handle)]

    def await_stale(self, handles: Sequence[bytes], expected: Sequence[int]) -> None:
        """Wait until the handles with these indexes are stale. A guest waits neither for the end
        of its RELEASE nor for the end of its FORGET, so a file that was deleted while it was open
        still exists when close(2) returns."""
        wait_until(lambda: self.stale(handles) == expected, what="deleted files are gone")

    def contents(self, handles: Sequence[bytes]) -> list[bytes]:
        self.forget()
        found = []
        for handle in handles:
            with opened(self.root, handle) as fd:
                found.append(os.pread(fd, 99, 0))
        return found


EVERY = list(range(FILES))
NAMES = [b"%d" % number for number in range(FILES)]


def named_files(tree: Tree, flags: int = 0) -> None:
    handles = tree.handles(flags)
    for _ in range(2):
        assert tree.contents(handles) == NAMES
    assert tree.handles(flags) == handles, "a file keeps its handle"


def with_wide_mount_ids(tree: Tree) -> None:
    named_files(tree, WIDE_MOUNT_ID)


def connectable(tree: Tree) -> None:
    named_files(tree, CONNECTABLE)


def removed_files(tree: Tree) -> None:
    handles = tree.handles()
    for path in tree.files():
        path.unlink()
    tree.await_stale(handles, EVERY)
    for path in tree.files():
        path.write_text("another file of the same name")
    assert tree.stale(handles) == EVERY


def another_link(tree: Tree) -> None:
    handles = tree.handles()
    for path in tree.files():
        path.with_suffix(".link").hardlink_to(path)
        path.unlink()
    assert tree.contents(handles) == NAMES
    for path in tree.files():
        path.with_suffix(".link").unlink()
    tree.await_stale(handles, EVERY)


def removed_while_open(tree: Tree) -> None:
    handles = tree.handles()
    fds = [os.open(path, os.O_RDONLY) for path in tree.files()]
    for path in tree.files():
        path.unlink()
    assert tree.contents(handles) == NAMES
    for fd in fds:
        os.close(fd)
    tree.await_stale(handles, EVERY)


def renamed_files(tree: Tree) -> None:
    handles = tree.handles()
    other = tree.folder.with_name("other")
    other.mkdir()
    for path in tree.files():
        path.rename(other / path.name)
    assert tree.contents(handles) == NAMES


def replaced_files(tree: Tree) -> None:
    handles = tree.handles()
    for path in tree.files():
        new = path.with_suffix(".new")
        new.write_text("new")
        new.rename(path)
    tree.await_stale(handles, EVERY)


def written_by_handle(tree: Tree) -> None:
    handles = tree.handles()
    tree.forget()
    for handle in handles:
        with opened(tree.root, handle, os.O_RDWR) as fd:
            os.pwrite(fd, b"written", 0)
    assert tree.contents(handles) == [b"written"] * FILES


def folders(tree: Tree) -> None:
    below = tree.folder / "below"
    below.mkdir()
    (below / "file").touch()
    handles = [handle_of(tree.folder), handle_of(below)]
    tree.forget()
    with opened(tree.root, handles[1]) as fd:
        with os.scandir(fd) as entries:
            assert [entry.name for entry in entries] == ["file"]
        parent = os.open("..", os.O_RDONLY, dir_fd=fd)
        assert os.fstat(parent).st_ino == tree.folder.stat().st_ino
        os.close(parent)
    tree.folder.rename(tree.folder.with_name("moved"))
    assert tree.stale(handles) == []
    moved = tree.folder.with_name("moved") / "below"
    (moved / "file").unlink()
    moved.rmdir()
    tree.await_stale(handles, [1])


PROGRAMS: tuple[Callable[[Tree], None], ...] = (
    named_files, with_wide_mount_ids, connectable, removed_files, another_link, removed_while_open,
    renamed_files, replaced_files, written_by_handle, folders,
)  # fmt: skip


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((queues, sandbox, handles), id=f"{queues} {sandbox} {handles}")
        for queues in (1, 4)
        for sandbox in MODES
        for handles in HANDLES
        if (sandbox, handles) != ("none", "auto")
    ],
)
def exported(request: pytest.FixtureRequest) -> Iterator[Share]:
    queues, sandbox, handles = request.param
    options = (*MODES[sandbox], f"--inode-file-handles={handles}")
    with ExitStack() as stack:
        yield serve(Backend("", queues, options), stack)


def tree_in(share: Share, name: str) -> tuple[Tree, int]:
    top = share.mount / name
    top.mkdir()
    return Tree(top / "files", root := os.open(share.mount, os.O_RDONLY)), root


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_a_handle_lasts_as_long_as_its_file(
    exported: Share, program: Callable[[Tree], None]
) -> None:
    tree, root = tree_in(exported, program.__name__)
    tree.create()
    try:
        program(tree)
    finally:
        os.close(root)


@pytest.mark.parametrize("handles", ["prefer", "never"])
def test_after_another_mount_a_handle_is_stale(handles: str) -> None:
    """The files and their number are the same, and so would be each nodeid that is counted from
    the same number."""
    options = (f"--inode-file-handles={handles}", "--keep-listening")
    before: list[bytes] = []
    with ExitStack() as stack:
        share = serve(Backend("", 2, options), stack)
        for attempt in range(3):
            with ExitStack() as mounted:
                parent = share.host.parent / str(attempt)
                parent.mkdir()
                way = (str(share.daemon.socket), "--queues=2")
                if attempt:
                    mount = mounted.enter_context(Mounted(parent, *way)).path
                else:
                    mount = share.mount
                root = os.open(mount, os.O_RDONLY)
                mounted.callback(os.close, root)
                tree = Tree(mount / str(attempt), root)
                tree.create()
                assert tree.stale(before) == EVERY[: len(before)]
                before = tree.handles()
            if not attempt:
                assert share.mounted.unmount() == 0


@pytest.mark.parametrize("options", SHORT_LIVED.values(), ids=SHORT_LIVED)
@pytest.mark.parametrize("queues", [1, 4])
def test_where_files_are_held_by_fds_no_handle_opens_another_file(
    options: tuple[str, ...], queues: int
) -> None:
    """A handle may be stale, but what it opens is its own file."""
    with ExitStack() as stack:
        share = serve(Backend("", queues, options), stack)
        tree, root = tree_in(share, "short")
        stack.callback(os.close, root)
        tree.create()
        handles = tree.handles()
        for path in tree.files()[::2]:
            path.unlink()
            path.write_text("another")
        wait_until(
            lambda: set(tree.stale(handles)) >= set(EVERY[::2]), what="deleted files are gone"
        )
        stale = tree.stale(handles)
        assert set(stale) >= set(EVERY[::2]), "what is stale stays so"
        left = [index for index in EVERY if index not in stale]
        assert tree.contents([handles[index] for index in left]) == [NAMES[i] for i in left]
