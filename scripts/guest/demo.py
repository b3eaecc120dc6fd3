# SPDX-License-Identifier: Apache-2.0
"""`scripts/demo`: share a folder with a guest; a shell for a person, or a scripted check."""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from . import check, daemon, machine, packages

TAG = "share"
WORK = """\
mkdir shown
for i in $(seq 50); do head -c 65536 /dev/urandom > shown/$i; done
cat shown/* | sha256sum
rm -r shown"""


def arguments(argv: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="scripts/demo",
        description="Boot a Linux guest in QEMU that mounts a folder of this machine through "
        "virtiofsd, and open a shell in it.",
    )
    add = parser.add_argument
    add("--check", action="store_true", help="run a scripted session instead, and compare")
    add("--dir", type=Path, help="the folder to share (default: a new one, removed at the end)")
    add("--queues", type=int, default=4, help="request queues of the share (default 4)")
    add("--cpus", type=int, default=4, help="CPUs of the guest (default 4)")
    add(
        "--kernel",
        default=packages.KERNEL_SUITE,
        metavar="SUITE",
        help=f"the Debian release whose kernel to boot (default {packages.KERNEL_SUITE})",
    )
    add(
        "--virtiofsd",
        default="",
        metavar="WHICH",
        help='another back-end: "c", "rust" (one request queue each), or a command line in which '
        "{socket} and {dir} are filled in",
    )
    chosen = parser.parse_args(argv)
    if chosen.dir is not None and not chosen.dir.is_dir():
        parser.error(f"--dir {chosen.dir}: not a folder")
    for name in ("queues", "cpus"):
        if not 1 <= getattr(chosen, name) <= 64:
            parser.error(f"--{name} must be from 1 to 64")
    if not chosen.check and not sys.stdin.isatty():
        parser.error("a shell needs a terminal; use --check without one")
    return chosen


def wanted(
    chosen: argparse.Namespace, back_end: daemon.Daemon
) -> tuple[machine.Share, machine.Hardware]:
    """Return the requested share and machine."""
    share = machine.Share(back_end.socket, TAG, chosen.queues)
    return share, machine.Hardware(chosen.cpus, kernel_suite=chosen.kernel)


def run_check(chosen: argparse.Namespace, back_end: daemon.Daemon, shared: Path) -> bool:
    """Run the scripted session in a folder of the share; return whether every step passed."""
    host = Path(tempfile.mkdtemp(prefix="vfsd-check-", dir=shared))
    share, hardware = wanted(chosen, back_end)
    try:
        with (
            tempfile.TemporaryDirectory(prefix="vfsd-original-") as original,
            machine.boot([share], hardware) as guest,
        ):
            print(f"guest up in {guest.boot_seconds:.1f} s ({guest.accel})", flush=True)
            guest.mount(TAG)
            tree = check.prepare(Path(original), host)
            session = check.Session(
                guest, host, f"/mnt/{host.name}", tree, chosen.queues, chosen.cpus
            )
            failed = check.run_steps(session)
            if not chosen.virtiofsd:
                show_share(back_end, session)
            guest.power_off()
    finally:
        shutil.rmtree(host)
    return failed == 0


def show_share(back_end: daemon.Daemon, session: check.Session) -> None:
    """Show what vfsd says of the share, and of the guest while it works."""
    vfsd, name = str(daemon.PROJECT / ".venv/bin/vfsd"), str(back_end.process.pid)
    subprocess.run([vfsd, "status", name], check=True)
    top = [vfsd, "top", "--once", "--interval", "1", name]
    with subprocess.Popen(top) as shown:
        while shown.poll() is None:
            session.run(WORK)
    if shown.returncode:
        raise daemon.DaemonError(f"vfsd top ended with status {shown.returncode}")


def run_shell(chosen: argparse.Namespace, back_end: daemon.Daemon, shared: Path) -> bool:
    """Give the terminal a shell in the guest."""
    print(f"{shared} is /mnt in the guest; {back_end.log_path} is the log of virtiofsd")
    if not chosen.virtiofsd:
        vfsd = daemon.PROJECT / ".venv/bin/vfsd"
        print(f"in another terminal, {vfsd} top {back_end.process.pid} shows its requests")
    print('leave with "exit" (or, if the guest hangs, with Ctrl-a x)', flush=True)
    return machine.boot_shell(*wanted(chosen, back_end)) == 0


def run(chosen: argparse.Namespace, folder: Path) -> bool:
    """Start the back-end and the guest; return whether everything went well."""
    shared = chosen.dir.resolve() if chosen.dir else folder / "share"
    shared.mkdir(exist_ok=True)
    argv = daemon.command(chosen.virtiofsd)
    kernel, qemu = packages.kernel(chosen.kernel), packages.qemu()
    print(
        f"Linux {kernel.release} in QEMU {qemu.version} ({machine.accelerator()}), "
        f"CPUs: {chosen.cpus}, request queues: {chosen.queues}",
        flush=True,
    )
    with daemon.serve(argv, shared, folder) as back_end:
        what = run_check if chosen.check else run_shell
        good = what(chosen, back_end, shared)
        if not good:
            print(f"virtiofsd said:\n{back_end.log()}", file=sys.stderr)
    return good


def main() -> int:
    """Run the command; return its exit status."""
    chosen = arguments(sys.argv[1:])
    started = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix="vfsd-demo-") as folder:
            good = run(chosen, Path(folder))
    except (packages.FetchError, daemon.DaemonError, machine.GuestError) as error:
        print(f"scripts/demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    if chosen.check:
        seconds = time.monotonic() - started
        print(f"{'passed' if good else 'FAILED'} in {seconds:.0f} s", flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
