# SPDX-License-Identifier: Apache-2.0
"""What the programs of operators and a daemon say to each other, over a zmq socket.

Each instance has one ipc socket, SOCKET_NAME in its runtime folder. A client with a DEALER socket
sends requests, and gets one reply to each of them: JSON objects, one frame each. A client with a
SUB socket gets the lines of the log as long as it is connected: each message is the topic, a space,
and a JSON object.

A request has "version", an "id" that its reply repeats, "request" (one of REQUESTS), and what the
request needs. A reply has "version", "id", and "result" or "error", a text for people. Fields that
a reader does not know are ignored, so fields can be added without another version.
"""

from typing import Any, Final

from vfsd.transport.control_messages import decode_object, encode_object
from vfsd.transport.errors import ProtocolError

VERSION: Final = 1
SOCKET_NAME: Final = "control"
UPGRADE_SOCKET_NAME: Final = "upgrade"  # beside it: see upgrade_requests.py
REPLY_MAX: Final = 1 << 20  # bytes; a request has at most control_messages.MAX_MESSAGE
LOG_TOPIC: Final = b"log"

# The requests, and what each needs besides.
REQUESTS: Final = {
    "status": (),
    "counters": (),
    "recent-log": (),
    "set-log-level": ("level",),
    "restart-worker": ("slot",),
    "stop": (),
}


def encode_request(number: int, request: str, arguments: dict[str, Any]) -> bytes:
    return encode_object({"version": VERSION, "id": number, "request": request, **arguments})


def decode_request(data: bytes) -> tuple[int, str, dict[str, Any]]:
    """Id, request and arguments; ProtocolError if a client of ours would not send this."""
    content = decode_object(data)
    number, request = content.get("id"), content.get("request")
    if content.get("version") != VERSION:
        raise ProtocolError(f"a request is not of version {VERSION}")
    if type(number) is not int or not 0 <= number < 1 << 63:
        raise ProtocolError("the id of a request is not a number")
    if not isinstance(request, str) or request not in REQUESTS:
        raise ProtocolError("there is no such request")
    arguments = {name: content.get(name) for name in REQUESTS[request]}
    return number, request, arguments


def encode_reply(number: int, **outcome: Any) -> bytes:
    """`outcome`: result= or error=."""
    return encode_object({"version": VERSION, "id": number, **outcome})


def encode_published(topic: bytes, content: dict[str, Any]) -> bytes:
    return topic + b" " + encode_object(content)
