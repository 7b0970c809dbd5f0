"""Silence on either side of a stream: an engine that says nothing yet, a client that reads nothing any more."""

import asyncio
from typing import Any

import pytest

from hotstart.request import FinishReason, TokenEvent
from hotstart.server import app, exchange
from hotstart.server.exchange import ClientGone, Exchange
from hotstart.server.submission import Submission


def test_a_batch_is_empty_after_a_silence_and_whole_after_a_pause() -> None:
    async def listen() -> None:
        forgotten: list[str] = []
        submission = Submission(forgotten.extend, ["a", "b"])
        assert await submission.batch(0.02) == []
        waiting = asyncio.ensure_future(submission.batch(30))
        await asyncio.sleep(0.03)  # longer than the first timeout, whose timer must not end this wait
        submission.push(TokenEvent("b", (1,)), 1.0)
        assert [event.token_ids for _, event, _ in await waiting] == [(1,)]
        submission.push(TokenEvent("b", (2,)), 2.0)
        submission.push(TokenEvent("b", (3,)), 3.0)
        assert [(n, event.token_ids, at) for n, event, at in await submission.batch(30)] == [
            (1, (2,), 2.0),
            (1, (3,), 3.0),
        ]
        submission.push(TokenEvent("b", finish_reason=FinishReason.STOP), 4.0)
        submission.close()
        assert forgotten == ["a"]

    asyncio.run(listen())


def test_a_client_that_reads_nothing_counts_as_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "STALL_CHECK_S", 0.01)
    monkeypatch.setattr(exchange, "WRITE_TIMEOUT_S", 0.05)
    ended = []

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(60)
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        if message.get("body") == b"data: 3\n\n":
            await asyncio.sleep(60)  # its buffers are full

    async def work(stream: Exchange) -> None:
        try:
            await stream.begin_stream()
            for number in range(9):
                await stream.send_events(number)
        finally:
            ended.append(number)

    async def serve() -> None:
        stream = Exchange({"type": "http", "method": "POST", "path": "/", "headers": []}, receive, send, "id")
        with pytest.raises(ClientGone):
            await app._unless_gone(stream, work(stream))

    asyncio.run(asyncio.wait_for(serve(), 20))
    assert ended == [3]
