"""Run a server: listen at once, start the engine beside it, open when all is warm, drain when told to go.

The server's own loop ends with the engine's process, whichever of them goes first.
"""

import asyncio
import contextlib
import secrets
import signal
from collections.abc import Callable, Iterator

import uvicorn

from hotstart import log
from hotstart.config.engine import EngineConfig
from hotstart.config.server import Keys, ServerConfig
from hotstart.engine.phases import OnPhase
from hotstart.server.app import App
from hotstart.server.client import EngineClient
from hotstart.server.cors import Cors
from hotstart.server.listener import Listener
from hotstart.server.protocol import Protocol
from hotstart.server.service import Service
from hotstart.server.warmup import warm_up

__all__ = ["serve"]

POLL_S = 0.05
SECOND_SIGNAL = 2


OnReady = Callable[[Service, str], None]  # the server's state, and its URL


def serve(config: EngineConfig, server: ServerConfig, keys: Keys, on_phase: OnPhase, on_ready: OnReady) -> None:
    """Returns after a drain.  Raises what kept the engine from starting, or EngineDead if it stopped later."""
    listener = Listener(server)
    try:
        asyncio.run(_serve(config, server, keys, listener, on_phase, on_ready))
    finally:
        listener.close()


class _Uvicorn(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are handled by `_Shutdown`: uvicorn would close the listener before the drain."""
        yield


async def _serve(
    config: EngineConfig,
    server: ServerConfig,
    keys: Keys,
    listener: Listener,
    on_phase: OnPhase,
    on_ready: OnReady,
) -> None:
    client = EngineClient(config, server, on_phase)
    service = Service(config, server, keys, client)
    token = secrets.token_hex(16)
    http = _Uvicorn(
        uvicorn.Config(
            Cors(App(service, token), server),
            http=Protocol,
            lifespan="off",
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=2,
            ssl_certfile=server.ssl_certfile,
            ssl_keyfile=server.ssl_keyfile,
        )
    )
    log.info("listening", url=listener.url)
    shutdown = _Shutdown(service, http)
    shutdown.install()
    listening = asyncio.create_task(http.serve([listener.socket]))
    running = asyncio.create_task(client.run())
    opening = asyncio.create_task(_open(service, listener, token, on_ready))
    try:
        await asyncio.wait((listening, running, opening), return_when=asyncio.FIRST_COMPLETED)
        if opening.done() and opening.exception() is None:
            await asyncio.wait((listening, running), return_when=asyncio.FIRST_COMPLETED)
    finally:
        await shutdown.finish()
        opening.cancel()
        service.close()
        client.close()
        http.should_exit = True
        await asyncio.wait((listening, running, opening))
    for task in (opening, listening, running):
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error
    if client.failure is not None:
        raise client.failure


async def _open(service: Service, listener: Listener, token: str, on_ready: OnReady) -> None:
    await service.read()
    await service.client.wait_ready()
    await warm_up(service, listener, token)
    await service.open()
    on_ready(service, listener.url)


class _Shutdown:
    """The first signal drains, the second one aborts."""

    def __init__(self, service: Service, http: uvicorn.Server) -> None:
        self._service = service
        self._http = http
        self._num_signals = 0
        self._drain: asyncio.Task[None] | None = None

    def install(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled)

    def _signalled(self) -> None:
        self._num_signals += 1
        if self._drain is None:
            self._service.is_draining = True
            self._drain = asyncio.create_task(self._run())

    async def _run(self) -> None:
        client = self._service.client
        log.info("draining", requests=client.num_live, seconds=self._service.server.shutdown_timeout)
        deadline = asyncio.get_running_loop().time() + self._service.server.shutdown_timeout
        while client.num_live and self._num_signals < SECOND_SIGNAL and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(POLL_S)
        client.abandon()
        self._http.should_exit = True

    async def finish(self) -> None:
        if self._drain is not None:
            await self._drain
