"""Clients that go away, floods, drains, and an engine that dies: every accepted request has an answer."""

import asyncio
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import openai
import pytest

from serve.conftest import KEY, MODEL, Server, StartServer, engine_pid, post, read_to_end


def test_the_process_that_speaks_http_has_no_torch(server: Server) -> None:
    assert "libtorch" not in Path(f"/proc/{server.process.pid}/maps").read_text()
    assert "libtorch" in Path(f"/proc/{engine_pid(server)}/maps").read_text()


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_frees_its_pages_and_slot(server: Server, stream: bool) -> None:
    body = {"prompt": "Copy: a", "max_tokens": 240, "ignore_eos": True, "stream": stream}
    connection = post(server, body)
    server.wait_until(lambda: not server.is_idle(), "running")
    before = server.metric("vllm:request_success_total", finished_reason="abort")
    connection.close()
    server.wait_until(server.is_idle, "idle", 5)
    assert server.metric("vllm:request_success_total", finished_reason="abort") == before + 1


def test_a_client_that_does_not_read_delays_nobody(server: Server) -> None:
    """It asks for megabytes; the engine is done with them while not one byte was read."""
    wishes = {"prompt": "Copy: a", "max_tokens": 240, "ignore_eos": True, "stream": True, "logprobs": 20, "n": 4}
    silent = [post(server, wishes, receive_bytes=4096) for _ in "ab"]
    server.wait_until(lambda: server.metric("vllm:num_requests_running") == 8, "full")
    done = server.client.completions.create(model=MODEL, prompt="Sort: 31", max_tokens=3)
    assert done.choices[0].finish_reason in ("length", "stop")
    server.wait_until(server.is_idle, "idle")
    for connection in silent:
        connection.close()
    server.wait_until(lambda: server.ask("/v1/completions", {"prompt": "x", "max_tokens": 1})[0] == 200, "serving")


def count_ends(server: Server) -> dict[str, float]:
    reasons = ("stop", "length", "abort", "error")
    return {reason: server.metric("vllm:request_success_total", finished_reason=reason) for reason in reasons}


ASKED_OF_TOKENS = [
    {"repetition_penalty": 1.2, "min_p": 0.1},
    {"frequency_penalty": 1, "presence_penalty": -1, "logit_bias": {"5": 3, "70": -100}},
    {"bad_words": ["a b", "c"], "allowed_token_ids": list(range(60, 120))},
    {"structured_outputs": {"regex": "[a-f ]{1,40}"}},
]


def test_five_hundred_mixed_requests_with_disconnects_leave_nothing_behind(server: Server) -> None:
    """Three in ten go away; under --strict one event after the seal would fail requests."""
    draw = random.Random(5)
    before = count_ends(server)
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    shape = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    counts = dict.fromkeys(("answered", "left", "refused"), 0)

    async def one(client: openai.AsyncOpenAI) -> None:
        leaves = draw.random() < 0.3
        extra = {"ignore_eos": leaves, **draw.choice([{}, {}, *ASKED_OF_TOKENS])}
        wishes = {"temperature": draw.choice([0, 1.5]), "top_p": draw.choice([0.5, 1]), "seed": draw.randrange(99)}
        prompt = "Copy: " + " ".join(draw.choice("abcdefgh") for _ in range(draw.randrange(1, 60)))
        kind = draw.choice(["chat", "lists", "stream", "stream", "wrong"])
        try:
            async with asyncio.timeout(draw.uniform(0.005, 0.2) if leaves else 60):
                if kind == "chat":
                    messages = [{"role": "user", "content": prompt}]
                    shaped = draw.random() < 0.5 and not extra.keys() & {"allowed_token_ids", "structured_outputs"}
                    format = {"response_format": shape} if shaped else {}
                    await client.chat.completions.create(
                        model=MODEL,
                        messages=messages,
                        max_tokens=12,
                        logprobs=True,
                        extra_body=extra,
                        **wishes,
                        **format,
                    )
                elif kind == "lists":
                    both = [prompt, "Sort: 1"]
                    await client.completions.create(
                        model=MODEL, prompt=both, n=2, max_tokens=6, logprobs=2, extra_body=extra, **wishes
                    )
                elif kind == "wrong":
                    await client.completions.create(model=MODEL, prompt=[], extra_body=extra, **wishes)
                else:
                    made = await client.completions.create(
                        model=MODEL, prompt=prompt, max_tokens=20, stop=["xyz"], stream=True, extra_body=extra, **wishes
                    )
                    async for _ in made:
                        pass
            counts["answered"] += 1
        except TimeoutError:
            assert leaves, "a request that nobody gave up took a minute"
            counts["left"] += 1
        except openai.BadRequestError:
            assert kind == "wrong"
            counts["refused"] += 1

    async def all_of_them() -> None:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0) as client:
            gate = asyncio.Semaphore(32)

            async def gated() -> None:
                async with gate:
                    await one(client)

            await asyncio.gather(*(gated() for _ in range(500)))

    asyncio.run(all_of_them())
    server.wait_until(server.is_idle, "idle", 10)
    ended = {reason: count - before[reason] for reason, count in count_ends(server).items()}
    assert ended["error"] == 0 and ended["abort"] > 50 and counts["left"] > 50, (ended, counts)
    assert ended["stop"] + ended["length"] >= counts["answered"] > 200
    assert server.metric("hotstart:late_events_total") == 0
    assert server.ask("/plan")[1]["late_events"] == []
    assert server.metric("hotstart:arena_growth_bytes") == 0


