# SPDX-License-Identifier: Apache-2.0
"""Linux 6.12."""

from .driver import INIT_LONG
from .linux import OFFERED_6_12, Linux


class Linux612(Linux):
    SOURCE = "Linux 6.12, fs/fuse/virtio_fs.c"
    MINOR = 41
    FLAGS = OFFERED_6_12
    INIT_BYTES = INIT_LONG
