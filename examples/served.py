"""`hotstart serve` as a process beside a program: started, waited for with its phases, ended."""

import http.client
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

__all__ = ["NotStarted", "Served", "serve"]

SOURCES = Path(__file__).parents[1] / "src"
POLL_S = 0.1


class NotStarted(Exception):
    """The server's last words."""


@dataclass
class Served:
    port: int
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(self, path: str) -> tuple[int, Any]:
        """Status and JSON; 0 while nobody listens."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        except ConnectionError:
            return 0, {}
        finally:
            connection.close()

    def wait_ready(self, console: Console) -> None:
        """Raises NotStarted if the process ends before."""
        columns = TextColumn("{task.description:<16}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %")
        with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as bars:
            task = bars.add_task("start the server", total=100)
            while True:
                status, said = self.ask("/ready")
                if status == 200:
                    return
                if self.process.poll() is not None:
                    raise NotStarted(self.log.read_text().strip().splitlines()[-1])
                if said:
                    bars.update(task, description=said["phase"], completed=said["percent"])
                time.sleep(POLL_S)


@contextmanager
def serve(model: Path, *flags: str, first_on_path: Path | None = None) -> Iterator[Served]:
    """A server that has been started; whoever wants it ready waits.  What it logs goes into a file."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    paths = [str(path) for path in (first_on_path, SOURCES) if path] + [os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    command = [sys.executable, "-m", "hotstart", "serve", str(model), "--port", str(port), "--no-progress", *flags]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "server.log")
        with log.open("wb") as file:
            process = subprocess.Popen(command, stdout=file, stderr=file, env=environment)
        try:
            yield Served(port, process, log)
        finally:
            process.terminate()
            process.wait(60)
