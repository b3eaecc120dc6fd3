# SPDX-License-Identifier: Apache-2.0
"""Programs and kernels of other Debian releases, unpacked into a cache and never installed.

apt runs with a private configuration: its own sources, lists, archive folder and an empty package
database. So it resolves a whole tree of dependencies down to libc, needs no privileges, and leaves
the machine's own sources and packages alone. Programs then run through the dynamic linker that was
fetched with them, whatever the machine's own libc is.
"""

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

PUBLIC_MIRROR = "http://deb.debian.org/debian/"
KEYRINGS = (
    Path("/usr/share/keyrings/debian-archive-keyring.gpg"),
    Path("/usr/share/keyrings/debian-archive-keyring.pgp"),
)

# The suites that each thing comes from; of several suites, the first that can be reached. Guests
# need virtio_fs with several request queues (Linux 6.11). When QEMU emulates several CPUs, version
# 7.2 makes Debian's kernel panic, and 10.0 sometimes aborts
# (https://gitlab.com/qemu-project/qemu/-/issues/1921); 11.1 does neither.
QEMU_SUITES = ("forky", "trixie")
KERNEL_SUITE = "trixie"
USERLAND_SUITE = "trixie"
RUST_VIRTIOFSD_SUITES = ("forky", "trixie")  # 1.14, else 1.13
C_VIRTIOFSD_SUITES = ("bookworm",)  # QEMU 7.2 is the last release with the C virtiofsd

LINKER = "ld-linux-x86-64.so.2"
LIBRARY_FOLDERS = (
    "usr/lib/x86_64-linux-gnu",
    "lib/x86_64-linux-gnu",
    "usr/lib/x86_64-linux-gnu/ceph",  # used by librbd, which fio is linked with
)
KERNEL_NEEDS = ("VIRTIO_PCI", "VIRTIO_FS", "VIRTIO_CONSOLE", "SERIAL_8250_CONSOLE", "DEVTMPFS")


class FetchError(Exception):
    """A package could not be fetched; the message says what, why and what to do."""


@dataclass(frozen=True)
class Program:
    """A program to run: `argv` is the beginning of the command line."""

    argv: tuple[str, ...]
    version: str


@dataclass(frozen=True)
class Kernel:
    """A kernel image to boot, and its `uname -r`."""

    image: Path
    release: str


def cache_folder() -> Path:
    """Return the folder in which everything that was fetched is kept."""
    chosen = os.environ.get("VFSD_CACHE")
    if chosen:
        return Path(chosen).absolute()
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache").absolute() / "vfsd"


def progress(line: str) -> None:
    """Show a person who waits what the wait is for."""
    print(line, file=sys.stderr, flush=True)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock, so that two runs do not fill one cache folder at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


# --- apt -------------------------------------------------------------------------------------


def _run(argv: Sequence[str]) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = (done.stderr or done.stdout).strip().splitlines()
        errors = [line for line in lines if line.startswith("E:")] or lines[-1:] or ["no message"]
        raise FetchError(f"{argv[0]}: {errors[0].removeprefix('E: ')}")
    return done.stdout


def _keyring() -> Path:
    for path in KEYRINGS:
        if path.exists():
            return path
    raise FetchError(
        "Debian's archive keys are missing: install the package debian-archive-keyring"
    )


@cache
def mirrors() -> tuple[str, ...]:
    """Return Debian mirrors to try: the one this machine's apt uses, then the public one."""
    found = []
    try:
        targets = _run(
            ["apt-get", "indextargets", "--format", "$(LABEL) $(REPO_URI)", "Identifier: Packages"]
        )
    except (FetchError, OSError):
        targets = ""
    for line in targets.splitlines():
        label, _, base = line.partition(" ")
        # The label is known only after apt has fetched its lists.
        if label == "Debian" or (not label and base.rstrip("/").endswith("/debian")):
            found.append(base)
    return tuple(dict.fromkeys([*found, PUBLIC_MIRROR]))


