"""Warm up the way to the engine as the engine was: real requests, through the real socket, before it opens.

Every kind of request is sent twice: the first pays for what nobody had used before, the second shows that it is paid.
"""

import asyncio
import json
from typing import Any, NamedTuple

from hotstart.engine.garbage import spare_collections
from hotstart.engine.phases import Phase
from hotstart.errors import StartupError
from hotstart.server.app import WARMUP_HEADER
from hotstart.server.listener import Listener
from hotstart.server.service import LONG_BODY_BYTES, Service
from hotstart.server.startup_state import WarmedRequest

__all__ = ["PHASE", "warm_up"]

PHASE = "warm up server"
TIMEOUT_S = 120.0
SUPPORTING = ("/health", "/ready", "/version", "/v1/models", "/plan", "/metrics", "/openapi.json", "/")


_SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "integer"}}, "required": ["a"]}
_FORMAT = {"type": "json_schema", "json_schema": {"name": "warm", "schema": _SCHEMA}}


class _Ask(NamedTuple):
    name: str
    method: str
    path: str
    body: Any = None
    status: int = 200


async def warm_up(service: Service, listener: Listener, token: str) -> None:
    """Raises StartupError, naming the path, if one of them is not answered as it should be."""
    client, loop = service.client, asyncio.get_running_loop()
    began = loop.time()
    asks = _asks(service)
    spare_collections()
    counted, service.metrics = service.metrics, service.make_metrics()
    try:
        for number, ask in enumerate(asks):
            client.startup.begin(PHASE, number, len(asks))
            moments = [loop.time()]
            for _ in range(2):
                async with asyncio.timeout(TIMEOUT_S):
                    await _send(listener, token, ask)
                moments.append(loop.time())
            start, middle, end = moments
            client.startup.requests.append(WarmedRequest(ask.name, middle - start, end - middle))
    except (TimeoutError, OSError, ValueError) as error:
        raise StartupError(f"start-up failed in phase {PHASE!r}: {error}") from error
    finally:
        service.metrics = counted
    client.startup.end(Phase(PHASE, loop.time() - began, 0, f"{len(asks)} kinds of requests, twice"))


def _asks(service: Service) -> list[_Ask]:
    text = {"prompt": "Warm", "max_tokens": 2}
    everything = {"temperature": 1.0, "top_k": 5, "top_p": 0.9, "min_p": 0.01, "seed": 1, "stop": ["\n\n\n"], "n": 1}
    everything |= {"frequency_penalty": 0.1, "logit_bias": {"0": 1}, "bad_words": ["warm"], "allowed_token_ids": [0, 1]}
    usage = {"stream": True, "stream_options": {"include_usage": True}}
    completions, conversations = "/v1/completions", "/v1/chat/completions"
    asks = [_Ask(path, "GET", path, status=503 if path == "/ready" else 200) for path in SUPPORTING]
    asks += [
        _Ask("a request that is refused", "POST", completions, {"prompt": 0}, 400),
        _Ask("completion, scored", "POST", completions, {**text, "logprobs": 2, "echo": True}),
        _Ask("completion, streamed", "POST", completions, {**text, **everything, **usage}),
        _Ask("completion of a grammar", "POST", completions, {**text, "structured_outputs": {"regex": "[a-z]+"}}),
        _Ask("/tokenize", "POST", "/tokenize", {"prompt": "Warm"}),
        # So long that it is prepared in a thread beside the loop.
        _Ask("a long body", "POST", "/tokenize", {"prompt": "Warm", "padding": "x" * 2 * LONG_BODY_BYTES}),
        _Ask("/detokenize", "POST", "/detokenize", {"tokens": [0]}),
    ]
    if service.has_chat:
        chat = {"messages": [{"role": "user", "content": "Warm"}], "max_tokens": 2}
        logprobs = {"logprobs": True, "top_logprobs": 2}
        tool = {"type": "function", "function": {"name": "warm", "parameters": {"type": "object", "properties": {}}}}
        asks += [
            _Ask("chat", "POST", conversations, {**chat, **everything, **logprobs}),
            _Ask("chat, streamed", "POST", conversations, {**_longer(service), **usage}),
            _Ask("chat of a JSON schema", "POST", conversations, {**chat, "response_format": _FORMAT}),
            _Ask(
                "chat with a forced call", "POST", conversations, {**chat, "tools": [tool], "tool_choice": "required"}
            ),
            _Ask("chat with a tool", "POST", conversations, {**chat, **usage, "tools": [tool]}),
        ]
    return asks


def _longer(service: Service) -> dict[str, Any]:
    """More than a word, and answered for some steps: what a first conversation is like."""
    words = max(1, min(32, service.ready.limits.max_model_len // 16))
    return {"messages": [{"role": "user", "content": "Warm " * words}], "max_tokens": 8}


async def _send(listener: Listener, token: str, ask: _Ask) -> None:
    reader, writer = await listener.connect()
    try:
        data = b"" if ask.body is None else json.dumps(ask.body).encode()
        head = (
            f"{ask.method} {ask.path} HTTP/1.1\r\nhost: {listener.name}\r\nconnection: close\r\n"
            f"{WARMUP_HEADER.decode()}: {token}\r\ncontent-length: {len(data)}\r\n\r\n"
        )
        writer.write(head.encode() + data)
        answer = await reader.read()
    finally:
        writer.close()
    status = answer.split(b" ", 2)[1:2]
    if status != [str(ask.status).encode()] or b'data: {"error"' in answer:
        raise ValueError(f"{ask.method} {ask.path} was answered with {answer[:400]!r}")
