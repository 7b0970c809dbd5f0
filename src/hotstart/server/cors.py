"""Cross-origin requests: which web pages may ask, so that a browser lets them read the answer."""

from collections.abc import Awaitable, Callable
from typing import Any

from hotstart.config.server import ServerConfig
from hotstart.server.exchange import Receive, Scope, Send

__all__ = ["Cors"]

Application = Callable[[Scope, Receive, Send], Awaitable[None]]
MAX_AGE_S = b"600"
SHOWN = b"x-request-id, retry-after"


class Cors:
    """Stands before the application.  Origins are compared as a whole; without any, nothing is added to answers."""

    def __init__(self, app: Application, server: ServerConfig) -> None:
        self._app = app
        self._origins = frozenset(origin.encode() for origin in server.allowed_origins)
        self._methods = ", ".join(server.allowed_methods).encode()
        self._headers = ", ".join(server.allowed_headers).encode()
        self._has_credentials = server.allow_credentials

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        origin = _header(scope, b"origin") if scope["type"] == "http" else None
        if origin is None or not self._origins & {origin, b"*"}:
            return await self._app(scope, receive, send)
        granted = [(b"access-control-allow-origin", b"*" if b"*" in self._origins else origin), (b"vary", b"origin")]
        if self._has_credentials:
            granted.append((b"access-control-allow-credentials", b"true"))
        asked = _header(scope, b"access-control-request-headers")
        if scope["method"] == "OPTIONS" and _header(scope, b"access-control-request-method") is not None:
            headers = asked or b"" if self._headers == b"*" else self._headers
            granted += [
                (b"access-control-allow-methods", self._methods),
                (b"access-control-allow-headers", headers),
                (b"access-control-max-age", MAX_AGE_S),
            ]
            await send({"type": "http.response.start", "status": 204, "headers": granted})
            return await send({"type": "http.response.body", "body": b""})
        granted.append((b"access-control-expose-headers", SHOWN))

        async def send_granted(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *granted]}
            await send(message)

        return await self._app(scope, receive, send_granted)


def _header(scope: Scope, name: bytes) -> bytes | None:
    return next((value for key, value in scope["headers"] if key == name), None)
