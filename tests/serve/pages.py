"""The page at `/` with answers that a test chooses: states that no healthy server is in for long."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from hotstart.server.page import read_page

__all__ = ["Stage", "stage"]


class Stage:
    """`plan` is what /plan says, None that it wants a key; `ready` is what /ready says."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.plan: dict[str, Any] | None = None
        self.ready: dict[str, Any] = {}


@contextmanager
def stage() -> Iterator[Stage]:
    page = read_page()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = {"/": page.body, "/plan": shown.plan, "/ready": shown.ready}[self.path]
            body = found if isinstance(found, bytes) else json.dumps(found).encode()
            self.send_response(401 if found is None else 200)
            for name, value in page.headers if self.path == "/" else ():
                self.send_header(name.decode(), value.decode())
            self.send_header("content-type", "text/html" if self.path == "/" else "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        shown = Stage(f"http://127.0.0.1:{server.server_address[1]}/")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield shown
        finally:
            server.shutdown()
            thread.join()
