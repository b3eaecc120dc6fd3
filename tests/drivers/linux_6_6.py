# SPDX-License-Identifier: Apache-2.0
"""Linux 6.6."""

from .driver import INIT_LONG
from .linux import OFFERED_6_6, Linux


class Linux66(Linux):
    SOURCE = "Linux 6.6, fs/fuse/virtio_fs.c"
    MINOR = 39
    FLAGS = OFFERED_6_6
    INIT_BYTES = INIT_LONG
