# SPDX-License-Identifier: Apache-2.0
"""The session, with messages in the orders that front-ends use and in any other order."""

import json
from collections.abc import Sequence

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from vfsd.supervisor.effects import (
    ORDER,
    Apply,
    Close,
    Device,
    Effect,
    EndFuseSession,
    Log,
    Prepare,
    Reply,
    ReplyBase,
    ReplyInflight,
    decode_effect,
    encode_effect,
)
from vfsd.supervisor.inflight_record import inflight_bytes
from vfsd.supervisor.session import FEATURES, PROTOCOL_FEATURES, Session
from vfsd.transport.errors import ProtocolError
from vfsd.transport.vhost_user import Number, ProtocolFeature, VirtioFeature
from vfsd.transport.vhost_user_payloads import (
    U64,
    Config,
    Inflight,
    MemoryRegion,
    MemoryTable,
    Payload,
    Region,
    VringAddr,
    VringFd,
    VringState,
)

from .conversation import HIGH, LOW, Conversation, driver_ok, negotiated, stop

N = Number


def test_qemu_boots_reboots_and_goes_away() -> None:
    talk = negotiated()
    for starts in (1, 2):
        driver_ok(talk)
        device = talk.session.device
        assert talk.running() == [0, 1, 2]
        assert [region for region, _ in device.regions] == [LOW, HIGH]
        assert {vring.starts for vring in device.vrings} == {starts}
        stop(talk)
        assert talk.session.device == Device()
    assert set(talk.session.fds()) == talk.open


def test_nothing_reaches_the_workers_before_a_vring_runs() -> None:
    talk = negotiated()
    driver_ok(talk, queues=0)
    for index in range(3):
        talk.start(index)
        assert talk.session.device == Device()
        assert Prepare(index) in talk.effects


def test_reset_keeps_memory_features_call_and_err() -> None:
    talk = negotiated()
    driver_ok(talk)
    before = talk.session.snapshot()
    talk.ack(N.RESET_DEVICE)
    assert EndFuseSession() in talk.effects
    after = talk.session.snapshot()
    assert talk.applies()
    assert (after["memory"], after["features"]) == (before["memory"], before["features"])
    for old, new in zip(before["vrings"], after["vrings"], strict=True):
        assert (new["call_fd"], new["err_fd"]) == (old["call_fd"], old["err_fd"])
        assert (new["kick_fd"], new["started"], new["enabled"]) == (None, False, False)


def test_an_old_fd_is_closed_after_the_workers_gave_it_up() -> None:
    talk = negotiated()
    driver_ok(talk)
    old = talk.session.device.vrings[1].call_fd
    assert old is not None
    effects = talk.say(N.SET_VRING_CALL, VringFd(1, True), 1, need_reply=True)
    assert [type(effect) for effect in effects] == [Apply, Close, Reply]
    assert effects[1] == Close((old,))
    assert talk.session.device.vrings[1].call_fd != old


def test_cloud_hypervisor_restores_its_inflight_record() -> None:
    talk = Conversation()
    talk.say(N.GET_FEATURES)
    talk.say(N.GET_PROTOCOL_FEATURES)
    wanted = ProtocolFeature.MQ | ProtocolFeature.REPLY_ACK | ProtocolFeature.INFLIGHT_SHMFD
    talk.say(N.SET_PROTOCOL_FEATURES, U64(wanted | ProtocolFeature.CONFIGURE_MEM_SLOTS))
    talk.say(N.SET_OWNER, need_reply=True)
    talk.say(N.SET_FEATURES, U64(FEATURES), need_reply=True)
    assert talk.ack(N.SET_MEM_TABLE, MemoryTable((LOW, HIGH)), 2) == 0
    (effect,) = talk.say(N.GET_INFLIGHT_FD, Inflight(0, 0, 3, 128))
    assert effect == ReplyInflight(Inflight(3 * inflight_bytes(128), 0, 3, 128))
    assert talk.ack(N.SET_INFLIGHT_FD, Inflight(3 * inflight_bytes(128), 0, 3, 128), 1) == 0
    for index in range(3):
        talk.start(index, need_reply=True)
        talk.say(N.SET_VRING_CALL, VringFd(index, True), 1, need_reply=True)
        assert talk.ack(N.SET_VRING_ENABLE, VringState(index, 1)) == 0
    offsets = [vring.inflight_offset for vring in talk.session.device.vrings]
    assert offsets == [0, inflight_bytes(128), 2 * inflight_bytes(128)]
    assert {vring.inflight_fd for vring in talk.session.device.vrings} == {talk.session.fds()[2]}


