"""EngineClient: the engine's process as the server sees it.  Requests go in, each comes back as batches of events.

Whatever the engine's process does, every request that was accepted has its final event: a process that ends, or has
been silent for too long, is answered for.
"""

import asyncio
import itertools
import socket
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from hotstart import log
from hotstart.config.engine import EngineConfig
from hotstart.config.server import ServerConfig
from hotstart.engine.messages import (
    Abort,
    Add,
    Beat,
    Command,
    Died,
    Late,
    Located,
    Open,
    Opened,
    PhaseBegan,
    PhaseEnded,
    Ready,
    Report,
    Start,
    Stats,
    Stepped,
    Token,
    frame,
    read_frames,
)
from hotstart.engine.phases import OnPhase, ignore_phases
from hotstart.errors import EngineDead, HotstartError, QueueFull
from hotstart.request import FinishReason, Request, SamplingParams, TokenEvent
from hotstart.server.startup_state import StartupState
from hotstart.server.submission import Submission

__all__ = ["EngineClient"]

SILENCE_SHARE = 1 / 3  # of the time after which the process counts as dead: then /health says no
EXIT_S = 5.0  # for the process to leave by itself


class EngineClient:
    def __init__(self, config: EngineConfig, server: ServerConfig, on_phase: OnPhase = ignore_phases) -> None:
        self.config = config
        self.startup = StartupState(on_phase)
        self.ready: Ready | None = None
        self.stats = Stats()
        self.late_events: list[dict[str, Any]] = []
        self.failure: HotstartError | None = None  # why the engine is dead
        self._server = server
        self._numbers = itertools.count()
        self._live: dict[str, Submission] = {}
        self._heard = time.monotonic()
        self._turn_s = 0.0
        self._changed = asyncio.Event()
        self._closing = False
        self._is_open = False
        self._has_checkpoint = False

    @property
    def num_live(self) -> int:
        return len(self._live)

    @property
    def capacity(self) -> int:
        """Requests that may be in the engine, running and waiting."""
        assert self.ready is not None, "the engine is not ready"
        return self.ready.limits.max_num_seqs + self._server.max_num_queued_reqs

    @property
    def silence_s(self) -> float:
        return time.monotonic() - self._heard

    @property
    def _is_silent(self) -> bool:
        return self.silence_s > self._server.engine_timeout * SILENCE_SHARE

    def trouble(self) -> str | None:
        """What a liveness probe should know, if anything."""
        if self.failure is not None:
            return "the engine has stopped"
        if self._is_silent:
            return f"the engine has been silent for {self.silence_s:.0f} s"
        turn_s = self._turn_s + self.silence_s
        if self.ready is not None and turn_s > self._server.step_timeout:
            return f"a step has been running for {turn_s:.0f} s"
        return None

    async def run(self) -> None:
        """From the start of the process to its end.  Afterwards `failure` is set, unless it was closed."""
        ours, theirs = socket.socketpair()
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "hotstart.engine.worker", str(theirs.fileno()), pass_fds=(theirs.fileno(),)
        )
        theirs.close()
        reader, self._writer = await asyncio.open_connection(sock=ours)
        self._heard = time.monotonic()
        self._tell(Start(self.config))
        try:
            await self._listen(reader)
        finally:
            self._writer.close()
            await self._end()

    async def wait_checkpoint(self) -> EngineConfig:
        """The wishes, of folders of this machine.  Raises what kept it from being found."""
        await self._until(lambda: self._has_checkpoint)
        return self.config

    async def wait_ready(self) -> Ready:
        """Raises as `wait_checkpoint` does."""
        await self._until(lambda: self.ready is not None)
        assert self.ready is not None
        return self.ready

    async def open(self) -> None:
        """All is warm: from here on the engine's counts are of clients' requests alone."""
        self._tell(Open())
        await self._until(lambda: self._is_open)

    async def _until(self, is_so: Callable[[], bool]) -> None:
        """Raises what ended the engine, if it ends before."""
        while not is_so() and self.failure is None:
            self._changed.clear()
            await self._changed.wait()
        if self.failure is not None:
            raise self.failure

    def close(self) -> None:
        self._closing = True
        self._writer.close()  # which ends the process, whatever it does now

    def submit(self, prompts: Sequence[tuple[tuple[int, ...], SamplingParams]]) -> Submission:
        """All of them, or none.  Raises QueueFull or EngineDead, and never waits."""
        if self.failure is not None:
            raise EngineDead("the engine has stopped")
        if self.num_live + len(prompts) > self.capacity:
            raise QueueFull(f"{self.num_live} requests are in the engine, at most {self.capacity} may be; try later")
        now = time.monotonic()
        requests = tuple(Request(str(next(self._numbers)), ids, params, now) for ids, params in prompts)
        submission = Submission(self.forget, [request.id for request in requests])
        self._live.update((request.id, submission) for request in requests)
        self._tell(Add(requests))
        return submission

    def forget(self, request_ids: tuple[str, ...]) -> None:
        """Nobody wants the rest of these."""
        for request_id in request_ids:
            self._live.pop(request_id, None)
        if self.failure is None:
            self._tell(Abort(request_ids))

    def abandon(self) -> None:
        """End what is still in the engine: the time to drain is over."""
        live, self._live = self._live, {}
        if live and self.failure is None:
            self._tell(Abort(tuple(live)))
        _end_all(live, EngineDead("the server is shutting down"))

    def _tell(self, command: Command) -> None:
        # The engine reads at every step, so what waits here is bounded by what it accepts.
        self._writer.write(frame(command))

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        decoder = msgspec.msgpack.Decoder(Report)
        buffer = bytearray()
        while True:
            try:
                async with asyncio.timeout(self._server.engine_timeout):
                    data = await reader.read(1 << 20)
            except TimeoutError:
                self._die(EngineDead(f"the engine's process was silent for {self.silence_s:.0f} s"))
                return
            except OSError:
                data = b""
            if not data:
                return
            self._heard = time.monotonic()
            buffer += data
            for report in read_frames(buffer, decoder):
                self._hear(report)

    def _hear(self, report: Report) -> None:
        match report:
            case Stepped():
                now = self._heard
                for token in report.tokens:
                    self._pass_on(token, now)
                if report.stats is not None:
                    self.stats = report.stats
            case Beat():
                self._turn_s = report.turn_s
                return  # a sign of life, and no progress
            case PhaseBegan():
                self.startup.begin(report.name, report.done, report.total, report.note)
            case PhaseEnded():
                self.startup.end(report.phase)
            case Located():
                self.config, self._has_checkpoint = report.config, True
            case Ready():
                self.ready = report
            case Opened():
                self.stats, self._is_open = report.stats, True
            case Late():
                self.late_events += report.events
            case Died():
                self._die(report.failure.error())
        self._turn_s = 0.0
        self._changed.set()

    def _pass_on(self, token: Token, now: float) -> None:
        # The submission may be gone, while steps that were under way still speak of it.
        submission = self._live.get(token.request_id)
        if submission is None:
            return
        if token.finish_reason is not None:
            del self._live[token.request_id]
        submission.push(token.event(), now)

    def _die(self, failure: HotstartError) -> None:
        if self.failure is None:
            self.failure = failure
            if self.ready is not None:
                log.error("engine is dead", cause=failure, requests=len(self._live))
        live, self._live = self._live, {}
        _end_all(live, self.failure)
        self._changed.set()

    async def _end(self) -> None:
        """The socket is closed: the process must go, and is helped if it does not."""
        try:
            async with asyncio.timeout(0 if self._is_silent else EXIT_S):
                code = await self._process.wait()
        except TimeoutError:
            self._process.kill()
            code = await self._process.wait()
        if not self._closing or self._live:
            self._die(EngineDead(f"the engine's process ended with code {code}"))


def _end_all(live: dict[str, Submission], error: HotstartError) -> None:
    for request_id, submission in live.items():
        submission.push(TokenEvent(request_id, finish_reason=FinishReason.ERROR, error=error), time.monotonic())
