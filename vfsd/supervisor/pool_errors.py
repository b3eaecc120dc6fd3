# SPDX-License-Identifier: Apache-2.0
"""The errors of a pool, which end that pool and not the supervisor."""

import contextlib
from collections.abc import Iterator

from vfsd.transport.errors import ProtocolError


class PoolDiedError(Exception):
    """The sandbox is gone, and with it every fd of the share."""


class StartLostError(PoolDiedError):
    """The launcher died while the pool started: the fault is not the pool's."""


class PoolTakenOverError(PoolDiedError):
    """The pool lives, and does what a pool of ours never does."""


@contextlib.contextmanager
def from_the_sandbox() -> Iterator[None]:
    """Turn every error in what the pool sent into a PoolTakenOverError: it ends that pool, and not
    the supervisor."""
    try:
        yield
    except (ProtocolError, LookupError, TypeError, ValueError, RecursionError) as error:
        raise PoolTakenOverError(f"the pool broke the protocol: {error}") from None
