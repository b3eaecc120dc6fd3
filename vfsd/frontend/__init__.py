# SPDX-License-Identifier: Apache-2.0
"""The other side of the socket: a small VMM and virtio driver for `vfsd mount` and the tests."""
