# SPDX-License-Identifier: Apache-2.0
"""The vhost-user session: messages in, effects out.

THEORY

Purpose. One Session is one front-end connection, from accept to close: the negotiated features, the
memory table, and for each vring its addresses, eventfds and whether it runs. The session decides;
it does no I/O and uses no sockets, processes or clocks. So every order of messages can be tried
without a socket, and the successor of a supervisor goes on from snapshot().

Actors. The front-end (VMM) sends messages. The service carries out the effects of one message, in
their order, before it passes on the next message: Apply makes the pool and every worker adopt the
Device, and reports where vrings stopped (note_base); Close closes fds; the Reply kinds answer.

Device. The state that workers need, and no more. The Device has only those vrings that run, and it
is empty as long as no vring runs, so the handshake needs no round trip to the workers.

States of a vring; only a message can end a state.

  stopped   after accept, GET_VRING_BASE, RESET_DEVICE, RESET_OWNER. No memory of the vring may be
            touched. NUM, ADDR, BASE are accepted; CALL and ERR are accepted in every state.
  started   SET_VRING_KICK came, and NUM and ADDR before it. NUM and BASE are refused, and ADDR is
            refused unless it repeats the present addresses.
  running   started, enabled (SET_VRING_ENABLE 1, or SET_FEATURES without PROTOCOL_FEATURES), and
            its three areas lie inside the memory table. QEMU removes regions and adds them again
            under a live vring; a vring whose areas are gone is paused until they are back.

RESET_DEVICE also ends the FUSE session: the guest's driver has gone, and other processes wait for
its locks. GET_VRING_BASE of all vrings does not end it: a guest that was paused goes on with its
open files. QEMU before 8.2 sends only GET_VRING_BASE for a reset; the next INIT then ends the
session.

Invariants.
  * No order of messages makes a vring run without memory, features, size and addresses.
  * The session owns every fd in its state, and has each fd once. A message's fds become the
    session's when handle() returns; if it raises, they stay the caller's and no state has changed.
  * An fd is in a Close only after the Apply of a Device that no longer has it.
  * `starts` is incremented each time that a vring starts to run, so that workers can distinguish
    "stopped and started again" from "unchanged".
  * An acknowledgement follows its Apply: the front-end may free memory when it is acknowledged.

Failure. A message that cannot be obeyed raises ProtocolError, and refuse() decides: the answer is
"failed" if an acknowledgement was asked for; else, by the table in refusal.py, the message is
passed over or the connection ends. A message that a guest can make an honest VMM send (a write to
the configuration) is refused with a log line, and never ends the connection.
A supervisor that dies between handle() and the last effect leaves state and effects to its
successor, which carries them out again: so each effect is idempotent (resume.py).

What bites (each seen with a real front-end).
  * QEMU sets CALL and ERR before SET_FEATURES, and sends RESET_DEVICE up to three times in a row;
    after a reset it sends neither memory, features, CALL nor ERR again. So a reset keeps them.
  * QEMU changes CALL while the vring runs (interrupt masking): an Apply gives it to the workers.
  * QEMU never checks GET_QUEUE_NUM for virtio-fs: an index beyond it is an error that names the
    option, since a guest would hang on a vring that no worker serves.
  * cloud-hypervisor sends SET_MEM_TABLE although ADD_MEM_REG was negotiated; crosvm asks for no
    acknowledgement at all.
  * SET_INFLIGHT_FD may come before or after ADDR; the record belongs to the vrings started later.
  * QEMU without share=on sends no region and no error; its guest would wait for ever. So a vring
    that would run outside of all regions is refused (_check_shared).

Not done here: dirty logging, IOMMU, postcopy, packed rings, migration (not offered, so not
negotiated), in-order completion (a request that waits for a lock would hold up the reply to the
unlock). Nothing here depends on which worker serves a vring: the backend decides that.
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

CONFIG_SPACE: Final = 256  # readable bytes; those behind tag and queue count are zero
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
        """Take in a message and own its fds from then on, or raise ProtocolError."""
        kind = message.kind
        if kind.needs and not self.protocol_features & kind.needs:
            raise ProtocolError(f"{message.name}: {kind.needs.name} is needed and not negotiated")
        if kind.states is States.NEGOTIATED and self.features is None:
            raise ProtocolError(f"{message.name} came before SET_FEATURES")
        effects = _HANDLERS[kind.number](self, message)
        if self._refresh_device():
            effects.append(Apply())
        if kind.reply is None and self.wants_ack(message.need_reply):
            refused = any(isinstance(effect, Log) for effect in effects)
            effects.append(Reply(encode_reply(kind.number, U64(int(refused)))))
        return sorted(effects, key=lambda effect: ORDER.index(type(effect)))

    def refuse(self, header: Header, error: ProtocolError) -> list[Effect]:
        """The effects of a message that cannot be obeyed; raises `error` to end the connection."""
        return refuse(header, error, self.wants_ack(header.need_reply))

    def draining(self) -> list[int]:
        """Vrings that have stopped, at an index that is not reported yet."""
        return [index for index, vring in enumerate(self.vrings) if vring.draining]

    def note_base(self, index: int, last_avail: int | None) -> None:
        """Record the index at which a vring stopped; None: its worker died, and did not report."""
        vring = self.vrings[index]
        vring.draining = False
        if last_avail is not None:
            vring.base = last_avail

    def base_reply(self, index: int) -> Reply:
        base = VringState(index, self.vrings[index].base)
        return Reply(encode_reply(Number.GET_VRING_BASE, base))

    def fds(self) -> tuple[int, ...]:
        """Every fd that the session owns."""
        fds = self.memory.fds() + ([self.inflight[1]] if self.inflight else [])
        return tuple(fds + [fd for vring in self.vrings for fd in vring.fds()])

    def snapshot(self) -> dict[str, Any]:
        """The state as values that JSON can represent; restore() makes an equal session of it."""
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
        """Decide again which vrings run; True if the device changed."""
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
        """(fd, offset) of a vring's region in the front-end's record; (None, 0): no region."""
        if self.inflight is None:
            return None, 0
        record, fd = self.inflight
        if index >= record.num_queues or vring.size > record.queue_size:
            return None, 0
        return fd, record.mmap_offset + index * inflight_bytes(record.queue_size)

    # The handlers of messages. Each returns effects, and checks everything before it changes state.

    def _vring(self, index: int) -> Vring:
        if index >= self.queue_count:
            raise SetupError(
                f"the VMM sets up queue {index}; this device has queues 0 to"
                f" {self.queue_count - 1}; start virtiofsd with a larger --request-queues"
            )
        return self.vrings[index]

    def _stopped_vring(self, message: Message, index: int) -> Vring:
        vring = self._vring(index)
        if vring.started:
            raise ProtocolError(f"{message.name}: vring {index} is started; expected it stopped")
        return vring

    def _get_features(self, message: Message) -> list[Effect]:
        return _answer(message, U64(FEATURES))

    def _set_features(self, message: Message) -> list[Effect]:
        value = _payload(message, U64).value
        if value & ~FEATURES:
            raise ProtocolError(f"SET_FEATURES: the bits {value & ~FEATURES:#x} were not offered")
        if value != self.features and any(vring.started for vring in self.vrings):
            raise ProtocolError("SET_FEATURES changes features while a vring is started")
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
            raise ProtocolError(f"SET_VRING_KICK: vring {index} has no size or no addresses yet")
        if vring.enabled:
            self._check_shared(vring)
        vring.started = True
        return [Prepare(index), *self._set_eventfd(message, "kick_fd")]

    def _set_vring_call(self, message: Message) -> list[Effect]:
        return self._set_eventfd(message, "call_fd")

    def _set_vring_err(self, message: Message) -> list[Effect]:
        return self._set_eventfd(message, "err_fd")

    def _set_eventfd(self, message: Message, name: str) -> list[Effect]:
        """If the eventfd did not arrive (one side has no fds left), the vring keeps the eventfd
        that it has, and runs on. A vring without an eventfd for kicks is polled."""
        payload = _payload(message, VringFd)
        vring = self._vring(payload.index)
        if payload.has_fd and not message.fds:
            text = f"{message.name} for vring {payload.index} came without its eventfd"
            return [Log("warn", f"{text}; the vring keeps its present eventfd, or none")]
        return _close(vring.set_fd(name, message.fds))

    def _set_vring_enable(self, message: Message) -> list[Effect]:
        state = _payload(message, VringState)
        if state.num > 1:
            raise ProtocolError(f"SET_VRING_ENABLE: num is {state.num}; expected 0 or 1")
        vring = self._vring(state.index)
        if state.num and vring.started and not vring.enabled:
            self._check_shared(vring)
        vring.enabled = bool(state.num)
        return []

    def _check_shared(self, vring: Vring) -> None:
        """Refuse a vring that would run outside of the memory that the VMM shares."""
        if not self.memory.has(vring.areas()):
            raise SetupError(self.memory.complaint())

    def _get_protocol_features(self, message: Message) -> list[Effect]:
        return _answer(message, U64(self.offered_protocol_features()))

    def _set_protocol_features(self, message: Message) -> list[Effect]:
        value = _payload(message, U64).value
        unknown = value & ~self.offered_protocol_features()
        if unknown:
            raise ProtocolError(f"SET_PROTOCOL_FEATURES: the bits {unknown:#x} were not offered")
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
            raise ProtocolError("SET_INFLIGHT_FD came while a vring is started")
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
