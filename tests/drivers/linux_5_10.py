# SPDX-License-Identifier: Apache-2.0
"""Linux 5.10."""

from .linux import OFFERED_5_10, Linux


class Linux510(Linux):
    SOURCE = "Linux 5.10, fs/fuse/virtio_fs.c"
    MINOR = 32
    FLAGS = OFFERED_5_10
