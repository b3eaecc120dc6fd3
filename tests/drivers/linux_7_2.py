# SPDX-License-Identifier: Apache-2.0
"""Linux 7.2."""

from .driver import INIT_LONG
from .linux import OFFERED_7_2, Linux


class Linux72(Linux):
    SOURCE = "Linux 7.2, fs/fuse/virtio_fs.c"
    MINOR = 45
    FLAGS = OFFERED_7_2
    INIT_BYTES = INIT_LONG
