# SPDX-License-Identifier: Apache-2.0
"""`vfsd logs`: the log of a daemon, wherever it is written to."""

import argparse
import json
import time
from dataclasses import asdict
from typing import Final

from vfsd.control.model import LogRecord
from vfsd.tool import instance_options as common

SUMMARY: Final = "show the latest lines of a daemon's log, and follow it"


def add_options(parser: argparse.ArgumentParser) -> None:
    common.add_common(parser)
    parser.add_argument("--json", action="store_true", help="write one JSON object for each line")
    parser.add_argument("-f", "--follow", action="store_true", help="show new lines until SIGINT")
    common.add_optional_instance(parser)


def run(options: argparse.Namespace) -> int:
    """Show; the lines are those since the supervisor was started."""
    with common.connected(options, common.chosen(options)) as client:
        for line in client.recent_log():
            _print(line, options.json)
        if options.follow:
            try:
                for line in client.follow_log():
                    _print(line, options.json)
            except KeyboardInterrupt:
                return 0
    return 0


def _print(line: LogRecord, is_json: bool) -> None:
    if is_json:
        print(json.dumps(asdict(line)), flush=True)
        return
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(line.time))
    source = f"{line.source}: " if line.source else ""
    print(f"{at} {line.level:<5} {source}{line.text}", flush=True)
