# SPDX-License-Identifier: Apache-2.0
"""The consequences for the connection when a message of the front-end cannot be obeyed.

A front-end that asked for an acknowledgement gets "failed", whatever the message is. Without a
request for an acknowledgement there are two cases. If the running vrings remain as the front-end
believes them to be, the message is passed over, so that one message does not end a share. If the
front-end waits for an answer with content, or would go on with another device than it has set up,
the connection ends: otherwise a guest would hang, or read and write the wrong memory.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Final

from vfsd.supervisor.effects import Effect, Log, Reply
from vfsd.transport.errors import ProtocolError, SetupError
from vfsd.transport.vhost_user import MESSAGES, Header, Number, encode_reply
from vfsd.transport.vhost_user_payloads import U64, Inflight, Payload


class Fate(Enum):
    """What a refused message leads to if it does not ask for an acknowledgement."""

    PASSED_OVER = "passed over"
    ANSWERED = "answered with an error"
    ENDS = "ends the connection"


@dataclass(frozen=True)
class Refusal:
    """`answer`: the payload of the reply that says "failed" (ANSWERED only); None: no payload."""

    fate: Fate
    reason: str
    answer: Payload | None = None


def _table() -> dict[int, Refusal]:
    n = Number
    passed_over, answered, ends = Fate
    waits = "the VMM waits for an answer"
    elsewhere = "the VMM would have the vring elsewhere than the workers"
    rows = (
        (n.GET_FEATURES, ends, waits),
        (n.SET_FEATURES, ends, "the guest's driver would use other features than the workers"),
        (n.SET_OWNER, passed_over, "it changes nothing"),
        (n.RESET_OWNER, passed_over, "it is obsolete"),
        (n.SET_MEM_TABLE, ends, "the VMM has other memory where the old table has memory"),
        (n.SET_VRING_NUM, ends, elsewhere),
        (n.SET_VRING_ADDR, ends, elsewhere),
        (n.SET_VRING_BASE, ends, elsewhere),
        (n.GET_VRING_BASE, ends, waits),
        (n.SET_VRING_KICK, ends, "the vring would never start"),
        (n.SET_VRING_CALL, passed_over, "the vring keeps the eventfd that it has"),
        (n.SET_VRING_ERR, passed_over, "the vring keeps the eventfd that it has"),
        (n.GET_PROTOCOL_FEATURES, ends, waits),
        (n.SET_PROTOCOL_FEATURES, ends, "the VMM would use other messages than are understood"),
        (n.GET_QUEUE_NUM, ends, waits),
        (n.SET_VRING_ENABLE, ends, "the vring would never run, or never stop"),
        (n.GET_CONFIG, answered, "an answer without content is an error", None),
        (n.SET_CONFIG, passed_over, "the configuration is read-only"),
        (n.GET_INFLIGHT_FD, answered, "a record of no size says that there is none", NO_RECORD),
        (n.SET_INFLIGHT_FD, passed_over, "the workers have records of their own"),
        (n.RESET_DEVICE, ends, "the guest would find the device as it left it"),
        (n.GET_MAX_MEM_SLOTS, ends, waits),
        (n.ADD_MEM_REG, passed_over, "only requests in that memory fail"),
        (n.REM_MEM_REG, passed_over, "no request is in memory that the guest has lost"),
    )
    return {row[0].value: Refusal(*row[1:]) for row in rows}


NO_RECORD: Final = Inflight(0, 0, 0, 0)
REFUSALS: Final = _table()


def refuse(header: Header, error: ProtocolError, wants_ack: bool) -> list[Effect]:
    """The effects of a message that cannot be obeyed; raises `error` if it ends the connection."""
    kind = MESSAGES.get(header.number)
    refused = Log("error", f"refused: {error}")
    if wants_ack and not (kind and kind.reply):
        return [refused, Reply(encode_reply(header.number, U64(1)))]
    refusal = REFUSALS.get(header.number)
    if refusal is None or refusal.fate is Fate.ENDS or isinstance(error, SetupError):
        raise error
    if refusal.fate is Fate.ANSWERED:
        return [refused, Reply(encode_reply(header.number, refusal.answer))]
    return [Log("warn", f"{error}; passed over: {refusal.reason}")]
