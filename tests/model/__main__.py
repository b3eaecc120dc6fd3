# SPDX-License-Identifier: Apache-2.0
"""Print the table of docs/deaths.md: python -m tests.model"""

from .table import table

print(table())
