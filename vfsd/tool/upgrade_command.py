# SPDX-License-Identifier: Apache-2.0
"""`vfsd upgrade`: the version that is installed takes the place of a running daemon."""

import argparse
import json
import socket
from pathlib import Path
from typing import Final

from vfsd.control.instances import Instance
from vfsd.tool import instance_options as common
from vfsd.transport.errors import OperatorError
from vfsd.transport.operator_protocol import UPGRADE_SOCKET_NAME
from vfsd.transport.socket_path import addressed

SUMMARY: Final = "replace a running daemon by the installed version, without its VM"
READY_SECONDS: Final = 60.0  # for the new version to get ready
SWITCH_SECONDS: Final = 30.0  # longer than a switch takes
ANSWER_MAX: Final = 1 << 16


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.epilog = common.EPILOG
    common.add_instance(parser)
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="start the installed version, report what would happen, and change nothing",
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=READY_SECONDS,
        metavar="S",
        help=f"seconds for the installed version to get ready ({READY_SECONDS:g})",
    )


def run(options: argparse.Namespace) -> int:
    instance = common.chosen(options)
    request = {"dry_run": options.dry_run, "seconds": options.timeout}
    answer = _ask(instance, request, options.timeout + SWITCH_SECONDS)
    if not answer.get("ok"):
        raise OperatorError(f"the old version goes on: {answer.get('text')}")
    print(answer["text"])
    return 0


def _ask(instance: Instance, request: dict[str, object], seconds: float) -> dict[str, object]:
    """Send a request to the socket that is beside the socket for operators; returns the answer."""
    path = str(Path(instance.path).with_name(UPGRADE_SOCKET_NAME))
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.settimeout(seconds)
        try:
            with addressed(path) as address:
                sock.connect(address)
            sock.send(json.dumps(request).encode())
            answer = json.loads(sock.recv(ANSWER_MAX))
        except TimeoutError:
            raise OperatorError(f"{instance.name} does not answer") from None
        except OSError as error:
            raise OperatorError(f"{instance.name} cannot be reached: {error.strerror}") from None
        except ValueError:
            raise OperatorError(f"{instance.name} ended during the upgrade") from None
    return dict(answer)
