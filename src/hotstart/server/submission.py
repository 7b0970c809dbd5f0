"""Submission: what the engine says about the requests of one HTTP request, as its handler reads it."""

import asyncio
from collections.abc import Callable, Sequence

from hotstart.request import TokenEvent

__all__ = ["Submission"]


class Submission:
    """The requests of one HTTP request, whose events come in batches.  Close it: what is unfinished is aborted."""

    def __init__(self, forget: Callable[[tuple[str, ...]], None], request_ids: Sequence[str]) -> None:
        self._forget = forget
        self._numbers = {request_id: number for number, request_id in enumerate(request_ids)}
        self._open = set(request_ids)
        self._events: list[tuple[int, TokenEvent, float]] = []
        self._loop = asyncio.get_running_loop()
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._deadline = 0.0

    @property
    def finished(self) -> bool:
        return not self._open and not self._events

    def push(self, event: TokenEvent, now: float) -> None:
        if event.finish_reason is not None:
            self._open.discard(event.request_id)
        self._events.append((self._numbers[event.request_id], event, now))
        self._wake()

    async def batch(self, timeout_s: float | None = None) -> list[tuple[int, TokenEvent, float]]:
        """What has come since the last batch: the number of a request, an event of it, and when it came.

        Empty after the timeout.

        A reader that comes rarely gets long batches: there is nothing else that could grow.
        """
        if not self._events:
            self._waiter = self._loop.create_future()
            if timeout_s is not None:
                self._deadline = self._loop.time() + timeout_s
                if self._timer is None:
                    self._timer = self._loop.call_at(self._deadline, self._look)
            await self._waiter
        batch, self._events = self._events, []
        return batch

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _look(self) -> None:
        """One timer serves all batches: it finds that there is still time, far more often than not."""
        self._timer = None
        if self._loop.time() >= self._deadline:
            self._wake()
        else:
            self._timer = self._loop.call_at(self._deadline, self._look)

    def abort(self, number: int) -> None:
        """One request has all that it wants."""
        request_id = next(name for name, n in self._numbers.items() if n == number)
        if request_id in self._open:
            self._open.discard(request_id)
            self._forget((request_id,))

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._open:
            self._forget(tuple(self._open))
            self._open.clear()
