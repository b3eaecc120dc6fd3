# SPDX-License-Identifier: Apache-2.0
"""Operators and a running daemon: vfsd/control, and the part of the supervisor that answers."""
