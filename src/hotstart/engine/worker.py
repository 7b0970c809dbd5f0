"""The engine's own process: commands in, reports out, over the socket whose number is its argument.

It ends when the server does: its loop reads the end of the socket, and the thread that sends heartbeats meets it too,
should the loop be busy.  Signals are the server's business: it drains first, so they are ignored here.
"""

import dataclasses
import os
import signal
import socket
import sys
import threading
import time
from typing import TYPE_CHECKING

from hotstart import log
from hotstart.engine.download import download
from hotstart.engine.garbage import spare_collections
from hotstart.engine.head_start import begin_context
from hotstart.engine.imports import ImportWatch, late_import
from hotstart.engine.messages import (
    Abort,
    Add,
    Beat,
    Channel,
    Command,
    Died,
    Failure,
    Late,
    Located,
    Open,
    Opened,
    PhaseBegan,
    PhaseEnded,
    Ready,
    Start,
    Stats,
    Stepped,
    Token,
)
from hotstart.engine.phases import Phase, PhaseProgress
from hotstart.errors import HotstartError, RequestError
from hotstart.request import FinishReason, Request, TokenEvent

if TYPE_CHECKING:
    from hotstart.config.engine import EngineConfig
    from hotstart.engine.engine import Engine

__all__ = ["LIBRARIES_PHASE", "main"]

LIBRARIES_PHASE = "load libraries"
BEAT_S = 1.0
STATS_S = 0.1  # between two reports of the statistics, while steps run


def main() -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    channel = Channel(socket.socket(fileno=int(sys.argv[1])))
    worker = Worker(channel)
    threading.Thread(target=worker.beat, name="heartbeat", daemon=True).start()
    try:
        worker.run()
    except (EOFError, ConnectionError):
        return 0
    except HotstartError as error:
        channel.send(Died(Failure.of(error)))
        return 1
    except Exception as error:  # the edge of the process: the server must learn why it stands alone
        log.error("engine died", cause=f"{type(error).__name__}: {error}")
        channel.send(Died(Failure("EngineDead", f"the engine stopped: {type(error).__name__}: {error}")))
        raise
    return 0


class Worker:
    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._turn_began = time.monotonic()
        self._told_stats = 0.0
        self._num_told_late = 0
        self._num_told_imports = 0
        self._imports = ImportWatch()
        self._before_open = (0, 0, 0)  # steps, their tokens, preemptions: of start-up's own requests

    def run(self) -> None:
        config = download(self._config(), self._on_phase)
        self._channel.send(Located(config))
        engine = self._start(config)
        try:
            while True:
                self._turn(engine)
        finally:
            engine.close()

    def beat(self) -> None:
        """Runs in a thread of its own, so that a long step is no silence."""
        while True:
            try:
                self._channel.send(Beat(time.monotonic() - self._turn_began))
            except OSError:
                os._exit(0)  # the server is gone, and nobody waits for the step that may be running
            time.sleep(BEAT_S)

    def _config(self) -> "EngineConfig":
        commands: list[Command] = []
        while not commands:
            commands = self._channel.receive(BEAT_S)
        (command,) = commands
        assert isinstance(command, Start), f"{command} before the engine was started"
        return command.config

    def _start(self, config: "EngineConfig") -> "Engine":
        self._channel.send(PhaseBegan(LIBRARIES_PHASE))
        began = time.perf_counter()
        begin_context(config.device)
        from hotstart.engine.startup import start  # here, so that the server hears of it while torch is imported

        self._on_phase(Phase(LIBRARIES_PHASE, time.perf_counter() - began, 0))
        engine = start(config, self._on_phase)
        spare_collections()  # before the server's own requests, which find their data in caches again
        self._channel.send(
            Ready(
                engine.limits,
                engine.vocab_size,
                engine.device.kind,
                engine.memory_plan.as_dict(),
                engine.warm_kernels,
            )
        )
        return engine

    def _on_phase(self, event: Phase | PhaseProgress) -> None:
        self._turn_began = time.monotonic()
        if isinstance(event, Phase):
            self._channel.send(PhaseEnded(event))
        else:
            self._channel.send(PhaseBegan(event.name, event.done, event.total, event.note))

    def _turn(self, engine: "Engine") -> None:
        """Obey what has come, then one step.  Raises EOFError once the server wants no more."""
        events: list[TokenEvent] = []
        self._turn_began = time.monotonic()
        for command in self._channel.receive(0.0 if engine.has_work else BEAT_S):
            if isinstance(command, Add):
                for request in command.requests:
                    events += _add(engine, request)
            elif isinstance(command, Abort):
                for request_id in command.request_ids:
                    events += engine.abort(request_id)
            elif isinstance(command, Open):
                events += self._open(engine)
        if engine.has_work:
            events += engine.step()
        self._tell(engine, events)
        engine.check_alive()  # a lost device ends the process, once everybody has been answered

    def _open(self, engine: "Engine") -> list[TokenEvent]:
        events: list[TokenEvent] = []
        while engine.has_work:  # a step that was under way when the last answer was complete
            events += engine.step()
        self._before_open = (engine.num_steps, engine.num_step_tokens, engine.use.num_preemptions)
        self._imports.seal()
        self._channel.send(Opened(self._stats(engine)))
        return events

    def _tell(self, engine: "Engine", events: list[TokenEvent]) -> None:
        stats = None
        now = time.monotonic()
        if not engine.is_lost and (not engine.has_work or now - self._told_stats > STATS_S):
            self._told_stats = now
            stats = self._stats(engine)
        if events or stats:
            self._channel.send(Stepped(tuple(map(Token.of, events)), stats))
        late = engine.late_events[self._num_told_late :]
        if late:
            self._num_told_late += len(late)
            self._channel.send(Late(tuple(dataclasses.asdict(event) for event in late)))
        imported = self._imports.names[self._num_told_imports :]
        if imported:
            self._num_told_imports += len(imported)
            self._channel.send(Late(tuple(late_import(name, "the engine's process") for name in imported)))

    def _stats(self, engine: "Engine") -> Stats:
        use, growth = engine.use, engine.growth
        num_steps, num_step_tokens, num_preemptions = self._before_open
        return Stats(
            num_running=engine.num_running,
            num_waiting=engine.num_waiting,
            num_preemptions=use.num_preemptions - num_preemptions,
            num_steps=engine.num_steps - num_steps,
            num_step_tokens=engine.num_step_tokens - num_step_tokens,
            pages_used=use.pages_used,
            pages_cached=use.pages_cached,
            slots_used=use.slots_used,
            slots_cached=use.slots_cached,
            arena_growth_bytes=growth.arena_bytes,
            resident_growth_bytes=growth.resident_bytes,
            late=dict(engine.late_counts),
        )


def _add(engine: "Engine", request: Request) -> list[TokenEvent]:
    """A request that is refused has its final event at once."""
    try:
        engine.add(request)
    except RequestError as error:
        return [TokenEvent(request.id, finish_reason=FinishReason.ERROR, error=error)]
    return []


if __name__ == "__main__":
    sys.exit(main())
