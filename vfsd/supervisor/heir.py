# SPDX-License-Identifier: Apache-2.0
"""The start of the next version, which is to take the place of a daemon that serves.

upgrade.py has the protocol. What a usual daemon opens, this daemon has inherited (succession.py) or
gets with the packet OFFER. The options are read again, so an upgrade also puts a changed --config
file into force. What the VM that is connected does not allow to change is refused, and the other
daemon goes on.
"""

import os
from dataclasses import replace

from vfsd.supervisor.cli import check_host, check_shared_dir, note_of_mount
from vfsd.supervisor.file_limit import has_handles, set_file_limit
from vfsd.supervisor.inode_limit import inode_limit
from vfsd.supervisor.kept_vm import Kept
from vfsd.supervisor.listener import inherited_listener
from vfsd.supervisor.options import Options
from vfsd.supervisor.serving import serve
from vfsd.supervisor.signals import hold_signals
from vfsd.supervisor.succession import HERITAGE, Heritage
from vfsd.supervisor.takeover import Takeover, report_failure
from vfsd.supervisor.version_link import VersionPacket, receive
from vfsd.transport.errors import OperatorError, ProtocolError
from vfsd.transport.native import lib
from vfsd.transport.passed_fds import close_fds


def take_place(options: Options) -> int:
    """Run the new version; returns the exit status."""
    heritage = Heritage.of_environment()
    assert heritage
    del os.environ[HERITAGE]
    try:
        return _take_place(options, heritage)
    except OperatorError as error:
        report_failure(heritage.socket, str(error))
        raise


def _take_place(options: Options, heritage: Heritage) -> int:
    try:
        offer = receive(heritage.socket)
    except ProtocolError as error:
        raise OperatorError(str(error)) from None
    if offer is None:
        return 0
    takeover, listening = _accept(offer, heritage, options)
    options = replace(options, shared_dir=_same_dir(options, heritage.root))
    check_host(options)
    hold_signals()
    listener = inherited_listener(options, listening, heritage.locks)
    notes = [note_of_mount(options, heritage.root), set_file_limit(options, heritage.root)]
    inodes = inode_limit(options, has_handles(options, heritage.root))
    options = replace(options, inode_limit=max(inodes, offer.content["inodes"]))
    lock = heritage.locks[-1] if options.keep_state and len(heritage.locks) > 1 else None
    kept = Kept(None, (), lock) if options.keep_state else None
    given = [*filter(None, notes)]
    return serve(options, heritage.root, listener, kept, given, takeover, heritage.key)


def _accept(
    offer: VersionPacket, heritage: Heritage, options: Options
) -> tuple[Takeover, int | None]:
    """Our view of an offer, and the fd of the listening socket. OperatorError if the options that
    are in force now do not fit the VM."""
    content, fds = offer.content, list(offer.fds)
    listening = fds.pop(0) if content["listens"] else None
    former, rings = fds if content["vm"] else (None, None)
    ours = (options.request_queues + 1, options.workers)
    if content["vm"] and ours != (content["queues"], content["workers"]):
        close_fds(fds)
        raise OperatorError(
            "--request-queues or --workers has changed; restart the daemon for that"
        )
    if content["vm"] and content["records"] != lib.VFSD_RECORDS_LAYOUT:
        close_fds(fds)
        raise OperatorError("the records of requests in flight have another layout; restart it")
    log_level = content.get("log_level") or options.log_level
    return Takeover(heritage.socket, heritage.user, former, rings, log_level), listening


def _same_dir(options: Options, root: int) -> str:
    """The path of the shared directory. OperatorError if the path leads to another directory than
    the directory that the guest has."""
    path = check_shared_dir(options)
    if not os.path.samestat(os.stat(path), os.fstat(root)):  # noqa: PTH116
        raise OperatorError(f"'{path}' is another directory by now; restart the daemon for that")
    return path
