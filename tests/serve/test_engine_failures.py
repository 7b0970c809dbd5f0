"""Failures in the engine under a full server, seen by its clients.

A lost device: every request is answered, whatever it waits for, and the process ends.  A failed step: its requests are.
"""

import os
import signal
from pathlib import Path

import pytest

from serve.conftest import StartServer, engine_pid, post, read_to_end

# At a signal the engine's process loses its device, on a GPU by a fault in a kernel; at another its next step fails.
FAIL = """
import signal, sys

def on_cpu():
    from hotstart.engine import device, runner

    def launch(*_, **__):
        raise RuntimeError("an illegal memory access")

    device.CpuDevice.alive = lambda _: False
    runner.Runner.launch = launch

def on_cuda():
    import torch

    torch.zeros(3, device="cuda")[torch.tensor([7], device="cuda")]

def on_plan():
    from hotstart.engine.scheduler import Scheduler

    Scheduler.plan = lambda _: [][0]

def fail(*_):
    from hotstart.engine.runner import Runner

    forward = Runner._forward

    def failing(*_, **__):
        Runner._forward = forward
        raise ValueError("made up")

    Runner._forward = failing

if "hotstart.engine.worker" in sys.orig_argv:
    signal.signal(signal.SIGUSR1, lambda *_: on_{what}())
    signal.signal(signal.SIGUSR2, fail)
"""
LONG = ("--max-model-len", "4096", "--max-num-seqs", "2", "--shutdown-timeout", "60")
FLAGS = {
    "cpu": (),
    "cuda": ("--load-format", "dummy", "--dtype", "bfloat16", "--kv-cache-memory-bytes", "64MiB", "--tune", "off"),
}


@pytest.mark.parametrize(
    ("what", "draining"),
    [
        ("cpu", False),
        ("cpu", True),
        ("plan", False),  # a mistake of our own, beside all steps
        pytest.param("cuda", False, marks=pytest.mark.gpu),
        pytest.param("cuda", True, marks=pytest.mark.gpu),
    ],
)
def test_everybody_is_answered_and_the_process_ends(
    what: str, draining: bool, tmp_path: Path, start_server: StartServer
) -> None:
    (tmp_path / "sitecustomize.py").write_text(FAIL.replace("{what}", what))
    device = "cuda" if what == "cuda" else "cpu"
    flags = ("--device", device, *LONG, *FLAGS[device])
    server = start_server(*flags, python_path=str(tmp_path))
    server.wait_until(server.is_ready, "ready", 90)
    # Much to do: a GPU is done with a few of these before anybody has looked.
    answers = {"prompt": "Copy: a", "max_tokens": 3000, "ignore_eos": True, "n": 16}
    held = [post(server, {**answers, "stream": i % 2 == 0}) for i in range(12)]
    server.wait_until(lambda: server.metric("vllm:num_requests_waiting") >= 2, "full")
    if draining:
        server.process.send_signal(signal.SIGTERM)
        server.wait_until(lambda: server.ask("/ready", key=None)[1]["status"] == "draining", "draining")
    os.kill(engine_pid(server), signal.SIGUSR1)
    dead = 0
    for i, connection in enumerate(held):
        answer = read_to_end(connection)
        is_whole = b"[DONE]" in answer if i % 2 == 0 else answer.startswith(b"HTTP/1.1 200")
        assert is_whole != (b'"code":"engine_dead"' in answer), answer[-500:]
        dead += not is_whole
    assert dead >= 4, "of those that ran, and of those that waited"
    assert server.process.wait(20) == 1
    words = "the engine stopped: IndexError" if what == "plan" else "the device was lost"
    assert words in server.log.read_text()


@pytest.mark.parametrize("draining", [False, True])
def test_a_failed_step_answers_its_requests_and_the_server_serves_on(
    draining: bool, tmp_path: Path, start_server: StartServer
) -> None:
    """Two run, two wait: an error for the two, whether they stream or not, whole answers for the others."""
    (tmp_path / "sitecustomize.py").write_text(FAIL.replace("{what}", "cpu"))
    server = start_server(*LONG, python_path=str(tmp_path))
    server.wait_until(server.is_ready, "ready", 90)
    held = [
        post(server, {"prompt": "Copy: a", "stream": stream, "max_tokens": 3000, "ignore_eos": True})
        for stream in (True, False)
    ]
    server.wait_until(lambda: server.metric("vllm:num_requests_running") == 2, "running")
    held += [post(server, {"prompt": "Copy: b", "stream": stream, "max_tokens": 9}) for stream in (True, False)]
    server.wait_until(lambda: server.metric("vllm:num_requests_waiting") == 2, "full")
    if draining:
        server.process.send_signal(signal.SIGTERM)
        server.wait_until(lambda: server.ask("/ready", key=None)[1]["status"] == "draining", "draining")
    os.kill(engine_pid(server), signal.SIGUSR2)
    if not draining:
        server.wait_until(server.is_idle, "idle")
        assert server.metric("vllm:request_success_total", finished_reason="error") == 2
        assert server.ask("/v1/completions", {"prompt": "x", "max_tokens": 1})[0] == 200
        server.process.send_signal(signal.SIGTERM)
    streamed, whole, *later = map(read_to_end, held)
    assert b'"code":"step_failed"' in streamed and b"[DONE]" not in streamed
    assert whole.startswith(b"HTTP/1.1 500") and b'"code":"step_failed"' in whole
    assert b"[DONE]" in later[0] and all(a.startswith(b"HTTP/1.1 200") and b'"error"' not in a for a in later)
    assert server.process.wait(20) == 0
    assert "made up" in server.log.read_text()


@pytest.mark.parametrize("is_second_signal", [False, True])
def test_who_outlives_the_drain_is_answered(is_second_signal: bool, start_server: StartServer) -> None:
    """Two run, one waits: each is told when the time is over, or a second signal comes."""
    server = start_server(*LONG, "--shutdown-timeout", "60" if is_second_signal else "1")
    server.wait_until(server.is_ready, "ready", 90)
    body = {"prompt": "Copy: a", "max_tokens": 4000, "ignore_eos": True}
    held = [post(server, {**body, "stream": stream}) for stream in (True, False, True)]
    server.wait_until(lambda: server.metric("vllm:num_requests_waiting") == 1, "full")
    server.process.send_signal(signal.SIGTERM)
    if is_second_signal:
        server.wait_until(lambda: server.ask("/ready", key=None)[1]["status"] == "draining", "draining")
        server.process.send_signal(signal.SIGTERM)
    for connection in held:
        answer = read_to_end(connection)
        assert b'"code":"engine_dead"' in answer and b"[DONE]" not in answer, answer[-500:]
    assert server.process.wait(20) == 0
