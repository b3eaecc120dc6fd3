# SPDX-License-Identifier: Apache-2.0
"""virtiofsd with fake_pool.py in the place of its pool, and a keeper of endless patience."""

import sys
from pathlib import Path

from vfsd.supervisor import keeper, launcher
from vfsd.supervisor.cli import main
from vfsd.supervisor.restart_policy import RestartPolicy

FAKE_POOL = Path(__file__).with_name("fake_pool.py")
RUN = f"import runpy, sys; sys.path = {sys.path!r}; "
RUN += f"runpy.run_path({str(FAKE_POOL)!r}, None, '__main__')"


class PatientPolicy(RestartPolicy):
    def may_restart(self, now: float) -> bool:
        del now
        return True


launcher.POOL_COMMAND = (sys.executable, "-c", RUN)
if "--give-up" in sys.argv:
    sys.argv.remove("--give-up")
else:
    vars(keeper)["RestartPolicy"] = PatientPolicy
sys.exit(main())
