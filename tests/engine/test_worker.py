"""The engine's process, turn by turn: what a client that goes away costs, and when."""

import importlib
import io
import socket
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path

import msgspec
import pytest

from hotstart.config.engine import EngineConfig
from hotstart.engine.device import CpuDevice
from hotstart.engine.engine import Engine
from hotstart.engine.messages import (
    Abort,
    Add,
    Channel,
    Command,
    Late,
    Open,
    Opened,
    Report,
    Stepped,
    frame,
    read_frames,
)
from hotstart.engine.startup import start
from hotstart.engine.worker import Worker
from hotstart.errors import EngineDead
from hotstart.request import Request, SamplingParams

CHECKPOINT = str(Path(__file__).parents[2] / "checkpoints" / "tiny-qwen3.5")
LONG = SamplingParams(temperature=0.0, max_tokens=200, ignore_eos=True)


class Turns:
    """A worker whose turns the test takes, and the server's end of its socket."""

    def __init__(self, engine: Engine, ours: socket.socket, theirs: socket.socket) -> None:
        self.engine = engine
        self._worker = Worker(Channel(theirs))
        self._socket = ours
        self._buffer = bytearray()

    def close(self) -> None:
        self._worker._imports.close()

    def take(self, *commands: Command) -> list[Report]:
        """One turn after these commands; what it reported."""
        for command in commands:
            self._socket.sendall(frame(command))
        if not commands and not self.engine.has_work:
            self._socket.sendall(frame(Abort(())))  # an idle worker waits for a word
        self._worker._turn(self.engine)
        return self.told()

    def told(self) -> list[Report]:
        """What has been reported and was not read."""
        while True:
            try:
                self._buffer += self._socket.recv(1 << 20, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return read_frames(self._buffer, msgspec.msgpack.Decoder(Report))


@pytest.fixture
def turns() -> Iterator[Turns]:
    config = EngineConfig(
        model=CHECKPOINT, device="cpu", max_model_len=256, max_num_seqs=4, max_num_batched_tokens=64, num_threads=1
    )
    engine = start(config)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        found = Turns(engine, ours, theirs)
        yield found
        found.close()
    engine.close()


def request(name: str, num_tokens: int) -> Request:
    return Request(name, (5,) * num_tokens, LONG, 0.0)


@pytest.mark.parametrize("steps_before", [1, 2, 9])
def test_an_abort_frees_pages_and_slot_within_two_steps(turns: Turns, steps_before: int) -> None:
    """Whether the request waits, is in the middle of its prompt, or answers; its neighbour goes on."""
    turns.take(Add((request("stays", 8), request("goes", 200))))
    for _ in range(steps_before):
        turns.take()
    held, steps = turns.engine.use, turns.engine.num_steps
    turns.take(Abort(("goes",)))
    while turns.engine.use.slots_used > 1:
        turns.take()
    assert turns.engine.num_steps - steps <= 2
    assert (held.slots_used, turns.engine.use.slots_used) == (2, 1)
    assert turns.engine.use.pages_used <= 2
    turns.take(Abort(("stays",)))
    while turns.engine.has_work:
        turns.take()
    turns.engine.check()
    assert (turns.engine.use.pages_used, turns.engine.use.slots_used) == (0, 0)


def test_the_tokens_of_one_step_are_one_message(turns: Turns) -> None:
    turns.take(Add(tuple(request(name, 4) for name in "abcd")))
    for _ in range(3):
        reports = [report for report in turns.take() if isinstance(report, Stepped)]
        assert [len(report.tokens) for report in reports] == [4]


def test_a_lost_device_answers_everybody_and_ends_the_process(turns: Turns, monkeypatch: pytest.MonkeyPatch) -> None:
    def faulting(*_: object) -> None:
        raise RuntimeError("an illegal memory access")

    turns.take(Add(tuple(request(name, 4) for name in "abcdef")))  # two of them wait
    monkeypatch.setattr(turns.engine._runner, "_model", faulting)
    monkeypatch.setattr(CpuDevice, "alive", lambda device: False)
    with pytest.raises(EngineDead, match="illegal memory access"):  # `main` ends with 1 for it
        turns.take()
    answered = [token for report in turns.told() if isinstance(report, Stepped) for token in report.tokens]
    assert sorted(token.request_id for token in answered if token.failure) == [*"abcdef"]


def test_counts_begin_where_the_server_opens(turns: Turns) -> None:
    turns.take(Add((request("before", 4),)))
    for _ in range(3):
        turns.take()
    assert turns.engine.num_steps > 0
    (opened,) = [report for report in turns.take(Abort(("before",)), Open()) if isinstance(report, Opened)]
    assert (opened.stats.num_steps, opened.stats.num_step_tokens, opened.stats.pages_used) == (0, 0, 0)


def test_what_the_process_imports_after_it_opened_is_late(turns: Turns) -> None:
    turns.take(Open())
    sys.modules.pop("this", None)
    with redirect_stdout(io.StringIO()):
        importlib.import_module("this")
    late = [event for report in turns.take() if isinstance(report, Late) for event in report.events]
    assert [(event["kind"], event["key"]) for event in late] == [("import", "this")]
