"""What `hotstart serve` does in a terminal: bars while it starts, eight lines when it is ready, nothing late for it."""

import os
import pty
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

from serve.conftest import CHECKPOINT, ROOT, SMALL, START_S, Server


def test_bars_end_and_lines_follow(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    log = tmp_path / "log"
    log.touch()

    def drain() -> None:
        with log.open("ab") as file:
            try:
                while data := os.read(ours, 65536):
                    file.write(data)
                    file.flush()
            except OSError:  # how the other end's close is told
                pass

    command = [sys.executable, "-m", "hotstart", "serve", CHECKPOINT, "--strict", "--port", "0", *SMALL]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "TERM": "xterm"}
    environment.pop("NO_COLOR", None)
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    drainer = threading.Thread(target=drain)
    drainer.start()
    server = Server(process, "", log)  # type: ignore[arg-type]  # bytes or text, nobody reads from it
    try:
        server.wait_until(lambda: "no API key is asked for" in log.read_text(), "ready", START_S)
        raw = log.read_text()
        text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", raw)
        assert "load weights" in text and "━" in text and "\x1b[1mmodel" in raw
        server.url = re.findall(r"ready at +(http://[\d.:]+)/v1", text)[-1]
        assert server.ask("/v1/completions", {"prompt": "a", "max_tokens": 2})[0] == 200
        found = server.ask("/plan")[1]
        assert found["late_events"] == [] and found["late_counts"]["import"] == 0
        size = log.stat().st_size
        for _ in range(3):
            server.ask("/health")
        assert log.stat().st_size == size, "something still draws"
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        drainer.join()
        os.close(ours)
