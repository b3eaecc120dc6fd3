# SPDX-License-Identifier: Apache-2.0
"""Linux 5.4."""

from .linux import OFFERED_5_4, Linux


class Linux54(Linux):
    SOURCE = "Linux 5.4, fs/fuse/virtio_fs.c"
    MINOR = 31
    FLAGS = OFFERED_5_4
