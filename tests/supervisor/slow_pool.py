# SPDX-License-Identifier: Apache-2.0
"""fake_pool.py as on a slow host: it is not ready while the share has a file `slow`."""

import time
from pathlib import Path

from tests.supervisor import fake_pool


class SlowPool(fake_pool.FakePool):
    def run(self) -> None:
        slow = Path(self.job["shared_dir"]) / "slow"
        while slow.exists():
            time.sleep(0.02)
        super().run()


if __name__ == "__main__":
    vars(fake_pool)["FakePool"] = SlowPool
    fake_pool.main()