def test_with_a_tag_unknown_protocol_features_are_refused_too() -> None:
    with pytest.raises(ProtocolError, match="bits 0x200000 were not offered"):
        Conversation(tag="x").say(N.SET_PROTOCOL_FEATURES, U64(1 << 21))


def test_crosvm_reads_the_configuration_and_asks_for_no_acknowledgement() -> None:
    talk = Conversation(queues=5, tag="share")
    talk.say(N.SET_OWNER)
    talk.say(N.GET_FEATURES)
    offered = talk.ask(N.GET_PROTOCOL_FEATURES)
    assert isinstance(offered, U64)
    assert offered.value & ProtocolFeature.CONFIG
    talk.say(N.SET_PROTOCOL_FEATURES, U64(ProtocolFeature.MQ | ProtocolFeature.CONFIG))
    assert talk.ask(N.GET_QUEUE_NUM) == U64(5)
    config = talk.ask(N.GET_CONFIG, Config(0, 40, 1, bytes(40)))
    assert config == Config(0, 40, 1, b"share".ljust(36, b"\0") + b"\4\0\0\0")
    talk.say(N.SET_FEATURES, U64(FEATURES))
    talk.say(N.SET_MEM_TABLE, MemoryTable((LOW, HIGH)), 2, need_reply=True)
    assert not talk.effects
    for index in range(5):
        talk.start(index)
        talk.say(N.SET_VRING_ENABLE, VringState(index, 1))
    assert talk.running() == [0, 1, 2, 3, 4]


def test_without_protocol_features_a_vring_runs_at_its_kick() -> None:
    talk = Conversation()
    talk.say(N.SET_FEATURES, U64(VirtioFeature.VERSION_1))
    talk.say(N.SET_MEM_TABLE, MemoryTable((LOW,)), 1)
    talk.start(1)
    assert talk.applies()
    assert talk.running() == [1]


def test_a_vring_pauses_while_its_memory_is_away() -> None:
    talk = negotiated()
    driver_ok(talk)
    assert talk.ack(N.REM_MEM_REG, MemoryRegion(LOW)) == 0
    assert talk.running() == []
    assert talk.session.draining() == [0, 1, 2]
    assert talk.ack(N.ADD_MEM_REG, MemoryRegion(LOW), 1) == 0
    assert talk.running() == [0, 1, 2]
    assert {vring.starts for vring in talk.session.device.vrings} == {2}


def test_a_region_is_removed_whatever_its_offset() -> None:
    talk = negotiated()
    driver_ok(talk)
    moved = Region(HIGH.gpa, HIGH.size, HIGH.uva, 0)
    effects = talk.say(N.REM_MEM_REG, MemoryRegion(moved), 1)  # a broken peer adds an fd
    assert [len(effect.fds) for effect in effects if isinstance(effect, Close)] == [2]
    with pytest.raises(ProtocolError, match="there is no region"):
        talk.say(N.REM_MEM_REG, MemoryRegion(HIGH))


def test_writing_the_configuration_is_refused_without_disconnecting() -> None:
    talk = negotiated(tag="share")
    assert talk.ack(N.SET_CONFIG, Config(0, 1, 0, b"x")) == 1
    (effect,) = talk.say(N.SET_CONFIG, Config(0, 1, 0, b"x"))
    assert isinstance(effect, Log)
    (reply,) = talk.say(N.GET_CONFIG, Config(200, 100, 0, bytes(100)))
    assert isinstance(reply, Reply)
    assert len(reply.data) == 12  # a reply without a payload is an error


