# SPDX-License-Identifier: Apache-2.0
"""Boot UEFI firmware in QEMU on a share, and type into its shell over the serial line.

The firmware (OVMF) has its own driver for virtio-fs, and offers a share as a file system before any
operating system has started.
"""

import os
import re
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from . import machine, packages

SUITE = "trixie"
BOOT_SECONDS = 300.0  # takes 10 on a quiet machine
COMMAND_SECONDS = 120.0
# Colours, and positions of the cursor.
ESCAPES = re.compile(rb"\x1b\[[0-9;=?]*[A-Za-z]")
PROMPT = re.compile(r"(^|\n)(Shell|FS\d+:\\[^\n]*)> \Z")
VIRTIO_FS = re.compile(r"(FS\d+): Alias\(s\):\S*\n\s*PciRoot")


class FirmwareError(Exception):
    """The firmware did not answer in time; the message ends with its last output."""


def qemu_argv(share: machine.Share, folder: Path) -> list[str]:
    """A machine with firmware and its shell; the serial line and the variables are in `folder`."""
    firmware = packages.unpacked_root(SUITE, ["ovmf"], dependencies=False) / "usr/share/OVMF"
    shell = packages.unpacked_root(SUITE, ["efi-shell-x64"], dependencies=False)
    shutil.copy(firmware / "OVMF_VARS_4M.fd", folder / "variables")
    flash = "if=pflash,format=raw"
    return [
        *packages.qemu().argv,
        *("-no-user-config", "-nodefaults", "-display", "none"),
        *("-machine", "q35,memory-backend=memory", "-accel", "tcg", "-m", "256M"),
        *("-object", "memory-backend-memfd,id=memory,size=256M,share=on"),
        *("-drive", f"{flash},readonly=on,file={firmware}/OVMF_CODE_4M.fd"),
        *("-drive", f"{flash},file={folder}/variables"),
        # The firmware starts the file that it is given as a kernel.
        *("-kernel", f"{shell}/usr/share/efi-shell-x64/shellx64.efi", "-append", "-nostartup"),
        # A serial port drops bytes that its other end does not take; a pipe buffers 64 KiB.
        *("-chardev", f"pipe,id=serial,path={folder}/serial", "-serial", "chardev:serial"),
        *("-chardev", f"socket,id=share,path={share.socket}"),
        *("-device", f"vhost-user-fs-pci,chardev=share,tag={share.tag}"),
    ]


class Shell:
    """The shell of a machine that has booted its firmware; made by `boot`."""

    def __init__(self, folder: Path) -> None:
        # Both ends are opened, so that neither side waits for the other.
        self._typed = os.open(folder / "serial.in", os.O_RDWR)
        self._printed = os.open(folder / "serial.out", os.O_RDWR)
        self._said = b""

    def close(self) -> None:
        os.close(self._typed)
        os.close(self._printed)

    def wait_booted(self) -> str:
        """Wait for the first prompt, change to the share and return its name."""
        self._wait_for_prompt(BOOT_SECONDS)
        self.run("connect -r")  # else only the boot device gets its driver
        mapping = VIRTIO_FS.search(self.run("map -r") + "\n")
        if mapping is None:
            raise FirmwareError(f"the firmware has no driver for the share\n{self._text()}")
        self.run(f"{mapping[1]}:")
        return mapping[1]

    def run(self, command: str, seconds: float = COMMAND_SECONDS) -> str:
        """Type a command; return its output, with lines that end in a newline alone."""
        self._said = b""
        os.write(self._typed, command.encode() + b"\r")
        # The typed command is echoed as the first line.
        printed = self._wait_for_prompt(seconds, lines=1)
        return printed.partition("\n")[2].rpartition("\n")[0]

    def _text(self) -> str:
        return ESCAPES.sub(b"", self._said).replace(b"\r", b"").decode(errors="replace")

    def _wait_for_prompt(self, seconds: float, lines: int = 0) -> str:
        deadline = time.monotonic() + seconds
        while not PROMPT.search(text := self._text()) or text.count("\n") < lines:
            left = deadline - time.monotonic()
            if left <= 0:
                raise FirmwareError(f"no prompt within {seconds} s\n{text}")
            if select.select([self._printed], [], [], left)[0]:
                self._said += os.read(self._printed, 1 << 16)
        return text


@contextmanager
def boot(share: machine.Share) -> Iterator[Shell]:
    """Boot the firmware with a share attached, and end the machine afterwards."""
    with tempfile.TemporaryDirectory(prefix="vfsd-firmware-") as name:
        folder = Path(name)
        for end in ("in", "out"):
            os.mkfifo(folder / f"serial.{end}")
        shell = Shell(folder)
        process = subprocess.Popen(qemu_argv(share, folder), stdin=subprocess.DEVNULL)
        try:
            shell.wait_booted()
            yield shell
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(10.0)
            process.kill()
            process.wait()
            shell.close()
