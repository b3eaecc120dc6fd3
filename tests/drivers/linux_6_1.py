# SPDX-License-Identifier: Apache-2.0
"""Linux 6.1."""

from .driver import INIT_LONG
from .linux import OFFERED_6_1, Linux


class Linux61(Linux):
    SOURCE = "Linux 6.1, fs/fuse/virtio_fs.c"
    MINOR = 37
    FLAGS = OFFERED_6_1
    INIT_BYTES = INIT_LONG
