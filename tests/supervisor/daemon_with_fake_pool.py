# SPDX-License-Identifier: Apache-2.0
"""virtiofsd with fake_pool.py in the place of its pool."""

import sys
from pathlib import Path

from vfsd.supervisor import pool_client
from vfsd.supervisor.cli import main

FAKE_POOL = Path(__file__).with_name("fake_pool.py")
RUN = f"import runpy, sys; sys.path = {sys.path!r}; "
RUN += f"runpy.run_path({str(FAKE_POOL)!r}, None, '__main__')"

pool_client.POOL_COMMAND = (sys.executable, "-c", RUN)
sys.exit(main())