A_RING = VringAddr(1, 0, LOW.uva, LOW.uva + 0x2000, LOW.uva + 0x1000, 0)
HUGE = Region(1 << 40, (1 << 63) + 1, 1 << 63, 0)
WRONG = [
    (N.SET_FEATURES, U64(1 << 40), 0, "were not offered"),
    (N.SET_FEATURES, U64(int(VirtioFeature.VERSION_1)), 0, "while a vring is started"),
    (N.SET_PROTOCOL_FEATURES, U64(1 << 21), 0, "were not offered"),
    (N.SET_VRING_NUM, VringState(1, 64), 0, "vring 1 is started"),
    (N.SET_VRING_NUM, VringState(3, 64), 0, "larger --request-queues"),
    (N.SET_VRING_NUM, VringState(2, 100), 0, "size is 100; expected a power of 2"),
    (N.SET_VRING_NUM, VringState(2, 0), 0, "size is 0; expected a power of 2"),
    (N.SET_VRING_NUM, VringState(2, 65536), 0, "size is 65536; expected a power of 2"),
    (N.SET_VRING_BASE, VringState(2, 65536), 0, "index is 65536; expected at most 65535"),
    (N.SET_VRING_ADDR, A_RING, 0, "moves vring 1"),
    (N.SET_VRING_ADDR, VringAddr(2, 1, 0, 0, 0, 0), 0, "dirty logging"),
    (N.SET_VRING_ADDR, VringAddr(2, 0, 8, 0, 0, 0), 0, "not aligned"),
    (N.SET_VRING_ADDR, VringAddr(2, 0, 0, 2, 0, 0), 0, "not aligned"),
    (N.SET_VRING_ADDR, VringAddr(2, 0, 2**64 - 16, 0, 0, 0), 0, "wraps"),
    (N.SET_VRING_KICK, VringFd(2, True), 1, "no size or no addresses"),
    (N.SET_VRING_CALL, VringFd(200, True), 1, "larger --request-queues"),
    (N.GET_VRING_BASE, VringState(77, 0), 0, "this device has queues 0 to 2"),
    (N.SET_VRING_ENABLE, VringState(1, 2), 0, "num is 2; expected 0 or 1"),
    (N.SET_MEM_TABLE, MemoryTable((LOW, LOW)), 2, "overlap"),
    (N.ADD_MEM_REG, MemoryRegion(Region(1, 1, 1, 1)), 1, "overlap"),
    (N.ADD_MEM_REG, MemoryRegion(HUGE), 1, "wraps"),
    (N.ADD_MEM_REG, MemoryRegion(Region(1 << 40, 0, 0, 0)), 1, "empty"),
    (N.GET_INFLIGHT_FD, Inflight(0, 0, 4, 128), 0, "num_queues is 4; this device has 3"),
    (N.GET_INFLIGHT_FD, Inflight(0, 0, 1, 0), 0, "queue_size is 0"),
    (N.SET_INFLIGHT_FD, Inflight(64, 0, 1, 128), 1, "mmap_size is 64; its queues need 2112"),
    (N.SET_INFLIGHT_FD, Inflight(2**63, 2**63, 1, 128), 1, "wraps"),
    (N.SET_INFLIGHT_FD, Inflight(1 << 20, 0, 1, 128), 1, "while a vring is started"),
    (N.GET_CONFIG, Config(0, 1, 0, b"x"), 0, "CONFIG is needed"),
]


@pytest.mark.parametrize(("number", "payload", "fds", "complaint"), WRONG)
def test_what_cannot_be_obeyed_changes_nothing(
    number: Number, payload: Payload, fds: int, complaint: str
) -> None:
    talk = negotiated()
    driver_ok(talk, queues=2)
    before = talk.session.snapshot()
    with pytest.raises(ProtocolError, match=complaint):
        talk.say(number, payload, fds)
    assert talk.session.snapshot() == before


@pytest.mark.parametrize("number", [N.SET_VRING_NUM, N.SET_VRING_ENABLE, N.GET_VRING_BASE])
def test_vrings_are_not_set_up_before_the_features(number: Number) -> None:
    with pytest.raises(ProtocolError, match="before SET_FEATURES"):
        Conversation().say(number, VringState(0, 1))


EFFECTS: Sequence[Effect] = (
    Log("warn", "text"),
    Prepare(3),
    Apply(),
    EndFuseSession(),
    Close((4, 5)),
    Reply(b"\0\1\xff"),
    ReplyBase(2),
    ReplyInflight(Inflight(1, 2, 3, 4, 20)),
)


@pytest.mark.parametrize("effect", EFFECTS)
def test_effects_survive_being_stored(effect: Effect) -> None:
    assert decode_effect(json.loads(json.dumps(encode_effect(effect)))) == effect
    assert {type(effect) for effect in EFFECTS} == set(ORDER)


indexes = st.integers(0, 3)  # there are three vrings, so 3 is wrong
uvas = st.sampled_from([LOW.uva, LOW.uva + 0x8000, LOW.uva + LOW.size - 16, HIGH.uva, 0])
some_regions = st.sampled_from([LOW, HIGH, Region(LOW.gpa, 4096, LOW.uva, 0)])


