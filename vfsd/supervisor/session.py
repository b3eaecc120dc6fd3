# SPDX-License-Identifier: Apache-2.0
"""The vhost-user session: messages in, effects out.

THEORY

Purpose. One Session is one front-end connection, from accept to close: what was negotiated, the
memory table, and for each vring its addresses, eventfds and whether it runs. It decides; it does
no I/O and knows no sockets, processes or clocks. So every order of messages can be tried without a
socket, and a supervisor that is created again goes on from snapshot().

Actors. The front-end (VMM) sends messages. The service carries out the effects, in their order,
and passes on nothing further until it is done: Apply makes the pool and every worker work with the
Device, and reports where vrings stopped (note_base); Close closes fds; the Reply kinds answer.

Device. What workers have to know, and no more: as long as no vring runs it is empty, so the
handshake costs no round trip to them. A vring of the Device is one that runs.

States of a vring; leaving a state is by message only.

  stopped   after accept, GET_VRING_BASE, RESET_DEVICE, RESET_OWNER. Nothing of it may be touched.
            NUM, ADDR, BASE are accepted, CALL and ERR in every state.
  started   SET_VRING_KICK came, and NUM and ADDR before it. NUM and BASE are refused, ADDR may
            only repeat what it was.
  running   started, enabled (SET_VRING_ENABLE 1, or SET_FEATURES without PROTOCOL_FEATURES), and
            its three areas lie inside the memory table. QEMU takes regions away and adds them
            again under a live vring; one whose areas are gone is paused until they are back.

RESET_DEVICE ends the FUSE session too: the guest's driver has gone, and others wait for its locks.
GET_VRING_BASE of all vrings does not: a guest that was paused goes on with its open files. QEMU
before 8.2 sends no more than that for a reset; the next INIT ends the session then.

Invariants.
  * No order of messages makes a vring run without memory, features, size and addresses.
  * Every fd in the state is owned by the session and is there once. A message's fds become the
    session's when handle() returns; if it raises they stay the caller's and the state is as before.
  * An fd is in a Close only after the Apply of a Device that no longer has it.
  * `starts` counts up each time a vring starts to run, so that workers can tell "stopped and
    started again" from "unchanged".
  * An acknowledgement follows the Apply it acknowledges: after it the front-end may free memory.

Failure. A message that cannot be obeyed raises ProtocolError, and refuse() says what becomes of
it: "failed" if an acknowledgement was asked for; else, by the table in refusal.py, the message is
passed over or the connection ends. What a guest can make an honest VMM send (a write to the
configuration) is refused with a log line, never a reason to close.
A supervisor that dies between handle() and the last effect leaves state and effects to its
successor, which carries them out again: so each effect is idempotent (resume.py).

What bites (each seen with a real front-end).
  * QEMU sets CALL and ERR before SET_FEATURES, and sends RESET_DEVICE up to three times in a row;
    after it neither memory, features, CALL nor ERR come again. So reset keeps them.
  * QEMU changes CALL while the vring runs (interrupt masking): workers get it by Apply.
  * QEMU never checks GET_QUEUE_NUM for virtio-fs: an index beyond it is an error that names the
    option, since a guest would hang on a vring that nobody serves.
  * cloud-hypervisor sends SET_MEM_TABLE although ADD_MEM_REG was negotiated; crosvm asks for no
    acknowledgement at all.
  * SET_INFLIGHT_FD may come before or after ADDR; the record belongs to the vrings started later.
  * QEMU without share=on sends no region and no error; its guest would wait for ever. So a vring
    that comes to run outside of all regions is refused (_check_shared).

Not done here: dirty logging, IOMMU, postcopy, packed rings, migration (not offered, so not
negotiated). Requests of a virtio-fs device say nothing about queues; which worker serves a vring is
the service's business.
"""

from collections.abc import Callable, Mapping
from dataclasses import astuple, dataclass, field, replace
from typing import Any, Final, TypeVar

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
)
from vfsd.supervisor.inflight_record import check_queues, check_record, inflight_bytes
from vfsd.supervisor.memory_table import Memory
from vfsd.supervisor.refusal import refuse
from vfsd.supervisor.vring_state import Vring
from vfsd.transport.errors import ProtocolError, SetupError
from vfsd.transport.native import lib
from vfsd.transport.vhost_user import (
    U64,
    Config,
    Header,
    Inflight,
    MemoryRegion,
    MemoryTable,
    Message,
    Number,
    Payload,
    ProtocolFeature,
    Region,
    States,
    VirtioFeature,
    VringAddr,
    VringFd,
    VringState,
    encode_reply,
)

