"""Who answers in `hotstart chat`: a server that runs somewhere, or an engine started for it.

Both stream an answer in pieces, each told as reasoning or as text.
"""

import contextlib
import http.client
import json
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from hotstart.errors import ConfigError, EngineDead, RequestError
from hotstart.text.thinking import Thinking

if TYPE_CHECKING:
    from hotstart.engine.llm import LLM
    from hotstart.request import SamplingParams

__all__ = ["Engine", "Message", "Piece", "Server", "Talker"]

Message = Mapping[str, str]
Piece = tuple[bool, str]  # is it reasoning, and its text

LOADING_POLL_S = 1.0
TIMEOUT_S = 600.0


class Talker(Protocol):
    name: str

    def answer(self, messages: Sequence[Message]) -> Iterator[Piece]:
        """Raises RequestError where this conversation cannot be answered, EngineDead where nobody answers any more."""


class Engine:
    """In this process."""

    def __init__(self, llm: "LLM", params: "SamplingParams", template: Mapping[str, Any], name: str) -> None:
        self.name = name
        self._llm = llm
        self._params = params
        self._template = template

    def answer(self, messages: Sequence[Message]) -> Iterator[Piece]:
        prompt = self._llm.chat_prompt(messages, chat_template_kwargs=self._template)
        thinking = Thinking.after(prompt["prompt"])
        for text in self._llm.stream(prompt, self._params):
            yield from _pieces(*thinking.push(text))
        yield from _pieces(*thinking.finish())


class Server:
    """Any that speaks OpenAI's API.  `wishes` are fields of the request."""

    def __init__(self, url: str, key: str | None, wishes: Mapping[str, Any]) -> None:
        self._connection = _connections(url)
        self.name = self.url = url.removesuffix("/").removesuffix("/v1")
        self._headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
        self._wishes = dict(wishes)

    def connect(self, on_loading: Callable[[str], None]) -> None:
        """Waits while the server says that it is loading.  Raises ConfigError if there is none."""
        told = ""
        while True:
            status, body = self._get("/v1/models")
            if status == 200:
                break
            if status != 503 or _code(body) != "loading":
                raise ConfigError(f"{self.url}: {_message(status, body)}{_remedy(status)}")
            if (message := _message(status, body)) != told:
                on_loading(message)
                told = message
            time.sleep(LOADING_POLL_S)
        models = [str(model.get("id")) for model in body.get("data", [])]
        if models:
            self._wishes.setdefault("model", models[0])
            self.name = f"{self._wishes['model']} at {self.url}"

    def answer(self, messages: Sequence[Message]) -> Iterator[Piece]:
        body = {"messages": list(messages), "stream": True, **self._wishes}
        with self._asked("POST", "/v1/chat/completions", json.dumps(body)) as answer:
            if answer.status != 200:
                raise RequestError(_message(answer.status, _read(answer)) + _remedy(answer.status))
            for line in answer:
                if line.startswith(b"data: ") and line.strip() != b"data: [DONE]":
                    yield from _pieces_of(_object(line.removeprefix(b"data: ")))

    def _get(self, path: str) -> tuple[int, dict[str, Any]]:
        with self._asked("GET", path) as answer:
            return answer.status, _read(answer)

    @contextlib.contextmanager
    def _asked(self, method: str, path: str, body: str | None = None) -> Iterator[http.client.HTTPResponse]:
        connection = self._connection()
        try:
            connection.request(method, path, body, self._headers)
            yield connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, ConnectionRefusedError | FileNotFoundError):
                remedy = "start a server (hotstart serve MODEL), or name a model"
                raise ConfigError(f"nobody listens at {self.url}; {remedy}") from error
            raise EngineDead(f"{self.url} does not answer: {error or type(error).__name__}") from error
        finally:
            connection.close()


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(TIMEOUT_S)
        self.sock.connect(self._path)


def _connections(url: str) -> Callable[[], http.client.HTTPConnection]:
    """Makes connections to a server's address.  Raises ConfigError if that is none."""
    if url.startswith("unix:"):
        return partial(_UnixConnection, url.removeprefix("unix:"))
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = None
    if not host or parts.scheme not in ("http", "https"):
        raise ConfigError(f"{url!r} is no server's address; write http://127.0.0.1:8000")
    if parts.scheme == "http":
        return partial(http.client.HTTPConnection, host, port, timeout=TIMEOUT_S)
    return partial(http.client.HTTPSConnection, host, port, timeout=TIMEOUT_S, context=ssl.create_default_context())


def _pieces(reasoning: str, text: str) -> Iterator[Piece]:
    yield from ((is_reasoning, each) for is_reasoning, each in ((True, reasoning), (False, text)) if each)


def _pieces_of(event: Mapping[str, Any]) -> Iterator[Piece]:
    if "error" in event:
        raise RequestError(str(event["error"].get("message", "the answer ended with an error")))
    for choice in event.get("choices", []):
        delta = choice.get("delta", {})
        yield from _pieces(delta.get("reasoning") or delta.get("reasoning_content") or "", delta.get("content") or "")


def _read(answer: http.client.HTTPResponse) -> dict[str, Any]:
    return _object(answer.read())


def _object(text: bytes) -> dict[str, Any]:
    """{} for what is no JSON object: this server may be of any kind."""
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _error(body: Mapping[str, Any]) -> Mapping[str, Any]:
    error = body.get("error")
    return error if isinstance(error, dict) else {}


def _code(body: Mapping[str, Any]) -> str:
    return str(_error(body).get("code"))


def _message(status: int, body: Mapping[str, Any]) -> str:
    return str(_error(body).get("message") or f"the server answered {status} {http.client.responses.get(status, '')}")


def _remedy(status: int) -> str:
    return "; give it by --api-key or HOTSTART_API_KEY" if status == 401 else ""