class AnyOrder(RuleBasedStateMachine):
    """Messages in any order; the invariants of session.py hold after each of them."""

    def __init__(self) -> None:
        super().__init__()
        self.talk = Conversation()
        self.talk.say(N.SET_PROTOCOL_FEATURES, U64(PROTOCOL_FEATURES))

    def try_to_say(self, number: Number, payload: Payload | None = None, fds: int = 0) -> None:
        before = self.talk.session.snapshot()
        device = self.talk.session.device
        try:
            effects = self.talk.say(number, payload, fds, need_reply=True)
        except ProtocolError:
            assert self.talk.session.snapshot() == before
            return
        places = [ORDER.index(type(effect)) for effect in effects]
        assert places == sorted(places)
        assert sum(isinstance(e, Reply | ReplyBase | ReplyInflight) for e in effects) == 1
        assert (Apply() in effects) == (device != self.talk.session.device)

    @rule(bits=st.sampled_from([FEATURES, FEATURES & ~VirtioFeature.PROTOCOL_FEATURES, 1]))
    def features(self, bits: int) -> None:
        self.try_to_say(N.SET_FEATURES, U64(bits))

    @rule(regions=st.lists(some_regions, max_size=3))
    def mem_table(self, regions: list[Region]) -> None:
        self.try_to_say(N.SET_MEM_TABLE, MemoryTable(tuple(regions)), len(regions))

    @rule(region=some_regions, add=st.booleans())
    def mem_reg(self, region: Region, add: bool) -> None:
        self.try_to_say(N.ADD_MEM_REG if add else N.REM_MEM_REG, MemoryRegion(region), int(add))

    @rule(index=indexes, size=st.sampled_from([1, 128, 100, 32768]))
    def num(self, index: int, size: int) -> None:
        self.try_to_say(N.SET_VRING_NUM, VringState(index, size))

    @rule(index=indexes, desc=uvas, avail=uvas, used=uvas)
    def addr(self, index: int, desc: int, avail: int, used: int) -> None:
        self.try_to_say(N.SET_VRING_ADDR, VringAddr(index, 0, desc, used, avail, 0))

    @rule(number=st.sampled_from([N.SET_VRING_KICK, N.SET_VRING_CALL, N.SET_VRING_ERR]),
          index=indexes, has_fd=st.booleans())  # fmt: skip
    def eventfd(self, number: Number, index: int, has_fd: bool) -> None:
        self.try_to_say(number, VringFd(index, has_fd), int(has_fd))

    @rule(number=st.sampled_from([N.SET_VRING_ENABLE, N.SET_VRING_BASE, N.GET_VRING_BASE]),
          index=indexes, num=st.integers(0, 2))  # fmt: skip
    def state(self, number: Number, index: int, num: int) -> None:
        self.try_to_say(number, VringState(index, num))

    @rule(number=st.sampled_from([N.RESET_DEVICE, N.RESET_OWNER, N.GET_QUEUE_NUM]))
    def reset(self, number: Number) -> None:
        self.try_to_say(number)

    @rule(size=st.sampled_from([64, 1 << 20]), queues=st.integers(0, 4))
    def inflight(self, size: int, queues: int) -> None:
        self.try_to_say(N.SET_INFLIGHT_FD, Inflight(size, 0, queues, 128), 1)

    @rule()
    def start_all(self) -> None:
        """Start vrings as a front-end does, so that the search often has vrings that run."""
        self.try_to_say(N.SET_FEATURES, U64(FEATURES))
        self.try_to_say(N.SET_MEM_TABLE, MemoryTable((LOW, HIGH)), 2)
        for index in range(3):
            self.try_to_say(N.SET_VRING_NUM, VringState(index, 128))
            addr = VringAddr(index, 0, LOW.uva, LOW.uva + 0x2000, LOW.uva + 0x1000, 0)
            self.try_to_say(N.SET_VRING_ADDR, addr)
            self.try_to_say(N.SET_VRING_KICK, VringFd(index, True), 1)
            self.try_to_say(N.SET_VRING_ENABLE, VringState(index, 1))

    @invariant()
    def a_vring_runs_only_with_everything_it_needs(self) -> None:
        session = self.talk.session
        for vring in session.device.vrings:
            state = session.vrings[vring.index]
            assert session.features is not None
            assert state.started
            assert state.enabled
            for uva, size in state.areas():
                assert any(region.contains_uva(uva, size) for region, _ in session.device.regions)

    @invariant()
    def each_fd_has_one_owner(self) -> None:
        owned = self.talk.session.fds()
        assert len(owned) == len(set(owned))
        assert set(owned) == self.talk.open
        assert self.talk.session.device.fds() <= set(owned)

    @invariant()
    def another_supervisor_gets_an_equal_session(self) -> None:
        session = self.talk.session
        again = Session.restore(json.loads(json.dumps(session.snapshot())))
        assert again.snapshot() == session.snapshot()
        assert again.device == session.device


AnyOrder.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
TestAnyOrder = AnyOrder.TestCase
