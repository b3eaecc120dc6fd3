# SPDX-License-Identifier: Apache-2.0
"""Boot a Linux guest in QEMU on vhost-user sockets and run shell scripts in it.

A guest is reached through three channels, none of which has a name in the file system: the console
(kernel messages, collected), a virtio-serial port that takes scripts (see ``initramfs.INIT``), and
QEMU's control protocol. Every wait has a deadline, and no process is left when the ``with`` block
ends.
"""

import base64
import os
import secrets
import select
import shlex
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Self

from . import initramfs, packages
from .qmp import Qmp, QmpError

BOOT_SECONDS = {"kvm": 30.0, "tcg": 60.0}  # several times the duration of a boot
BOOT_TRIES = 4
TRIAL_SECONDS = 10.0
# Five-level page tables only make an emulated CPU slower.
CPU = {"kvm": "host", "tcg": "max,-la57"}
KERNEL_OPTIONS = "console=ttyS0 quiet panic=-1 nokaslr mitigations=off audit=0"


class GuestError(Exception):
    """The guest did not do what it was asked to; the message ends with the console's last lines."""


class NoAnswerError(GuestError):
    """The guest did not answer in time: the guest, or something that it waits for, is stuck."""


@dataclass(frozen=True)
class Share:
    """One vhost-user-fs device: the back-end's socket, and the tag by which the guest mounts it."""

    socket: Path
    tag: str = "share"
    queues: int = 1
    queue_size: int = 1024
    properties: str = ""  # further properties of the device, such as "packed=on"
    model: str = "vhost-user-fs-pci"  # or vhost-user-fs-device: virtio-mmio


@dataclass(frozen=True)
class Result:
    """The output of a script (both streams), its exit status, and its duration."""

    output: str
    status: int
    seconds: float


@dataclass(frozen=True)
class Hardware:
    """The hardware of the guest; `append` goes to the kernel's command line, `more` to QEMU's."""

    cpus: int = 4
    memory_mib: int = 1024
    kernel_suite: str = packages.KERNEL_SUITE
    append: str = ""
    machine: str = "q35"
    backend: str = "memory-backend-memfd,share=on"  # of guest memory
    slots: str = ""  # for memory to be plugged, such as "slots=2,maxmem=4G"
    more: tuple[str, ...] = ()


ORDINARY = Hardware()


def qemu_argv(hardware: Hardware, accel: str, shares: Sequence[Share] = ()) -> list[str]:
    """Return the QEMU command line of a guest without consoles."""
    size = f"{hardware.memory_mib}M"
    argv = [
        *packages.qemu().argv,
        *("-no-user-config", "-nodefaults", "-display", "none"),
        *("-machine", f"{hardware.machine},memory-backend=memory"),
        *("-accel", accel, "-cpu", CPU[accel], "-smp", str(hardware.cpus)),
        *("-m", ",".join(filter(None, (size, hardware.slots)))),
        *("-object", f"{hardware.backend},id=memory,size={size}"),
        *("-kernel", str(packages.kernel(hardware.kernel_suite).image)),
        *("-initrd", str(initramfs.initramfs())),
        *("-append", f"{KERNEL_OPTIONS} {hardware.append}".strip()),
        *hardware.more,
    ]
    for number, share in enumerate(shares):
        chardev = f"share{number}"
        queues = f"num-request-queues={share.queues},queue-size={share.queue_size}"
        device = f"{share.model},chardev={chardev},tag={share.tag},{queues}"
        device = ",".join(filter(None, (device, share.properties)))
        argv += ["-chardev", f"socket,id={chardev},path={share.socket}", "-device", device]
    return argv


