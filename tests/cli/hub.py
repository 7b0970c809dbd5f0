"""A stand-in for the Hugging Face hub on this machine: one repository, and what was asked of it."""

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlparse

__all__ = ["COMMIT", "Hub", "run_hub"]

COMMIT = "c0ffee" * 6 + "c0ff"


class Hub(ThreadingHTTPServer):
    """Serves `files` as the repository `name`; `gated` refuses everybody."""

    def __init__(self, name: str, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repository = name
        self.files = files
        self.is_gated = False
        self.is_slow = False  # a file comes byte by byte
        self.fetched: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the test looks at `fetched`."""

    def _answer(self, with_body: bool) -> None:
        path, hub = urlparse(self.path).path, self.server
        api, files = f"/api/models/{hub.repository}", f"/{hub.repository}/resolve/{COMMIT}/"
        headers = {"X-Repo-Commit": COMMIT}
        status, body = 200, b""
        if hub.is_gated:
            status, headers = 403, {"X-Error-Code": "GatedRepo"}
        elif path in (api, f"{api}/revision/main"):
            siblings = [{"rfilename": name} for name in hub.files]
            body = json.dumps({"id": hub.repository, "sha": COMMIT, "siblings": siblings}).encode()
        elif path == f"{api}/tree/{COMMIT}":
            body = json.dumps([self._entry(name, data) for name, data in hub.files.items()]).encode()
        elif path.startswith(f"{api}/"):
            status, headers = 404, {"X-Error-Code": "RevisionNotFound"}
        elif path.startswith(files) and path.removeprefix(files) in hub.files:
            body = hub.files[path.removeprefix(files)]
            headers["ETag"] = f'"{_id_of(body)}"'
            if with_body:
                hub.fetched.append(path.removeprefix(files))
        else:
            status, headers = 404, {"X-Error-Code": "RepoNotFound"}
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body and path.startswith(files) and hub.is_slow:
            for byte in body:
                self.wfile.write(bytes([byte]))
                time.sleep(0.05)
        elif with_body:
            self.wfile.write(body)

    def _entry(self, name: str, data: bytes) -> dict[str, object]:
        return {"type": "file", "path": name, "size": len(data), "oid": _id_of(data)}


def _id_of(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


@contextmanager
def run_hub(name: str, folder: Path, **more: bytes) -> Iterator[Hub]:
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    hub = Hub(name, files | more)
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        thread.join()
        hub.server_close()