def test_what_exceeds_the_queue_is_refused_at_once(start_server: StartServer) -> None:
    server = start_server("--max-num-queued-reqs", "2", "--max-num-seqs", "1", "--shutdown-timeout", "20")
    status, answer = server.ask("/v1/completions", {"prompt": "x"})
    if status != 200:  # it was asked while it loads
        assert (status, answer["error"]["code"]) == (503, "loading")
        assert server.ask("/ready", key=None)[1]["percent"] < 100
    server.wait_until(server.is_ready, "ready", 90)
    held = [post(server, {"prompt": "Copy: a", "max_tokens": 200, "ignore_eos": True}) for _ in range(3)]
    server.wait_until(lambda: server.metric("vllm:num_requests_waiting") == 2, "full")
    with pytest.raises(openai.InternalServerError) as caught:
        server.client.completions.create(model=MODEL, prompt="x")
    assert caught.value.status_code == 503
    assert (caught.value.code, caught.value.response.headers["retry-after"]) == ("queue_full", "1")
    # The drain: nobody new, and an answer for everybody who is in.
    server.process.send_signal(signal.SIGTERM)
    server.wait_until(lambda: server.ask("/ready", key=None)[1]["status"] == "draining", "draining")
    assert server.ask("/v1/completions", {"prompt": "x"})[1]["error"]["code"] == "draining"
    for connection in held:
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        connection.close()
    assert server.process.wait(20) == 0


def test_an_engine_that_dies_is_answered_for(start_server: StartServer) -> None:
    server = start_server()
    server.wait_until(server.is_ready, "ready", 90)
    held = [
        post(server, {"prompt": "Copy: a", "max_tokens": 240, "ignore_eos": True, "stream": s}) for s in (False, True)
    ]
    server.wait_until(lambda: server.metric("vllm:num_requests_running") == 2, "running")
    os.kill(engine_pid(server), signal.SIGKILL)
    for connection in held:
        answer = read_to_end(connection)
        assert b'"code":"engine_dead"' in answer
        assert b"[DONE]" not in answer
    assert server.process.wait(20) == 1


def test_an_engine_that_hangs_is_reported_and_then_ended(start_server: StartServer) -> None:
    server = start_server("--engine-timeout", "4")
    server.wait_until(server.is_ready, "ready", 90)
    held = post(server, {"prompt": "Copy: a", "max_tokens": 240, "ignore_eos": True})
    server.wait_until(lambda: server.metric("vllm:num_requests_running") == 1, "running")
    os.kill(engine_pid(server), signal.SIGSTOP)
    server.wait_until(lambda: server.ask("/health", key=None)[0] == 503, "unhealthy", 4)
    assert b'"code":"engine_dead"' in read_to_end(held)
    assert server.process.wait(10) == 1


def test_a_server_that_is_told_to_go_while_it_loads_goes(start_server: StartServer) -> None:
    server = start_server()
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(10) == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--host", "0.0.0.0"), "--api-key"),
        (("--max-model-len", "9999999"), "--max-model-len"),
        (("--port", "70000"), "--port"),
    ],
    ids=["open", "engine", "port"],
)
def test_what_cannot_start_says_why_in_one_line(tmp_path: Path, flags: tuple[str, ...], message: str) -> None:
    root = Path(__file__).parents[2]
    command = ["serve", str(root / "checkpoints" / "tiny-qwen3.5"), "--port", "0", *flags]
    done = subprocess.run(
        [sys.executable, "-m", "hotstart", *command],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": str(root / "src")},
    )
    assert done.returncode == 2
    assert message in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
