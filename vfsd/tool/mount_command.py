# SPDX-License-Identifier: Apache-2.0
"""`vfsd mount`: its command line."""

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from vfsd.frontend.backend_process import own_backend
from vfsd.frontend.bridge import Shape
from vfsd.frontend.fuse_mount import check_mountpoint
from vfsd.frontend.mount import Signals, mount
from vfsd.frontend.vmm import Vmm, connect
from vfsd.transport.errors import OperatorError
from vfsd.transport.native import lib
from vfsd.transport.option_types import REQUEST_QUEUES_MAX

SUMMARY: Final = "mount a virtio-fs back-end on this host, without a VM"
QUEUE_SIZES: Final = tuple(1 << bit for bit in range(3, 16))
QUEUE_SIZE: Final = 1024  # room for requests of 1 MiB
SPIN_MAX: Final = 10000
EPILOG: Final = """\
vfsd mount SOCKET MOUNTPOINT          any vhost-user virtio-fs socket
vfsd mount --source DIR MOUNTPOINT    starts its own virtiofsd, with the arguments after --

The command stays in the foreground. umount MOUNTPOINT ends it. Ctrl-C also ends it; if the mount
is in use, its users then get an error. If the back-end goes away, every access to the mount fails
until it is unmounted.
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.usage = "vfsd mount (SOCKET | --source DIR) MOUNTPOINT [options] [-- ARGUMENT...]"
    parser.add_argument("paths", nargs="*", help=argparse.SUPPRESS)
    parser.add_argument(
        "--source", metavar="DIR", help="share DIR with a virtiofsd that ends with the mount"
    )
    parser.add_argument(
        "--queues", type=int, metavar="N",
        help="request queues (all that are offered, but at most half the number of CPUs)",
    )  # fmt: skip
    parser.add_argument(
        "--queue-size", type=int, metavar="N", default=QUEUE_SIZE,
        help=f"descriptors of each queue ({QUEUE_SIZE}); N-4 pages fit in a request",
    )  # fmt: skip
    parser.add_argument(
        "--poll-us", metavar="auto|N", default="auto",
        help="look for replies for N microseconds before sleeping; auto: for up to 200, the default"
        " of KVM for a halted vCPU, unless they take longer (auto)",
    )  # fmt: skip


def run(options: argparse.Namespace) -> int:
    """Mount, and return the exit status when the mount is over."""
    socket, target = _paths(options)
    _check_numbers(options)
    target = check_mountpoint(target)
    # With the default handling of signals, a virtiofsd that we started would be left behind.
    with Signals() as signals, _backend(options, socket) as vmm:
        vmm.negotiate()
        shape = Shape(_queues(options, vmm), options.queue_size, _poll_us(options.poll_us))
        return mount(vmm, signals, (options.source or socket, target), shape)


def _paths(options: argparse.Namespace) -> tuple[str, str]:
    wanted = 1 if options.source is not None else 2
    if len(options.paths) != wanted:
        what = "MOUNTPOINT" if wanted == 1 else "SOCKET and MOUNTPOINT"
        raise OperatorError(f"mount takes {what}; see vfsd mount --help", status=2)
    return ("" if wanted == 1 else options.paths[0]), options.paths[-1]


def _check_numbers(options: argparse.Namespace) -> None:
    if options.queues is not None and not 1 <= options.queues <= REQUEST_QUEUES_MAX:
        raise OperatorError(f"--queues: give a number from 1 to {REQUEST_QUEUES_MAX}", status=2)
    if options.queue_size not in QUEUE_SIZES:
        first, last = QUEUE_SIZES[0], QUEUE_SIZES[-1]
        raise OperatorError(f"--queue-size: give a power of 2 from {first} to {last}", status=2)
    _poll_us(options.poll_us)
    if options.passed_on and options.source is None:
        raise OperatorError(
            "arguments after -- are for the virtiofsd that --source starts", status=2
        )


def _poll_us(value: str) -> int:
    if value == "auto":
        return int(lib.BRIDGE_SPIN_AUTO)
    if not (value.isascii() and value.isdigit() and int(value) <= SPIN_MAX):
        raise OperatorError(f"--poll-us: give auto or a number from 0 to {SPIN_MAX}", status=2)
    return int(value)


@contextmanager
def _backend(options: argparse.Namespace, socket: str) -> Iterator[Vmm]:
    if options.source is None:
        with connect(socket) as vmm:
            yield vmm
        return
    if not Path(options.source).is_dir():
        raise OperatorError(f"--source: '{options.source}' is not a directory")
    queues = [] if options.queues is None else [f"--request-queues={options.queues}"]
    with own_backend(options.source, [*queues, *options.passed_on]) as vmm:
        yield vmm


def _queues(options: argparse.Namespace, vmm: Vmm) -> int:
    if options.queues is None:
        cpus = len(os.sched_getaffinity(0))  # a queue keeps two busy: one here, one in the back-end
        return max(1, min(vmm.queues_offered - 1, cpus // 2, REQUEST_QUEUES_MAX))
    vmm.check_queues(options.queues)
    return int(options.queues)
