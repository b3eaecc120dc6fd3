# SPDX-License-Identifier: Apache-2.0
"""virtiofsd with fake_pool.py in the place of its pool, and a keeper that does not pause.

`--pool=FILE` runs another pool of this folder, `--set=MODULE.NAME=NUMBER` changes a constant of a
module of the supervisor, and --pauses leaves the keeper unchanged.
"""

import importlib
import sys
from pathlib import Path

from vfsd.supervisor import keeper, launcher
from vfsd.supervisor.cli import main
from vfsd.supervisor.restart_policy import Restart, RestartPolicy


class HastyPolicy(RestartPolicy):
    def after_death(self, now: float) -> Restart | None:
        del now
        return Restart(0.0, "")


def run(pool: str) -> str:
    path = Path(__file__).with_name(pool)
    code = f"import runpy, sys; sys.path = {sys.path!r}; "
    return code + f"runpy.run_path({str(path)!r}, None, '__main__')"


def take(option: str) -> list[str]:
    """The values of an option of this file; the option is removed from virtiofsd's arguments."""
    found = [word for word in sys.argv if word.startswith(option)]
    sys.argv = [word for word in sys.argv if word not in found]
    return [word.removeprefix(option) for word in found]


for setting in take("--set="):
    name, _, value = setting.partition("=")
    module, _, constant = name.partition(".")
    constants = vars(importlib.import_module(f"vfsd.supervisor.{module}"))
    constants[constant] = type(constants[constant])(value)
(pool,) = take("--pool=") or ["fake_pool.py"]
launcher.POOL_COMMAND = (sys.executable, "-c", run(pool))
if not take("--pauses"):
    vars(keeper)["RestartPolicy"] = HastyPolicy
sys.exit(main())
