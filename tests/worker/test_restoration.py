# SPDX-License-Identifier: Apache-2.0
"""What the log says of a session that goes on in another sandbox."""

from typing import Any

from vfsd.transport.native import ffi, lib
from vfsd.worker.restoration import describe_report


def test_each_loss_has_a_line_and_the_summary_has_the_numbers() -> None:
    report: Any = ffi.new("struct restore_report *")
    report.nodes, report.files = 7, 3
    for at, kind in enumerate((lib.LOSS_NODE, lib.LOSS_FILE, lib.LOSS_LOCK)):
        report.lost[kind] = at + 1
        report.losses[at].kind, report.losses[at].ino = kind, 10 + at
    report.losses[1].error = -13
    report.loss_count = 3
    summary, node, file, lock = describe_report(bytes(ffi.buffer(report)))
    assert "7 files are known again, 3 are open again; 3 are lost; locks are lost on 3" in summary
    assert node.endswith("the file with inode 10 on device 0:0 is not where the guest saw it last")
    assert file.endswith("inode 11 on device 0:0 cannot be opened again (Permission denied)")
    assert lock.endswith("a lock on the file with inode 12 on device 0:0 cannot be taken again")
