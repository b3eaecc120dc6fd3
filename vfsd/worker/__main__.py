# SPDX-License-Identifier: Apache-2.0
"""`python -m vfsd.worker SOCKET JOB DIRECTORY` (fds): see pool_start.py."""

import sys

from vfsd import lean_start

if __name__ == "__main__":
    lean_start.load_seldom_used_later()
    from vfsd.worker.pool_start import main

    sys.exit(main(sys.argv[1:]))
