"""A device that is lost under a full server: every request is answered, whatever it waits for, and the process ends."""

import os
import signal
from pathlib import Path

import pytest

from serve.conftest import StartServer
from serve.test_life import engine_pid, post, read_to_end

# At a signal the engine's process loses its device: on a GPU by a fault in a kernel.
LOSE = """
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

if "hotstart.engine.worker" in sys.orig_argv:
    signal.signal(signal.SIGUSR1, lambda *_: on_{device}())
"""
FLAGS = {
    "cpu": (),
    "cuda": ("--load-format", "dummy", "--dtype", "bfloat16", "--kv-cache-memory-bytes", "64MiB", "--tune", "off"),
}


@pytest.mark.parametrize("draining", [False, True])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_everybody_is_answered_and_the_process_ends(
    device: str, draining: bool, tmp_path: Path, start_server: StartServer
) -> None:
    (tmp_path / "sitecustomize.py").write_text(LOSE.replace("{device}", device))
    flags = ("--device", device, "--max-num-seqs", "2", "--shutdown-timeout", "60", *FLAGS[device])
    server = start_server(*flags, python_path=str(tmp_path))
    server.wait_until(server.is_ready, "ready", 90)
    answers = {"max_tokens": 240, "ignore_eos": True}
    held = [
        post(server, {"prompt": f"Copy: {i}", "stream": i % 2 == 0, "n": 1 + i % 3 // 2, **answers}) for i in range(6)
    ]
    server.wait_until(lambda: server.metric("vllm:num_requests_waiting") >= 2, "full")
    if draining:
        server.process.send_signal(signal.SIGTERM)
        server.wait_until(lambda: server.ask("/ready", key=None)[1]["status"] == "draining", "draining")
    os.kill(engine_pid(server), signal.SIGUSR1)
    for connection in held:
        answer = read_to_end(connection)
        assert b'"code":"engine_dead"' in answer and b"[DONE]" not in answer, answer[-500:]
    assert server.process.wait(20) == 1
    assert "the device was lost" in server.log.read_text()
