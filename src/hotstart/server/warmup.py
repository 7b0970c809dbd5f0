"""Warm up the way to the engine as the engine was: real requests, through the real socket, before it opens."""

import asyncio
import json
from typing import Any

from hotstart.engine.phases import Phase
from hotstart.errors import StartupError
from hotstart.server.app import WARMUP_HEADER
from hotstart.server.service import Service

__all__ = ["warm_up"]

PHASE = "warm up server"
TIMEOUT_S = 120.0


async def warm_up(service: Service, address: tuple[str, int], token: str) -> None:
    """Raises StartupError, naming the path, if one of them is not answered as it should be."""
    client, loop = service.client, asyncio.get_running_loop()
    began = loop.time()
    requests = _requests(service)
    counted, service.metrics = service.metrics, service.make_metrics()
    try:
        for number, (method, path, body) in enumerate(requests):
            client.startup.begin(PHASE, number, len(requests))
            async with asyncio.timeout(TIMEOUT_S):
                await _ask(address, token, method, path, body)
    except (TimeoutError, OSError, ValueError) as error:
        raise StartupError(f"start-up failed in phase {PHASE!r}: {error}") from error
    finally:
        service.metrics = counted
    client.startup.end(Phase(PHASE, loop.time() - began, 0, f"{len(requests)} requests"))


def _requests(service: Service) -> list[tuple[str, str, Any]]:
    text = {"prompt": "Warm", "max_tokens": 2}
    everything = {"temperature": 1.0, "top_k": 5, "top_p": 0.9, "seed": 1, "stop": ["\n\n\n"], "n": 1}
    usage = {"stream": True, "stream_options": {"include_usage": True}}
    requests: list[tuple[str, str, Any]] = [
        ("GET", path, None) for path in ("/health", "/version", "/v1/models", "/plan", "/metrics", "/openapi.json")
    ]
    requests += [
        ("POST", "/v1/completions", {**text, "logprobs": 2, "echo": True}),
        ("POST", "/v1/completions", {**text, **everything, **usage}),
        ("POST", "/tokenize", {"prompt": "Warm"}),
        ("POST", "/detokenize", {"tokens": [0]}),
    ]
    if service.text.template is not None:
        chat = {"messages": [{"role": "user", "content": "Warm"}], "max_tokens": 2}
        logprobs = {"logprobs": True, "top_logprobs": 2}
        requests += [
            ("POST", "/v1/chat/completions", {**chat, **everything, **logprobs}),
            ("POST", "/v1/chat/completions", {**chat, **usage, **logprobs}),
        ]
    return requests


async def _ask(address: tuple[str, int], token: str, method: str, path: str, body: Any) -> None:
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address[0], address[0])
    reader, writer = await asyncio.open_connection(host, address[1])
    try:
        data = b"" if body is None else json.dumps(body).encode()
        head = (
            f"{method} {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n"
            f"{WARMUP_HEADER.decode()}: {token}\r\ncontent-length: {len(data)}\r\n\r\n"
        )
        writer.write(head.encode() + data)
        answer = await reader.read()
    finally:
        writer.close()
    status = answer.split(b" ", 2)[1:2]
    if status != [b"200"] or b'data: {"error"' in answer:
        raise ValueError(f"{method} {path} was answered with {answer[:400]!r}")
