"""One real server for the session: a process of its own, strict, with the shipped checkpoint."""

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

if TYPE_CHECKING:
    import openai

ROOT = Path(__file__).parents[2]
CHECKPOINT = str(ROOT / "checkpoints" / "tiny-qwen3.5")
MODEL = "tiny"
KEY = "a-key-of-the-tests"
SMALL = ("--max-model-len", "256", "--max-num-seqs", "8", "--max-num-batched-tokens", "128", "--num-threads", "1")
START_S = 90.0


@dataclass
class Server:
    process: subprocess.Popen[str]
    url: str
    log: Path
    certificate: str | None = None

    @property
    def client(self) -> "openai.OpenAI":
        import openai  # here: where there is a GPU it may be missing, and not every test needs it

        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=KEY, max_retries=0, timeout=60)

    def ask(self, path: str, body: Any = None, *, key: str | None = KEY, **headers: str) -> tuple[int, Any]:
        """Status and answer; JSON where it is."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data)
        for name, value in {**({"authorization": f"Bearer {key}"} if key else {}), **headers}.items():
            request.add_header(name, value)
        try:
            with urllib.request.urlopen(request, timeout=60, context=self._context) as answer:
                status, text = answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                status, text = error.code, error.read().decode()
        return status, json.loads(text) if text.startswith("{") else text

    @property
    def _context(self) -> ssl.SSLContext | None:
        return ssl.create_default_context(cafile=self.certificate) if self.certificate else None

    def metric(self, name: str, **labels: str) -> float:
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        lines = self.ask("/metrics")[1].splitlines()
        values = [line for line in lines if line.startswith(name + "{") and all(part in line for part in wanted)]
        return sum(float(line.rsplit(" ", 1)[1]) for line in values)

    def wait_until(self, reached: Callable[[], bool], what: str, seconds: float = 20.0) -> None:
        end = time.monotonic() + seconds
        while not reached():
            assert time.monotonic() < end, f"not {what} within {seconds:.0f} s\n{self.log.read_text()[-3000:]}"
            assert self.process.poll() is None, f"the server ended\n{self.log.read_text()[-3000:]}"
            time.sleep(0.05)

    def is_ready(self) -> bool:
        return self.ask("/ready", key=None)[0] == 200

    def is_idle(self) -> bool:
        used = self.metric("hotstart:pages", state="used") + self.metric("hotstart:slots", state="used")
        busy = self.metric("vllm:num_requests_running") + self.metric("vllm:num_requests_waiting")
        return used == busy == 0


StartServer = Callable[..., Server]


def launch(
    log: Path,
    *flags: str,
    key: str | None = KEY,
    scheme: str = "http",
    certificate: str | None = None,
    python_path: str | None = None,
) -> Server:
    """Returns once it listens, which is long before it is ready."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "hotstart", "serve", CHECKPOINT, "--served-model-name", f"{MODEL},other"]
    command += ["--strict", "--port", str(port), *SMALL, *(("--api-key", key) if key else ()), *flags]
    folders = filter(None, (python_path, str(ROOT / "src"), os.environ.get("PYTHONPATH")))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(folders), "OMP_NUM_THREADS": "1"}
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, text=True, env=environment)
    server = Server(process, f"{scheme}://127.0.0.1:{port}", log, certificate)

    def listens() -> bool:
        try:
            return server.ask("/health", key=None)[0] > 0
        except urllib.error.URLError:
            return False

    server.wait_until(listens, "listening", START_S)
    return server


def end(server: Server) -> None:
    if server.process.poll() is None:
        server.process.send_signal(signal.SIGTERM)
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(30)


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[StartServer]:
    servers = []

    def start(*flags: str, **options: Any) -> Server:
        servers.append(launch(tmp_path / f"server{len(servers)}.log", *flags, **options))
        return servers[-1]

    yield start
    for server in servers:
        end(server)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    found = launch(tmp_path_factory.mktemp("serve") / "server.log")
    assert found.ask("/health", key=None)[0] == 200
    found.wait_until(found.is_ready, "ready", START_S)
    yield found
    end(found)


def post(server: Server, body: dict[str, object], receive_bytes: int | None = None) -> socket.socket:
    """A request whose answer nobody has read yet."""
    address = urlsplit(server.url)
    data = json.dumps(body).encode()
    connection = socket.socket()
    if receive_bytes is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    connection.settimeout(30)
    connection.connect((address.hostname, address.port))
    lines = ("POST /v1/completions HTTP/1.1", "host: x", f"authorization: Bearer {KEY}", f"content-length: {len(data)}")
    connection.sendall("\r\n".join([*lines, "", ""]).encode() + data)
    return connection


def engine_pid(server: Server) -> int:
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
    (engine,) = (pid for pid in children if b"hotstart.engine.worker" in Path(f"/proc/{pid}/cmdline").read_bytes())
    return int(engine)


def read_to_end(connection: socket.socket) -> bytes:
    """All that the server still sends, in however many pieces it comes."""
    answer = b""
    with connection:
        while part := connection.recv(65536):
            answer += part
    return answer
