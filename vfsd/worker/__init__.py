# SPDX-License-Identifier: Apache-2.0
"""One sandboxed pool: isolation, the worker processes, the request path."""
