# SPDX-License-Identifier: Apache-2.0
"""Linux 7.4."""

from .driver import INIT_LONG
from .linux import OFFERED_7_2, Linux


class Linux74(Linux):
    SOURCE = "Linux 7.4, fs/fuse/virtio_fs.c"
    MINOR = 46
    FLAGS = OFFERED_7_2
    INIT_BYTES = INIT_LONG
