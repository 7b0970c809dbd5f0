"""One HTTP request and its answer, over ASGI: a bounded body in, JSON or a stream of events out."""

import asyncio
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeVar

import msgspec

from hotstart.server.errors import ApiError

__all__ = ["ClientGone", "Exchange", "Receive", "Scope", "Send", "decode"]

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
T = TypeVar("T")

MAX_BODY_BYTES = 32 * 2**20
BODY_TIMEOUT_S = 30.0
WRITE_TIMEOUT_S = 120.0  # of a client that reads nothing at all

encode = msgspec.json.Encoder().encode


class ClientGone(Exception):
    """The client closed the connection, or has read nothing for long."""


class Exchange:
    def __init__(self, scope: Scope, receive: Receive, send: Send, request_id: str) -> None:
        self.scope = scope
        self.request_id = request_id
        self.status = 0  # of the answer; 0 until it has begun
        self.began_stream = False
        self.num_body_bytes = 0
        self._writing_since: float | None = None
        self._receive = receive
        self._send = send

    @property
    def path(self) -> str:
        return str(self.scope["path"])

    def header(self, name: bytes) -> bytes | None:
        """None unless there is exactly one."""
        values = [value for key, value in self.scope["headers"] if key == name]
        return values[0] if len(values) == 1 else None

    async def body(self) -> bytes:
        announced = self.header(b"content-length")
        if announced is not None and announced.isdigit() and int(announced) > MAX_BODY_BYTES:
            raise _too_large()
        body = bytearray()
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                more = True
                while more:
                    message = await self._receive()
                    if message["type"] == "http.disconnect":
                        raise ClientGone
                    body += message.get("body", b"")
                    more = message.get("more_body", False)
                    if len(body) > MAX_BODY_BYTES:
                        raise _too_large()
        except TimeoutError:
            raise ApiError(408, "body_timeout", "the body did not arrive in time", retry_after_s=1) from None
        self.num_body_bytes = len(body)
        return bytes(body)

    async def gone(self) -> None:
        """Returns once the client is gone; to be called after the body was read."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    @property
    def is_stalled(self) -> bool:
        """Whether the client has read nothing for so long that it counts as gone; of a stream, asked now and then."""
        since = self._writing_since
        return since is not None and time.monotonic() - since > WRITE_TIMEOUT_S

    async def answer(
        self,
        body: bytes,
        *,
        status: int = 200,
        content_type: str = "application/json",
        headers: tuple[tuple[bytes, bytes], ...] = (),
    ) -> None:
        length = str(len(body)).encode()
        await self._begin(status, content_type, ((b"content-length", length), *headers))
        # An answer without a body must say how long it would be.
        await self._write(b"" if self.scope["method"] == "HEAD" else body, more=False)

    async def answer_json(
        self, value: object, status: int = 200, headers: tuple[tuple[bytes, bytes], ...] = ()
    ) -> None:
        await self.answer(encode(value), status=status, headers=headers)

    async def answer_error(self, error: ApiError) -> None:
        """The envelope; in a stream that has begun, as its last event."""
        if self.began_stream:
            await self._write(b"data: " + encode(error.body) + b"\n\n", more=False)
        else:
            await self.answer_json(error.body, error.status, error.headers)

    async def begin_stream(self) -> None:
        self.began_stream = True
        await self._begin(200, "text/event-stream; charset=utf-8", ((b"cache-control", b"no-cache"),))

    async def send_events(self, *values: object) -> None:
        """All in one write."""
        await self._write(b"".join(b"data: " + encode(value) + b"\n\n" for value in values), more=True)

    async def send_comment(self) -> None:
        await self._write(b": keep-alive\n\n", more=True)

    async def end_stream(self) -> None:
        await self._write(b"data: [DONE]\n\n", more=False)

    async def _begin(self, status: int, content_type: str, headers: tuple[tuple[bytes, bytes], ...]) -> None:
        self.status = status
        head = [(b"content-type", content_type.encode()), (b"x-request-id", self.request_id.encode()), *headers]
        await self._send({"type": "http.response.start", "status": status, "headers": head})

    async def _write(self, body: bytes, *, more: bool) -> None:
        # A timer for each token of each stream would cost more than the token: somebody asks `is_stalled` instead.
        self._writing_since = time.monotonic()
        try:
            await self._send({"type": "http.response.body", "body": body, "more_body": more})
        except OSError:
            raise ClientGone from None
        self._writing_since = None


def _too_large() -> ApiError:
    limit = MAX_BODY_BYTES // 2**20
    close = ((b"connection", b"close"),)
    return ApiError(413, "body_too_large", f"the body is larger than {limit} MiB; send less", headers=close)


def decode(decoder: "msgspec.json.Decoder[T]", body: bytes) -> T:
    """Raises an ApiError that names the field."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise _field_error(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise ApiError(400, "invalid_json", "the body is not valid JSON; send one object, in UTF-8") from None
    except RecursionError:
        raise ApiError(400, "invalid_json", "the body is nested too deeply") from None


def _field_error(message: str) -> ApiError:
    """msgspec says "Expected `int` >= 0 - at `$.n`"; values that it quotes are the client's own and are left out."""
    what, _, where = message.replace(" - at `key` in `$", " - at `$").partition(" - at `$")
    param = where.rstrip("`").lstrip(".") or None
    if what.startswith(("Invalid enum value", "Invalid value")):
        what = "not one of the values that are accepted here"
    elif what.startswith("Object missing required field"):
        name = what.split("`")[1]
        param = f"{param}.{name}" if param else name
        what = "this field is required"
    elif what.startswith("Object contains unknown field"):
        what = "there is a field here that is not known"
    what = what[0].lower() + what[1:].replace("`", "")
    return ApiError(400, "invalid_value", f"{param}: {what}" if param else what, param=param)