class Machine:
    """A running QEMU and its guest; made by `boot`."""

    def __init__(self, argv: Sequence[str], console: Path, accel: str) -> None:
        self.accel = accel
        self.console_path = console
        self.boot_seconds = 0.0
        self._received = bytearray()
        self._scripts, scripts_end = socket.socketpair()
        control, control_end = socket.socketpair()
        self._control = Qmp(control)
        channels = [
            *("-chardev", f"file,id=console,path={console}", "-serial", "chardev:console"),
            *("-device", "virtio-serial-pci", "-chardev", f"socket,id=s,fd={scripts_end.fileno()}"),
            *("-device", "virtserialport,chardev=s,name=vfsd.scripts"),
            *(
                "-chardev",
                f"socket,id=c,fd={control_end.fileno()}",
                "-mon",
                "chardev=c,mode=control",
            ),
        ]
        with scripts_end, control_end, console.with_suffix(".qemu").open("wb") as said:
            self.process = subprocess.Popen(
                [*argv, *channels],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                pass_fds=(scripts_end.fileno(), control_end.fileno()),
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    # --- the script channel ---

    def run(self, script: str, timeout: float = 60.0) -> Result:
        """Run a bash script as root in the guest, in /mnt; `timeout` is in seconds."""
        marker = secrets.token_hex(8)
        encoded = base64.b64encode(script.encode()).decode()
        started = time.monotonic()
        self._scripts.sendall(f"{marker} {encoded}\n".encode())
        try:
            output, line = self._read_until(f"\n{marker} ".encode(), started + timeout)
        except GuestError as error:
            raise type(error)(f"script {first_line(script)!r}: {error}") from None
        return Result(output.decode(errors="replace"), int(line), time.monotonic() - started)

    def check(self, script: str, timeout: float = 60.0) -> str:
        """Run a script that must succeed and return its output; it stops at the first failure."""
        result = self.run(f"set -e\n{script}", timeout)
        if result.status != 0:
            raise GuestError(
                f"script {first_line(script)!r}: exit status {result.status}\n{result.output}"
            )
        return result.output

    def mount(self, tag: str = "share", folder: str = "/mnt", options: str = "") -> None:
        """Mount a share."""
        how = f"-o {shlex.quote(options)} " if options else ""
        self.check(f"mkdir -p {folder}; mount -t virtiofs {how}{tag} {folder}")

    def wait_ready(self, timeout: float) -> None:
        """Wait until the guest has booted and takes scripts; `timeout` is in seconds."""
        started = time.monotonic()
        self._read_until(b"ready ", started + timeout)
        self.boot_seconds = time.monotonic() - started

    def wait_booted(self) -> None:
        """Wait for the guest; reset the machine if an emulated CPU hangs during the boot.

        A kernel that panics resets the machine by itself. In either case QEMU goes on, and the
        back-ends keep their connections.
        """
        for _ in range(BOOT_TRIES - 1):
            try:
                return self.wait_ready(BOOT_SECONDS[self.accel])
            except GuestError:
                if self.process.poll() is not None:
                    raise
                with suppress(QmpError):
                    self.control("system_reset")
        return self.wait_ready(BOOT_SECONDS[self.accel])

    def reboot(self) -> None:
        """Reset the machine as with its reset button; nothing is unmounted."""
        self._received.clear()
        self.control("system_reset")
        self.wait_booted()

    def _read_until(self, mark: bytes, deadline: float) -> tuple[bytes, bytes]:
        """Return the bytes before the mark, and the rest of the line with the mark."""
        while True:
            before, found, after = self._received.partition(mark)
            if found and b"\n" in after:
                line, _, rest = after.partition(b"\n")
                self._received = bytearray(rest)
                return bytes(before).replace(b"\r\n", b"\n"), bytes(line)
            wait = deadline - time.monotonic()
            if wait <= 0:
                raise NoAnswerError(f"no answer in time\n{self._tail()}")
            if self.console().count("Kernel panic") >= BOOT_TRIES:
                raise GuestError(f"the kernel panicked {BOOT_TRIES} times\n{self._tail()}")
            readable, _, _ = select.select([self._scripts], [], [], min(wait, 1.0))
            data = self._scripts.recv(1 << 16) if readable else None
            if data == b"" or self.process.poll() is not None:
                self._reap(5.0)
                raise GuestError(f"QEMU ended with {self.process.returncode}\n{self._tail()}")
            self._received += data or b""

    # --- the machine ---

    def control(self, command: str, arguments: Mapping[str, Any] | None = None) -> Any:
        """Make QEMU execute a QMP command; return its result, or raise QmpError."""
        return self._control.ask(command, arguments or {})

    def wait_event(self, name: str) -> None:
        """Wait until QEMU reports an event that no earlier call has taken."""
        self._control.wait_event(name)

    def said(self) -> str:
        """Return what QEMU has printed up to now."""
        return self.console_path.with_suffix(".qemu").read_text(errors="replace")

    def console(self) -> str:
        """Return what the guest's kernel has printed up to now."""
        if not self.console_path.exists():
            return ""
        return self.console_path.read_text(errors="replace")

    def power_off(self, timeout: float = 20.0) -> None:
        """Unmount everything, switch the guest off and wait for QEMU to end."""
        with suppress(GuestError):
            self.run("sync; cd /; umount -a -t virtiofs; poweroff -f", timeout)
        self._reap(timeout)
        self.kill()

    def kill(self) -> None:
        """Kill QEMU, whatever its state."""
        if self.process.poll() is None:
            self.process.terminate()
            self._reap(5.0)
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._scripts.close()
        self._control.close()

    def _reap(self, timeout: float) -> None:
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout)

    def _tail(self) -> str:
        lines = [*self.said().splitlines()[-5:], *self.console().splitlines()[-15:]]
        return "\n".join(f"  | {line}" for line in lines)