class Apt:
    """apt for one suite, with state of its own below the cache folder."""

    def __init__(self, suite: str) -> None:
        self.suite = suite
        self.folder = cache_folder() / "apt" / suite
        self.options = [
            f"-oDir::State={self.folder}",
            f"-oDir::State::status={self.folder}/status",
            f"-oDir::Cache={self.folder}",
            f"-oDir::Etc::sourcelist={self.folder}/sources.list",
            "-oDir::Etc::sourceparts=/dev/null",
            "-oDir::Etc::preferences=/dev/null",
            "-oDir::Etc::preferencesparts=/dev/null",
            "-oAPT::Architecture=amd64",
            "-oAPT::Sandbox::User=root",  # apt's own user may have no access to the cache folder
            "-oAcquire::Languages=none",
            "-oAcquire::Retries=3",
        ]

    def update(self) -> None:
        """Fetch the suite's package list, from the first mirror that has it."""
        for part in ("lists/partial", "archives/partial"):
            (self.folder / part).mkdir(parents=True, exist_ok=True)
        (self.folder / "status").touch()
        keyring = _keyring()
        errors = []
        for mirror in mirrors():
            source = f"deb [signed-by={keyring}] {mirror} {self.suite} main\n"
            (self.folder / "sources.list").write_text(source)
            try:
                _run(["apt-get", "-q", "-oAPT::Update::Error-Mode=any", *self.options, "update"])
            except FetchError as error:
                errors.append(str(error))
            else:
                return
        raise FetchError(f"cannot fetch the package list of Debian {self.suite}: {errors[-1]}")

    def field(self, package: str, field: str) -> str:
        """Return one field of the newest version of a package."""
        text = _run(["apt-cache", *self.options, "--no-all-versions", "show", package])
        match = re.search(rf"^{field}: (.*)$", text, re.MULTILINE)
        if match is None:
            raise FetchError(f"Debian {self.suite}: {package} has no field {field}")
        return match[1]

    def download(self, packages: Sequence[str], dependencies: bool) -> list[Path]:
        """Download packages, with all their dependencies if asked, and return the files."""
        archives = self.folder / "archives"
        for old in archives.glob("*.deb"):
            old.unlink()
        if dependencies:
            how = ["install", "--yes", "--no-install-recommends", "--download-only"]
            _run(["apt-get", "-q", *self.options, *how, *packages])
        else:
            names = [f"{name}={self.field(name, 'Version')}" for name in packages]
            script = 'cd "$1"; shift; exec "$@"'
            apt = ["apt-get", "-q", *self.options, "download", *names]
            _run(["sh", "-ec", script, "sh", str(archives), *apt])
        return sorted(archives.glob("*.deb"))


def _unpack(suite: str, packages: Sequence[str], target: Path, dependencies: bool) -> None:
    apt = Apt(suite)
    archives = apt.download(packages, dependencies)
    unpacked = Path(tempfile.mkdtemp(prefix=target.name + ".", dir=target.parent))
    unpacked.chmod(0o755)
    try:
        for archive in archives:
            _run(["dpkg-deb", "-x", str(archive), str(unpacked)])
            archive.unlink()
        unpacked.rename(target)
    except BaseException:
        shutil.rmtree(unpacked, ignore_errors=True)
        raise


def _folder(suite: str, packages: Sequence[str]) -> Path:
    key = hashlib.sha256(" ".join(packages).encode()).hexdigest()[:8]
    return cache_folder() / "roots" / f"{suite}-{packages[0]}-{key}"


def unpacked_root(suite: str, packages: Sequence[str], dependencies: bool = True) -> Path:
    """Return a folder with the unpacked packages; fetch them at the first call.

    The cache is used as it is: remove the folder to get newer versions.
    """
    target = _folder(suite, packages)
    if target.is_dir():
        return target
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise FetchError(f"{tool} is missing: packages are fetched on Debian or Ubuntu only")
    target.parent.mkdir(parents=True, exist_ok=True)
    with locked(cache_folder() / "apt" / suite / "fetch.lock"):
        if not target.is_dir():
            progress(f"fetching {packages[0]} from Debian {suite} (kept in {cache_folder()})")
            Apt(suite).update()
            _unpack(suite, packages, target, dependencies)
    return target


# --- running what was fetched --------------------------------------------------------------------


