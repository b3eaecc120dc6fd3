# SPDX-License-Identifier: Apache-2.0
"""The entry point of the virtiofsd command; the command itself is in supervisor/cli.py."""

import sys

from vfsd import lean_start


def main() -> int:
    lean_start.load_seldom_used_later()
    from vfsd.supervisor import cli  # noqa: PLC0415 - after the stand-ins are in place

    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
