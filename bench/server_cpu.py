"""Sixteen streams through the server against the same requests in the offline engine, and how soon the server listens.

python -m bench.server_cpu
"""

import argparse
import json
import random
import re
import selectors
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bench.engines import CHECKPOINT
from bench.measure import write_result

STREAMS, ANSWER = 16, 256
MAX_MODEL_LEN = 512
REPEATS, WARMUPS = 7, 2
REST_S = 0.2
STARTS = 5
TARGET, LISTEN_TARGET_S = 0.9, 2.0


def prompts() -> list[list[int]]:
    rng = random.Random(1)
    return [[rng.randrange(390) for _ in range(rng.randrange(16, 128))] for _ in range(STREAMS)]


class Offline:
    """`LLM.generate` in a process of its own, which sleeps until it is asked."""

    def __init__(self, num_threads: int) -> None:
        command = [sys.executable, "-m", "bench.server_cpu", "--offline", "--threads", str(num_threads)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._read()

    def seconds(self) -> float:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)

    def _read(self) -> float:
        assert self._process.stdout is not None
        return float(self._process.stdout.readline())


def answer_offline(num_threads: int) -> None:
    from hotstart import LLM, SamplingParams

    options: dict[str, Any] = {"max_model_len": MAX_MODEL_LEN, "max_num_seqs": STREAMS, "num_threads": num_threads}
    llm = LLM(CHECKPOINT, device="cpu", dtype="float32", use_tqdm=False, **options)
    given = [{"prompt_token_ids": prompt} for prompt in prompts()]
    params = SamplingParams(temperature=0.0, max_tokens=ANSWER, ignore_eos=True)
    print(0.0, flush=True)
    for _ in sys.stdin:
        began = time.perf_counter()
        llm.generate(given, params, use_tqdm=False)
        print(time.perf_counter() - began, flush=True)
    assert not llm.late_events, llm.late_events


@contextmanager
def server(num_threads: int) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A server that listens: the process and its URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    flags = ["--port", str(port), "--device", "cpu", "--dtype", "float32", "--num-threads", str(num_threads)]
    flags += ["--max-model-len", str(MAX_MODEL_LEN), "--max-num-seqs", str(STREAMS), "--strict"]
    command = [sys.executable, "-m", "hotstart", "serve", str(CHECKPOINT), *flags]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        while status(url, "/health") is None:
            assert process.poll() is None, "the server ended"
            time.sleep(0.01)
        yield process, url
    finally:
        process.terminate()
        process.wait(30)


def status(url: str, path: str) -> int | None:
    try:
        with urllib.request.urlopen(url + path, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code
    except OSError:
        return None


def stream_all(url: str) -> float:
    """Seconds for all streams.  The client only counts bytes while they run, so that it takes little of the machine."""
    address = urlsplit(url)
    selector = selectors.DefaultSelector()
    began = time.perf_counter()
    for prompt in prompts():
        wishes = {"prompt": prompt, "max_tokens": ANSWER, "temperature": 0, "ignore_eos": True, "stream": True}
        body = json.dumps({**wishes, "stream_options": {"include_usage": True}}).encode()
        connection = socket.create_connection((address.hostname, address.port))
        head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        selector.register(connection, selectors.EVENT_READ, bytearray())
    answers = []
    while selector.get_map():
        for key, _ in selector.select():
            assert isinstance(key.fileobj, socket.socket)
            part = key.fileobj.recv(1 << 16)
            key.data.extend(part)
            if not part:
                selector.unregister(key.fileobj)
                key.fileobj.close()
                answers.append(bytes(key.data))
    seconds = time.perf_counter() - began
    counts = [int(re.findall(rb'"completion_tokens":(\d+)', answer)[-1]) for answer in answers]
    assert counts == [ANSWER] * STREAMS, counts
    return seconds


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def measure(num_threads: int) -> dict[str, Any]:
    offline = Offline(num_threads)
    with server(num_threads) as (process, url):
        while status(url, "/ready") != 200:
            time.sleep(0.1)
        pairs, http_s = [], 0.0
        for round_id in range(WARMUPS + REPEATS):
            time.sleep(REST_S)
            alone = offline.seconds()
            time.sleep(REST_S)
            before = cpu_s(process.pid)
            through = stream_all(url)
            if round_id >= WARMUPS:
                pairs.append((alone, through))
                http_s += cpu_s(process.pid) - before
    offline.close()
    tokens = STREAMS * ANSWER
    alone, through = (statistics.median(pair[i] for pair in pairs) for i in (0, 1))
    return {
        "what": f"{STREAMS} streams of {ANSWER} tokens at once",
        "threads": num_threads,
        "offline_tokens_s": round(tokens / alone),
        "server_tokens_s": round(tokens / through),
        "ratio": round(statistics.median(a / t for a, t in pairs), 3),
        "ratios": [round(a / t, 3) for a, t in pairs],
        "http_cpu_us_a_token": round(1e6 * http_s / (REPEATS * tokens), 1),
        "target": TARGET,
    }


def listening() -> dict[str, Any]:
    """From the command to the first answer of /health."""
    times = []
    for _ in range(STARTS):
        began = time.perf_counter()
        with server(1):
            times.append(time.perf_counter() - began)
    seconds = statistics.median(times)
    return {"what": "start to the first answer", "seconds": round(seconds, 2), "target_s": LISTEN_TARGET_S}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="of torch, in both engines (default: 1)")
    parser.add_argument("--offline", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.offline:
        answer_offline(arguments.threads)
        return
    row = measure(arguments.threads)
    print(json.dumps(row), flush=True)
    soon = listening()
    print(json.dumps(soon), flush=True)
    write_result("server_cpu", [row, soon], threads=arguments.threads, dtype="float32")


if __name__ == "__main__":
    main()
