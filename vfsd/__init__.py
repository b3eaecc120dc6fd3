# SPDX-License-Identifier: Apache-2.0
"""vfsd: a virtio-fs daemon with one sandboxed worker process per request queue."""

__version__ = "0.1.0"
