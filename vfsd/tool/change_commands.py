# SPDX-License-Identifier: Apache-2.0
"""`vfsd stop`, `vfsd set` and `vfsd worker`: what an operator changes in a running daemon."""

import argparse
import os
import select
from typing import Final

from vfsd.tool import instance_options as common
from vfsd.transport.control_messages import LOG_THRESHOLDS
from vfsd.transport.errors import OperatorError

STOP_SUMMARY: Final = "end a daemon and its share"
SET_SUMMARY: Final = "change a setting of a running daemon"
WORKER_SUMMARY: Final = "have a worker of a daemon killed and created again"


def add_stop_options(parser: argparse.ArgumentParser) -> None:
    common.add_common(parser)
    common.add_instance(parser)


def stop(options: argparse.Namespace) -> int:
    """End a daemon, and wait until it has ended."""
    instance = common.chosen(options)
    try:
        keeper = os.pidfd_open(instance.pid)
    except ProcessLookupError:
        return 0
    try:
        with common.connected(options, instance) as client:
            client.stop()
        poll = select.poll()
        poll.register(keeper, select.POLLIN)
        if not poll.poll(options.timeout * 1000):
            raise OperatorError(f"{instance.name} has not ended within {options.timeout:g} s")
    finally:
        os.close(keeper)
    return 0


def add_set_options(parser: argparse.ArgumentParser) -> None:
    common.add_common(parser)
    common.add_instance(parser)
    parser.add_argument("setting", choices=("log-level",), help="the setting")
    parser.add_argument("value", choices=LOG_THRESHOLDS, help="its value")


def set_(options: argparse.Namespace) -> int:
    """Change a setting, until it is changed again or the daemon is started again."""
    with common.connected(options, common.chosen(options)) as client:
        client.set_log_level(options.value)
    return 0


def add_worker_options(parser: argparse.ArgumentParser) -> None:
    common.add_common(parser)
    parser.add_argument("action", choices=("restart",), help="what to do")
    common.add_instance(parser)
    parser.add_argument("slot", type=int, metavar="N", help="the number of the worker")


def worker(options: argparse.Namespace) -> int:
    """Have a worker created again."""
    with common.connected(options, common.chosen(options)) as client:
        client.restart_worker(options.slot)
    return 0
