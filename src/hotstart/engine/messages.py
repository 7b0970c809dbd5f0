"""What the server and the engine's process say to each other: typed msgpack messages (no torch here).

A frame is four bytes of length, then one message.  A message that does not fit its type ends the conversation.
"""

import select
import socket
import threading
from typing import Any, Self, TypeVar

import msgspec

from hotstart import errors
from hotstart.config.engine import EngineConfig
from hotstart.engine.limits import SchedulerLimits
from hotstart.engine.phases import Phase
from hotstart.errors import EngineDead, HotstartError
from hotstart.request import FinishReason, PositionLogprobs, Request, TokenEvent

__all__ = [
    "Abort",
    "Add",
    "Beat",
    "Channel",
    "Command",
    "Died",
    "Failure",
    "Late",
    "Located",
    "Open",
    "Opened",
    "PhaseBegan",
    "PhaseEnded",
    "Ready",
    "Report",
    "Start",
    "Stats",
    "Stepped",
    "Token",
    "frame",
    "read_frames",
]

LENGTH_BYTES = 4


class Failure(msgspec.Struct, frozen=True, array_like=True):
    """An error on its way through the socket: the name of its type in `errors`, and its words."""

    kind: str
    message: str

    @classmethod
    def of(cls, error: Exception) -> Self:
        return cls(type(error).__name__, str(error))

    def error(self) -> HotstartError:
        kind = getattr(errors, self.kind) if self.kind in errors.__all__ else EngineDead
        found: HotstartError = kind(self.message)
        return found


class Start(msgspec.Struct, frozen=True, tag=True):
    config: EngineConfig


class Add(msgspec.Struct, frozen=True, tag=True):
    requests: tuple[Request, ...]


class Abort(msgspec.Struct, frozen=True, tag=True):
    request_ids: tuple[str, ...]


class Open(msgspec.Struct, frozen=True, tag=True):
    """All is warm: counts begin at zero, and what is imported from now on is late.  Answered by Opened."""


Command = Start | Add | Abort | Open  # to close the socket is the last one


class Token(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True):
    """A TokenEvent, as it travels."""

    request_id: str
    token_ids: tuple[int, ...] = ()
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None
    num_cached_tokens: int = 0
    logprobs: tuple[PositionLogprobs, ...] = ()
    prompt_logprobs: tuple[PositionLogprobs | None, ...] = ()
    failure: Failure | None = None
    admitted_time: float | None = None

    @classmethod
    def of(cls, event: TokenEvent) -> Self:
        return cls(
            event.request_id,
            event.token_ids,
            event.finish_reason,
            event.stop_token_id,
            event.num_cached_tokens,
            event.logprobs,
            event.prompt_logprobs,
            None if event.error is None else Failure.of(event.error),
            event.admitted_time,
        )

    def event(self) -> TokenEvent:
        return TokenEvent(
            self.request_id,
            self.token_ids,
            self.logprobs,
            self.prompt_logprobs,
            self.finish_reason,
            self.stop_token_id,
            None if self.failure is None else self.failure.error(),
            self.num_cached_tokens,
            self.admitted_time,
        )


class Stats(msgspec.Struct, frozen=True, array_like=True):
    """The engine now, and since it was opened.  A late count is None where the device cannot have such an event."""

    num_running: int = 0
    num_waiting: int = 0
    num_preemptions: int = 0
    num_steps: int = 0
    num_step_tokens: int = 0
    pages_used: int = 0
    pages_cached: int = 0
    slots_used: int = 0
    slots_cached: int = 0
    arena_growth_bytes: int = 0
    resident_growth_bytes: int | None = None
    late: dict[str, int | None] = {}


class Located(msgspec.Struct, frozen=True, tag=True):
    """The wishes, of folders of this machine: what was a name on the hub has been fetched."""

    config: EngineConfig


class PhaseBegan(msgspec.Struct, frozen=True, tag=True):
    """Or has come further: `done` of `total`."""

    name: str
    done: int = 0
    total: int = 0
    note: str = ""


class PhaseEnded(msgspec.Struct, frozen=True, tag=True):
    phase: Phase


class Ready(msgspec.Struct, frozen=True, tag=True):
    limits: SchedulerLimits
    vocab_size: int
    device: str
    memory_plan: dict[str, Any]
    kernels: list[dict[str, Any]] = []  # binaries and seconds of each kernel that start-up compiled


class Stepped(msgspec.Struct, frozen=True, tag=True):
    tokens: tuple[Token, ...]
    stats: Stats | None = None


class Opened(msgspec.Struct, frozen=True, tag=True):
    stats: Stats


class Late(msgspec.Struct, frozen=True, tag=True):
    """Events after the seal that were not told yet."""

    events: tuple[dict[str, Any], ...]


class Beat(msgspec.Struct, frozen=True, tag=True):
    """Sent every second by a thread of its own: the process lives, and its loop has been in this turn for so long."""

    turn_s: float


class Died(msgspec.Struct, frozen=True, tag=True):
    failure: Failure


Report = Located | PhaseBegan | PhaseEnded | Ready | Opened | Stepped | Late | Beat | Died

T = TypeVar("T")
_encoder = msgspec.msgpack.Encoder()
_command_decoder = msgspec.msgpack.Decoder(Command)


def frame(message: Command | Report) -> bytes:
    data = _encoder.encode(message)
    return len(data).to_bytes(LENGTH_BYTES, "big") + data


def read_frames(buffer: bytearray, decoder: msgspec.msgpack.Decoder[T]) -> list[T]:
    """The complete messages at the head of the buffer, which is left with what follows them."""
    found = []
    start = 0
    while len(buffer) >= start + LENGTH_BYTES:
        end = start + LENGTH_BYTES + int.from_bytes(buffer[start : start + LENGTH_BYTES], "big")
        if len(buffer) < end:
            break
        found.append(decoder.decode(memoryview(buffer)[start + LENGTH_BYTES : end]))
        start = end
    del buffer[:start]
    return found


class Channel:
    """The engine's end of the socket.  Any thread may send; one receives."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._lock = threading.Lock()
        self._buffer = bytearray()

    def send(self, report: Report) -> None:
        data = frame(report)
        with self._lock:
            self._socket.sendall(data)

    def receive(self, timeout_s: float) -> list[Command]:
        """What has come, after waiting for it at most so long.  Raises EOFError once the server is gone."""
        if not select.select([self._socket], [], [], timeout_s)[0]:
            return []
        data = self._socket.recv(1 << 20)
        if not data:
            raise EOFError("the server has closed the socket")
        self._buffer += data
        return read_frames(self._buffer, _command_decoder)
