# SPDX-License-Identifier: Apache-2.0
"""The signals by which a terminal, a service manager or an operator ends a program."""

import signal
from typing import Final

ENDING: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