def first_line(script: str) -> str:
    """Return the beginning of a script, for use as its name."""
    lines = script.strip().splitlines()
    return lines[0][:60] if lines else ""


# --- which accelerator --------------------------------------------------------------------------


def boots(accel: str) -> bool:
    """Return whether a guest without shares boots quickly with this accelerator."""
    with tempfile.TemporaryDirectory(prefix="vfsd-trial-") as folder:
        argv = qemu_argv(ORDINARY, accel)
        with Machine(argv, Path(folder) / "console", accel) as machine:
            try:
                machine.wait_ready(TRIAL_SECONDS)
            except GuestError:
                return False
    return True


@cache
def accelerator() -> str:
    """Return "kvm" where it really works, else "tcg". VFSD_ACCEL overrides the choice.

    An open /dev/kvm proves little: on some machines the first instructions of the guest already end
    in an error, or the guest never prints anything. So a guest is booted.
    """
    chosen = os.environ.get("VFSD_ACCEL")
    if chosen:
        return chosen
    usable = os.access("/dev/kvm", os.R_OK | os.W_OK)
    return "kvm" if usable and boots("kvm") else "tcg"


# --- booting ------------------------------------------------------------------------------------


@contextmanager
def boot(shares: Sequence[Share], hardware: Hardware = ORDINARY) -> Iterator[Machine]:
    """Boot a guest with the shares attached (not yet mounted) and yield it; end it afterwards."""
    accel = accelerator()
    with tempfile.TemporaryDirectory(prefix="vfsd-guest-") as folder:
        argv = qemu_argv(hardware, accel, shares)
        with Machine(argv, Path(folder) / "console", accel) as machine:
            machine.wait_booted()
            yield machine


def boot_shell(share: Share, hardware: Hardware = ORDINARY) -> int:
    """Boot a guest that mounts a share on /mnt and gives this terminal a shell in it."""
    columns, rows = os.get_terminal_size()
    words = {
        "vfsd.shell": share.tag,
        "vfsd.rows": rows,
        "vfsd.columns": columns,
        "vfsd.term": os.environ.get("TERM", "linux"),
    }
    append = " ".join(f"{name}={value}" for name, value in words.items())
    argv = qemu_argv(replace(hardware, append=append), accelerator(), [share])
    # Ctrl-C is for the guest; Ctrl-a x ends QEMU, whatever the guest does.
    terminal = ["-chardev", "stdio,id=tty,mux=on,signal=off", "-serial", "chardev:tty"]
    return subprocess.run([*argv, *terminal, "-mon", "chardev=tty"], check=False).returncode
