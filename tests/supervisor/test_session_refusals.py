# SPDX-License-Identifier: Apache-2.0
"""The session: memory that is not shared, eventfds that get lost, and messages that cannot be
obeyed."""

import pytest

from vfsd.supervisor.effects import Effect, Log, Prepare, Reply
from vfsd.supervisor.refusal import REFUSALS
from vfsd.supervisor.session import FEATURES, Session
from vfsd.transport.errors import ProtocolError, SetupError
from vfsd.transport.vhost_user import MESSAGES, Header, Number, ProtocolFeature
from vfsd.transport.vhost_user_payloads import U64, MemoryRegion, Region, VringFd, VringState

from .conversation import HIGH, LOW, driver_ok, negotiated, stop

N = Number


@pytest.mark.parametrize(
    ("shared", "what"), [((), "no memory"), ((HIGH,), "not all of its memory")]
)
def test_a_vring_in_memory_that_is_not_shared_is_refused(
    shared: tuple[Region, ...], what: str
) -> None:
    """The vring is refused when it is to run, not before: a front-end may send its memory last."""
    talk = negotiated()
    talk.say(N.SET_FEATURES, U64(FEATURES))
    for region in shared:
        talk.say(N.ADD_MEM_REG, MemoryRegion(region), 1)
    talk.start(1)
    before = talk.session.snapshot()
    complaint = f"^the VMM shares {what} with virtiofsd; QEMU needs memory-backend-.*share=on"
    with pytest.raises(SetupError, match=complaint):
        talk.say(N.SET_VRING_ENABLE, VringState(1, 1))
    assert talk.session.snapshot() == before
    talk.say(N.ADD_MEM_REG, MemoryRegion(LOW), 1)
    talk.say(N.SET_VRING_ENABLE, VringState(1, 1))
    assert talk.running() == [1]


def test_a_vring_that_is_enabled_first_needs_memory_when_it_starts() -> None:
    talk = negotiated()
    talk.say(N.SET_FEATURES, U64(FEATURES))
    talk.say(N.SET_VRING_ENABLE, VringState(1, 1))
    with pytest.raises(SetupError, match=r"^the VMM shares no memory"):
        talk.start(1)


def test_a_vring_whose_memory_is_away_may_be_enabled_again() -> None:
    """Regions come and go under a vring that runs, and the VMM stays connected."""
    talk = negotiated()
    driver_ok(talk)
    talk.say(N.REM_MEM_REG, MemoryRegion(LOW))
    assert talk.ack(N.SET_VRING_ENABLE, VringState(1, 1)) == 0
    talk.say(N.ADD_MEM_REG, MemoryRegion(LOW), 1)
    assert talk.running() == [0, 1, 2]


@pytest.mark.parametrize(
    ("number", "name"),
    [(N.SET_VRING_KICK, "kick_fd"), (N.SET_VRING_CALL, "call_fd"), (N.SET_VRING_ERR, "err_fd")],
)
def test_a_vring_keeps_its_eventfd_where_another_gets_lost(number: Number, name: str) -> None:
    talk = negotiated()
    driver_ok(talk)
    before = getattr(talk.session.vrings[1], name)
    assert before is not None
    (log,) = [e for e in talk.say(number, VringFd(1, True)) if not isinstance(e, Prepare)]
    assert log == Log(
        "warn",
        f"{number.name} for vring 1 came without its eventfd;"
        " the vring keeps its present eventfd, or none",
    )
    assert talk.ack(number, VringFd(1, True)) == 1
    assert getattr(talk.session.vrings[1], name) == before
    assert talk.running() == [0, 1, 2]


def test_a_vring_starts_without_an_eventfd_for_kicks() -> None:
    talk = negotiated()
    driver_ok(talk)
    stop(talk)
    driver_ok(talk, queues=1)
    talk.say(N.GET_VRING_BASE, VringState(0, 0))
    talk.say(N.SET_VRING_KICK, VringFd(0, True))
    (vring,) = talk.session.device.vrings
    assert vring.kick_fd is None


def refuse(session: Session, number: int, flags: int) -> list[Effect] | None:
    """The effects of a refused message; None if the connection ends."""
    try:
        return session.refuse(Header(number, flags, 8), ProtocolError("why"))
    except ProtocolError:
        return None


def test_a_failure_is_acknowledged_only_where_that_was_agreed() -> None:
    session = Session(2)
    assert refuse(session, N.SET_VRING_NUM, 0x9) is None
    session.protocol_features = ProtocolFeature.REPLY_ACK
    assert refuse(session, N.SET_VRING_NUM, 0x1) is None
    assert refuse(session, N.GET_VRING_BASE, 0x9) is None
    nack = Reply(bytes.fromhex("63000000 05000000 08000000 0100000000000000"))
    assert refuse(session, 99, 0x9) == [Log("error", "refused: why"), nack]
    assert refuse(session, 99, 0x1) is None


def test_each_message_has_a_refusal() -> None:
    assert sorted(REFUSALS) == sorted(MESSAGES)


def test_a_vring_that_nobody_serves_is_not_passed_over() -> None:
    session = Session(2)
    assert refuse(session, N.SET_VRING_CALL, 0x1)
    with pytest.raises(SetupError):
        session.refuse(Header(N.SET_VRING_CALL, 0x1, 8), SetupError("why"))
