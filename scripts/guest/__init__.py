# SPDX-License-Identifier: Apache-2.0
"""A Linux guest in QEMU, made from Debian's packages, that mounts shared directories.

``packages`` fetches, ``initramfs`` packs, ``machine`` boots, ``daemon`` starts the back-end,
``check`` is the scripted session of ``scripts/demo --check``.
"""
