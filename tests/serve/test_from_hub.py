"""A server that is given a name on the hub: it fetches while it listens, and says so."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hub import run_hub

from serve.conftest import CHECKPOINT, ROOT, SMALL, Server

NAME = "some/tiny"


def serve(tmp_path: Path, url: str, *flags: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "hotstart", "serve", NAME, "--strict", "--port", "0", *SMALL, *flags]
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_ENDPOINT": url, "PYTHONPATH": str(ROOT / "src")}
    environment |= {"HF_HUB_DISABLE_XET": "1", "NO_PROXY": "*", "OMP_NUM_THREADS": "1"}
    with (tmp_path / "log").open("w") as file:
        return subprocess.Popen(command, stdout=file, stderr=file, text=True, env=environment)


def test_a_name_on_the_hub_is_served(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with run_hub(NAME, Path(CHECKPOINT)) as hub:
        process = serve(tmp_path, hub.url)
        server = Server(process, "", log)
        server.wait_until(lambda: "ready at" in log.read_text() or process.poll() is not None, "ready", 90)
    server.url = log.read_text().partition("listening  url=")[2].split()[0]
    assert server.ask("/v1/models")[1]["data"][0]["id"] == NAME
    phases = [phase["name"] for phase in server.ask("/plan")[1]["startup"]]
    assert phases[0] == "download" and "load weights" in phases
    body = {"prompt": "a", "max_tokens": 2}
    assert server.ask("/v1/completions", body)[0] == 200
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0


@pytest.mark.parametrize(("stalls", "code", "words"), [(True, 0, "draining"), (False, 2, "cannot be reached")])
def test_what_cannot_be_fetched(tmp_path: Path, stalls: bool, code: int, words: str) -> None:
    with run_hub(NAME, Path(CHECKPOINT)) as hub:
        hub.is_slow = stalls
        process = serve(tmp_path, hub.url if stalls else "http://127.0.0.1:9")
        server = Server(process, "", tmp_path / "log")
        if stalls:  # a download that has only begun does not keep the server from ending
            server.wait_until(lambda: bool(hub.fetched), "downloading", 60)
            process.send_signal(signal.SIGTERM)
        try:
            assert process.wait(60) == code
        finally:
            process.kill()
            process.wait()
    text = (tmp_path / "log").read_text()
    assert words in text and "Traceback" not in text