def linker_argv(root: Path) -> list[str]:
    """Return the command line that starts a program of `root` with the libraries of `root`."""
    for folder in ("usr/lib64", "lib64"):
        linker = root / folder / LINKER
        if linker.exists():
            libraries = ":".join(str(root / name) for name in LIBRARY_FOLDERS)
            return [str(linker), "--library-path", libraries]
    raise FetchError(f"{root} holds no dynamic linker: remove that folder to fetch it again")


def _program(suites: Sequence[str], package: str, path: str) -> tuple[Path, Program]:
    errors = []
    for suite in suites:
        try:
            root = unpacked_root(suite, [package])
        except FetchError as error:
            errors.append(str(error))
        else:
            binary = str(root / path)
            argv = (*linker_argv(root), "--argv0", binary, binary)
            return root, Program(argv, _version(argv))
    raise FetchError(errors[0])


def _version(argv: Sequence[str]) -> str:
    text = _run([*argv, "--version"])
    match = re.search(r"\d+\.\d+(\.\d+)?", text)
    return match[0] if match else text.strip()


@cache
def qemu() -> Program:
    """Return QEMU for x86-64 guests, with its firmware."""
    root, bare = _program(QEMU_SUITES, "qemu-system-x86", "usr/bin/qemu-system-x86_64")
    firmware = [root / "usr/share" / name for name in ("qemu", "seabios")]
    options = [part for folder in firmware for part in ("-L", str(folder))]
    return Program((*bare.argv, *options), bare.version)


@cache
def kernel(suite: str = KERNEL_SUITE) -> Kernel:
    """Return a suite's kernel for virtual machines: 6.12 in trixie, newer in forky.

    From Linux 7.1 on a guest checks the length and the `unique` of every reply.
    """
    # The newest version is asked for once, so that the next call needs no network.
    chosen = cache_folder() / "roots" / f"{suite}-kernel"
    packages = chosen.read_text().split() if chosen.exists() else []
    if not packages or not _folder(suite, packages).is_dir():
        packages = _kernel_packages(suite)
    root = unpacked_root(suite, packages, dependencies=False)
    chosen.write_text(" ".join(packages))
    for pattern in ("boot/vmlinuz-*", "usr/lib/modules/*/vmlinuz"):
        for image in root.glob(pattern):
            return _checked_kernel(image)
    raise FetchError(f"{root} holds no kernel: Debian {suite} has moved the file")


def _kernel_packages(suite: str) -> list[str]:
    """Return the packages of a suite's newest kernel: the image, and its configuration."""
    apt = Apt(suite)
    with locked(apt.folder / "fetch.lock"):
        apt.update()
        match = re.search(r"linux-image-(\d\S+)", apt.field("linux-image-cloud-amd64", "Depends"))
        if match is None:
            raise FetchError(f"Debian {suite}: linux-image-cloud-amd64 depends on no kernel")
        release = match[1]
        if f"linux-binary-{release}" in apt.field(f"linux-image-{release}", "Depends"):
            return [f"linux-binary-{release}", f"linux-base-{release}"]  # since Debian 14
        return [f"linux-image-{release}"]


def _checked_kernel(image: Path) -> Kernel:
    if image.name == "vmlinuz":
        release, config = image.parent.name, image.with_name("config")
    else:
        release = image.name.removeprefix("vmlinuz-")
        config = image.with_name(f"config-{release}")
    options = config.read_text()
    missing = [name for name in KERNEL_NEEDS if f"\nCONFIG_{name}=y\n" not in options]
    if missing:
        raise FetchError(f"kernel {release} lacks built-in {', '.join(missing)}: no guest with it")
    return Kernel(image, release)


@cache
def rust_virtiofsd() -> Program:
    """Return the Rust virtiofsd."""
    return _program(RUST_VIRTIOFSD_SUITES, "virtiofsd", "usr/libexec/virtiofsd")[1]


@cache
def c_virtiofsd() -> Program:
    """Return QEMU's C virtiofsd 7.2."""
    return _program(C_VIRTIOFSD_SUITES, "qemu-system-common", "usr/lib/qemu/virtiofsd")[1]
