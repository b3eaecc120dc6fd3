# SPDX-License-Identifier: Apache-2.0
"""The benchmark: loads for a virtio-fs back-end, the rows of a comparison, and its report."""
