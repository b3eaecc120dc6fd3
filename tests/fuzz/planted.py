# SPDX-License-Identifier: Apache-2.0
"""The target `session` with a mistake planted in the product; a search must find it in seconds."""

from vfsd.transport.vhost_user_payloads import VringFd


def _unpack_with_mistake(data: bytes) -> VringFd:
    """As VringFd.unpack, but an empty payload is an IndexError and not a ProtocolError."""
    return VringFd(data[0], True)


VringFd.unpack = _unpack_with_mistake  # type: ignore[method-assign]

from tests.fuzz.session import run  # noqa: E402 - after the mistake is planted

__all__ = ["run"]