CONFIG_SPACE: Final = 256  # what is readable; beyond tag and queue count it is zero
# Plain integers: ~ of an IntFlag is not a mask of all the other bits.
FEATURES: Final = int(
    VirtioFeature.INDIRECT_DESC
    | VirtioFeature.EVENT_IDX
    | VirtioFeature.PROTOCOL_FEATURES
    | VirtioFeature.VERSION_1
)
PROTOCOL_FEATURES: Final = int(
    ProtocolFeature.MQ
    | ProtocolFeature.REPLY_ACK
    | ProtocolFeature.INFLIGHT_SHMFD
    | ProtocolFeature.RESET_DEVICE
    | ProtocolFeature.CONFIGURE_MEM_SLOTS
)

P = TypeVar("P", bound=Payload)


@dataclass
class Session:
    """State of one connection; see THEORY."""

    queue_count: int  # vrings: hiprio and request queues
    tag: str | None = None
    features: int | None = None
    protocol_features: int = 0
    memory: Memory = field(default_factory=Memory)
    inflight: tuple[Inflight, int] | None = None
    vrings: list[Vring] = field(default_factory=list)
    device: Device = field(default_factory=Device)

    def __post_init__(self) -> None:
        self.vrings = self.vrings or [Vring() for _ in range(self.queue_count)]

    def offered_protocol_features(self) -> int:
        return PROTOCOL_FEATURES | (0 if self.tag is None else int(ProtocolFeature.CONFIG))

    def wants_ack(self, need_reply: bool) -> bool:
        return need_reply and bool(self.protocol_features & ProtocolFeature.REPLY_ACK)

    def handle(self, message: Message) -> list[Effect]:
        """Take one message in or raise ProtocolError; after a return its fds are the session's."""
        kind = message.kind
        if kind.needs and not self.protocol_features & kind.needs:
            raise ProtocolError(f"{message.name} without {kind.needs.name}, which it needs")
        if kind.states is States.NEGOTIATED and self.features is None:
            raise ProtocolError(f"{message.name} before SET_FEATURES")
        effects = _HANDLERS[kind.number](self, message)
        if self._refresh_device():
            effects.append(Apply())
        if kind.reply is None and self.wants_ack(message.need_reply):
            refused = any(isinstance(effect, Log) for effect in effects)
            effects.append(Reply(encode_reply(kind.number, U64(int(refused)))))
        return sorted(effects, key=lambda effect: ORDER.index(type(effect)))

    def refuse(self, header: Header, error: ProtocolError) -> list[Effect]:
        """What to do about a message that cannot be obeyed; `error` if it ends the connection."""
        return refuse(header, error, self.wants_ack(header.need_reply))

    def draining(self) -> list[int]:
        """Vrings that stopped, and nobody said yet where."""
        return [index for index, vring in enumerate(self.vrings) if vring.draining]

    def note_base(self, index: int, last_avail: int | None) -> None:
        """Record where a vring stopped, or that nobody knows."""
        vring = self.vrings[index]
        vring.draining = False
        if last_avail is not None:
            vring.base = last_avail

    def base_reply(self, index: int) -> Reply:
        base = VringState(index, self.vrings[index].base)
        return Reply(encode_reply(Number.GET_VRING_BASE, base))

    def fds(self) -> tuple[int, ...]:
        """Every fd the session owns."""
        fds = self.memory.fds() + ([self.inflight[1]] if self.inflight else [])
        return tuple(fds + [fd for vring in self.vrings for fd in vring.fds()])

    def snapshot(self) -> dict[str, Any]:
        """The state as JSON can hold it; restore() makes an equal session from it."""
        return {
            "queue_count": self.queue_count,
            "tag": self.tag,
            "features": self.features,
            "protocol_features": self.protocol_features,
            "memory": [[*astuple(region), fd] for region, fd in self.memory.rows],
            "inflight": [*astuple(self.inflight[0]), self.inflight[1]] if self.inflight else None,
            "vrings": [vring.snapshot() for vring in self.vrings],
        }

    @classmethod
    def restore(cls, snapshot: Mapping[str, Any]) -> "Session":
        memory = Memory((Region(*row[:4]), row[4]) for row in snapshot["memory"])
        row = snapshot["inflight"]
        session = cls(
            **dict(snapshot)
            | {
                "memory": memory,
                "inflight": (Inflight(*row[:5]), row[5]) if row else None,
                "vrings": [Vring.restore(row) for row in snapshot["vrings"]],
            }
        )
        session.device = session._make_device()
        return session

    # Device.

    def _refresh_device(self) -> bool:
        """Decide anew which vrings run; True if the device changed."""
        for vring in self.vrings:
            vring.run(vring.started and vring.enabled and self.memory.has(vring.areas()))
        before, self.device = self.device, self._make_device()
        return self.device != before

    def _make_device(self) -> Device:
        rows = tuple(
            vring.device_vring(index, self._inflight_of(index, vring))
            for index, vring in enumerate(self.vrings)
            if vring.runs
        )
        return Device(self.features or 0, tuple(self.memory.rows), rows) if rows else Device()

    def _inflight_of(self, index: int, vring: Vring) -> tuple[int | None, int]:
        """(fd, offset) of a vring's region in the front-end's record; (None, 0): it has none."""
        if self.inflight is None:
            return None, 0
        record, fd = self.inflight
        if index >= record.num_queues or vring.size > record.queue_size:
            return None, 0
        return fd, record.mmap_offset + index * inflight_bytes(record.queue_size)

    # What messages do. Each returns effects; checks come before the first change.

    def _vring(self, index: int) -> Vring:
        if index >= self.queue_count:
            raise SetupError(
                f"the front-end sets up queue {index}, but there are only queues 0 to"
                f" {self.queue_count - 1}; start virtiofsd with a larger --request-queues"
            )
        return self.vrings[index]

    def _stopped_vring(self, message: Message, index: int) -> Vring:
        vring = self._vring(index)
        if vring.started:
            raise ProtocolError(f"{message.name} for vring {index}, which is started")
        return vring

    def _get_features(self, message: Message) -> list[Effect]:
        return _answer(message, U64(FEATURES))

    def _set_features(self, message: Message) -> list[Effect]:
        value = _payload(message, U64).value
        if value & ~FEATURES:
            raise ProtocolError(f"SET_FEATURES with bits not offered: {value & ~FEATURES:#x}")
        if value != self.features and any(vring.started for vring in self.vrings):
            raise ProtocolError("SET_FEATURES changes features under a started vring")
        self.features = value
        if not value & VirtioFeature.PROTOCOL_FEATURES:
            for vring in self.vrings:
                vring.enabled = True
        return []

    def _set_owner(self, _: Message) -> list[Effect]:
        return []

    def _reset_device(self, message: Message) -> list[Effect]:
        return [EndFuseSession(), *self._reset_owner(message)]

    def _reset_owner(self, _: Message) -> list[Effect]:
        dropped: tuple[int, ...] = ()
        for vring in self.vrings:
            dropped += vring.stop()
            vring.enabled = False
            vring.base = 0
        return _close(dropped)

    def _set_mem_table(self, message: Message) -> list[Effect]:
        regions = _payload(message, MemoryTable).regions
        return _close(self.memory.replace(list(zip(regions, message.fds, strict=True))))

    def _add_mem_reg(self, message: Message) -> list[Effect]:
        return _close(self.memory.add(_payload(message, MemoryRegion).region, message.fds[0]))

    def _rem_mem_reg(self, message: Message) -> list[Effect]:
        dropped = self.memory.remove(_payload(message, MemoryRegion).region)
        return _close(dropped + message.fds)

    def _get_max_mem_slots(self, message: Message) -> list[Effect]:
        return _answer(message, U64(lib.DEVICE_REGIONS_MAX))

    def _set_vring_num(self, message: Message) -> list[Effect]:
        state = _payload(message, VringState)
        self._stopped_vring(message, state.index).set_size(state.num)
        return []

    def _set_vring_addr(self, message: Message) -> list[Effect]:
        addr = _payload(message, VringAddr)
        self._vring(addr.index).set_addr(addr)
        return []

    def _set_vring_base(self, message: Message) -> list[Effect]:
        state = _payload(message, VringState)
        self._stopped_vring(message, state.index).set_base(state.num)
        return []

    def _get_vring_base(self, message: Message) -> list[Effect]:
        index = _payload(message, VringState).index
        return [*_close(self._vring(index).stop()), ReplyBase(index)]

    def _set_vring_kick(self, message: Message) -> list[Effect]:
        index = _payload(message, VringFd).index
        vring = self._vring(index)
        if not vring.areas():
            raise ProtocolError(f"SET_VRING_KICK for vring {index} before its size and addresses")
        if vring.enabled:
            self._check_shared(vring)
        vring.started = True
        return [Prepare(index), *self._set_eventfd(message, "kick_fd")]

    def _set_vring_call(self, message: Message) -> list[Effect]:
        return self._set_eventfd(message, "call_fd")

    def _set_vring_err(self, message: Message) -> list[Effect]:
        return self._set_eventfd(message, "err_fd")

    def _set_eventfd(self, message: Message, name: str) -> list[Effect]:
        """An eventfd that did not arrive (one side has no fds left) does not stop the vring: it
        keeps the one that it has, and without any for kicks it is polled."""
        payload = _payload(message, VringFd)
        vring = self._vring(payload.index)
        if payload.has_fd and not message.fds:
            text = f"{message.name} for vring {payload.index} came without its eventfd"
            return [Log("warn", f"{text}; the vring goes on as it is")]
        return _close(vring.set_fd(name, message.fds))

    def _set_vring_enable(self, message: Message) -> list[Effect]:
        state = _payload(message, VringState)
        if state.num > 1:
            raise ProtocolError(f"SET_VRING_ENABLE: {state.num} is neither 0 nor 1")
        vring = self._vring(state.index)
        if state.num and vring.started and not vring.enabled:
            self._check_shared(vring)
        vring.enabled = bool(state.num)
        return []

    def _check_shared(self, vring: Vring) -> None:
        """A vring that comes to run must lie in memory that the VMM shares."""
        if not self.memory.has(vring.areas()):
            raise SetupError(self.memory.complaint())

    def _get_protocol_features(self, message: Message) -> list[Effect]:
        return _answer(message, U64(self.offered_protocol_features()))

    def _set_protocol_features(self, message: Message) -> list[Effect]:
        value = _payload(message, U64).value
        unknown = value & ~self.offered_protocol_features()
        if unknown:
            raise ProtocolError(f"SET_PROTOCOL_FEATURES with bits not offered: {unknown:#x}")
        self.protocol_features = value
        return []

    def _get_queue_num(self, message: Message) -> list[Effect]:
        return _answer(message, U64(self.queue_count))

    def _get_config(self, message: Message) -> list[Effect]:
        asked = _payload(message, Config)
        if asked.offset + asked.size > CONFIG_SPACE:
            return _answer(message, None)
        tag = (self.tag or "").encode().ljust(36, b"\0")
        space = (tag + (self.queue_count - 1).to_bytes(4, "little")).ljust(CONFIG_SPACE, b"\0")
        return _answer(message, replace(asked, data=space[asked.offset :][: asked.size]))

    def _set_config(self, _: Message) -> list[Effect]:
        return [Log("warn", "SET_CONFIG refused: the configuration is read-only")]

    def _get_inflight_fd(self, message: Message) -> list[Effect]:
        asked = _payload(message, Inflight)
        check_queues(asked, self.queue_count)
        size = asked.num_queues * inflight_bytes(asked.queue_size)
        return [ReplyInflight(replace(asked, mmap_size=size, mmap_offset=0))]

    def _set_inflight_fd(self, message: Message) -> list[Effect]:
        given = _payload(message, Inflight)
        check_record(given, self.queue_count)
        if any(vring.started for vring in self.vrings):
            raise ProtocolError("SET_INFLIGHT_FD under a started vring")
        dropped = (self.inflight[1],) if self.inflight else ()
        self.inflight = (given, message.fds[0])
        return _close(dropped)


def _payload(message: Message, layout: type[P]) -> P:
    assert isinstance(message.payload, layout)
    return message.payload


def _answer(message: Message, payload: Payload | None) -> list[Effect]:
    return [Reply(encode_reply(message.kind.number, payload))]


def _close(fds: tuple[int, ...]) -> list[Effect]:
    return [Close(fds)] if fds else []


_HANDLERS: Final[dict[Number, Callable[[Session, Message], list[Effect]]]] = {
    number: getattr(Session, f"_{number.name.lower()}") for number in Number
}
