"""The ASGI application: which path is whose, who may ask, and that every request has an answer.

Paths are matched as a whole and as the server sent them; what is not in the table does not exist.
"""

import asyncio
import hmac
import re
import secrets
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import msgspec

from hotstart import __version__, log
from hotstart.config.server import digest_of
from hotstart.server import metrics
from hotstart.server.answers import (
    ChatChunk,
    ChatCompletion,
    Completion,
    DetokenizedText,
    Health,
    ModelCard,
    ModelList,
    PhaseReport,
    Readiness,
    Tokens,
    Version,
)
from hotstart.server.chat import chat, render
from hotstart.server.completions import complete
from hotstart.server.errors import ApiError
from hotstart.server.exchange import ClientGone, Exchange, Receive, Scope, Send, decode
from hotstart.server.openapi import Answerer, Endpoint, document
from hotstart.server.page import read_page
from hotstart.server.report import plan
from hotstart.server.schemas import ChatRequest, CompletionRequest, DetokenizeRequest, TemplateOptions, TokenizeRequest
from hotstart.server.service import Service

__all__ = ["WARMUP_HEADER", "App"]

WARMUP_HEADER = b"x-hotstart-warmup"
STALL_CHECK_S = 5.0
MODEL_PREFIX, MODEL_PATH = "/v1/models/", "/v1/models/{id}"

T = TypeVar("T")


class App:
    def __init__(self, service: Service, warmup_token: str) -> None:
        self._service = service
        self._warmup_token = warmup_token.encode()
        self._page = read_page()
        self.endpoints = {
            "/": Endpoint("GET", "a page to look at", self._show_page, "text/html", is_public=True),
            "/health": Endpoint(
                "GET", "is it alive", self._health, Health, gives_with_503=Health, errors=(503,), is_public=True
            ),
            "/ready": Endpoint(
                "GET", "does it serve", self._ready, Readiness, gives_with_503=Readiness, errors=(503,), is_public=True
            ),
            "/ping": Endpoint(
                "GET", "as /health", self._health, Health, gives_with_503=Health, errors=(503,), is_public=True
            ),
            "/version": Endpoint("GET", "this program's version", self._version, Version),
            "/metrics": Endpoint("GET", "for Prometheus", self._metrics, "text/plain"),
            "/plan": Endpoint("GET", "memory, start-up, and what came late", self._plan, dict[str, Any]),
            "/openapi.json": Endpoint("GET", "this description", self._openapi, dict[str, Any]),
            "/v1/models": Endpoint("GET", "the models", self._models, ModelList, errors=(503,)),
            MODEL_PATH: Endpoint("GET", "one model", self._model, ModelCard, errors=(404, 503)),
            "/v1/chat/completions": Endpoint(
                "POST",
                "answer a conversation",
                self._generate(ChatRequest, chat),
                ChatCompletion,
                takes=ChatRequest,
                streams=ChatChunk,
            ),
            "/v1/completions": Endpoint(
                "POST",
                "continue a text",
                self._generate(CompletionRequest, complete),
                Completion,
                takes=CompletionRequest,
                streams=Completion,
            ),
            "/tokenize": Endpoint("POST", "text to token ids", self._tokenize, Tokens, takes=TokenizeRequest),
            "/detokenize": Endpoint(
                "POST", "token ids to text", self._detokenize, DetokenizedText, takes=DetokenizeRequest
            ),
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return  # uvicorn answers a websocket that nobody accepts with 403
        exchange = Exchange(scope, receive, send, _request_id(scope))
        try:
            await self._answer(exchange)
        except ClientGone:
            log.debug("client gone", id=exchange.request_id)
        except ApiError as error:
            await _say(exchange, error)
        except Exception as error:  # the edge: the client gets an answer, and the log the cause
            log.error("request failed", id=exchange.request_id, cause=f"{type(error).__name__}: {error}")
            await _say(exchange, ApiError(500, "internal_error", "the server failed at this request"))

    async def _answer(self, exchange: Exchange) -> None:
        endpoint = self._endpoint(exchange.path)
        if not (endpoint and endpoint.is_public):
            self._check_key(exchange)
        if endpoint is None:
            raise ApiError(404, "unknown_path", "there is nothing at this path")
        method = exchange.scope["method"]
        if method != endpoint.method and not (method == "HEAD" and endpoint.method == "GET"):
            allowed = ((b"allow", endpoint.method.encode()),)
            raise ApiError(405, "method_not_allowed", f"this path takes {endpoint.method}", headers=allowed)
        await endpoint.answer(exchange)

    def _endpoint(self, path: str) -> Endpoint | None:
        if path.startswith(MODEL_PREFIX) and path != MODEL_PREFIX:
            return self.endpoints[MODEL_PATH]
        return self.endpoints.get(path)

    def _check_key(self, exchange: Exchange) -> None:
        digests = self._service.keys.digests
        if not digests or self._is_warmup(exchange):
            return
        given = exchange.header(b"x-api-key")
        scheme, _, token = (exchange.header(b"authorization") or b"").partition(b" ")
        if scheme.lower() == b"bearer":
            given = token.strip()
        found = digest_of((given or b"").decode("utf-8", "surrogateescape"))
        # Every key is compared, so that time tells nothing about which one is near.
        if not sum([hmac.compare_digest(found, digest) for digest in digests]):
            challenge = ((b"www-authenticate", b"Bearer"),)
            raise ApiError(401, "invalid_api_key", "the API key is missing or wrong", headers=challenge)

    def _is_warmup(self, exchange: Exchange) -> bool:
        return hmac.compare_digest(exchange.header(WARMUP_HEADER) or b"", self._warmup_token)

    def _generate(self, kind: type[T], handler: Callable[[Service, Exchange, T, str], Awaitable[None]]) -> Answerer:
        decoder = msgspec.json.Decoder(kind)

        async def answer(exchange: Exchange) -> None:
            try:
                self._service.check_open(self._is_warmup(exchange))
                request = decode(decoder, await exchange.body())
                await _unless_gone(exchange, handler(self._service, exchange, request, secrets.token_hex(12)))
            except ApiError as error:
                self._service.metrics.rejected(error.code)
                raise

        return answer

    async def _show_page(self, exchange: Exchange) -> None:
        await exchange.answer(self._page.body, content_type="text/html; charset=utf-8", headers=self._page.headers)

    async def _health(self, exchange: Exchange) -> None:
        trouble = self._service.client.trouble()
        await exchange.answer_json(Health("ok" if trouble is None else "failing", trouble), 503 if trouble else 200)

    async def _ready(self, exchange: Exchange) -> None:
        status, startup = self._service.status, self._service.client.startup
        phases = [PhaseReport(p.name, p.seconds, p.num_bytes, p.detail) for p in startup.phases]
        is_ready = status == "ready"
        percent = 100.0 if self._service.is_open else startup.percent
        body = Readiness(status, status if self._service.is_open else startup.phase, percent, phases, startup.note)
        await exchange.answer_json(body, 200 if is_ready else 503, () if is_ready else ((b"retry-after", b"1"),))

    async def _version(self, exchange: Exchange) -> None:
        await exchange.answer_json(Version(__version__))

    async def _metrics(self, exchange: Exchange) -> None:
        await exchange.answer(self._service.metrics.text(), content_type=metrics.CONTENT_TYPE)

    async def _plan(self, exchange: Exchange) -> None:
        await exchange.answer_json(plan(self._service))

    async def _openapi(self, exchange: Exchange) -> None:
        await exchange.answer_json(document(self.endpoints))

    async def _models(self, exchange: Exchange) -> None:
        self._service.check_open(self._is_warmup(exchange))
        await exchange.answer_json(ModelList([self._card(name) for name in self._service.model_names]))

    async def _model(self, exchange: Exchange) -> None:
        self._service.check_open(self._is_warmup(exchange))
        name = self._service.model_name(exchange.path.removeprefix(MODEL_PREFIX))
        await exchange.answer_json(self._card(name))

    def _card(self, name: str) -> ModelCard:
        service = self._service
        return ModelCard(name, service.created, service.model_names[0], service.ready.limits.max_model_len)

    async def _tokenize(self, exchange: Exchange) -> None:
        service = self._service
        service.check_open(self._is_warmup(exchange))
        request = decode(_tokenize_decoder, await exchange.body())
        service.model_name(request.model)
        if (request.prompt is None) == (request.messages is None):
            raise ApiError(400, "invalid_value", "give either prompt or messages", param="prompt")
        ids = await service.prepare(exchange, lambda: _tokenized(service, request))
        texts = [service.edge.tokenizer.token_text(i) for i in ids] if request.return_token_strs else None
        await exchange.answer_json(Tokens(len(ids), service.ready.limits.max_model_len, list(ids), texts))

    async def _detokenize(self, exchange: Exchange) -> None:
        service = self._service
        service.check_open(self._is_warmup(exchange))
        request = decode(_detokenize_decoder, await exchange.body())
        service.model_name(request.model)
        limit = service.ready.vocab_size
        if request.tokens and max(request.tokens) >= limit:
            raise ApiError(400, "invalid_value", f"token ids must be below {limit}, one of them is not", param="tokens")
        text = service.edge.tokenizer.decode(request.tokens, skip_special_tokens=False)
        await exchange.answer_json(DetokenizedText(text))


_tokenize_decoder = msgspec.json.Decoder(TokenizeRequest)
_detokenize_decoder = msgspec.json.Decoder(DetokenizeRequest)


def _tokenized(service: Service, request: TokenizeRequest) -> tuple[int, ...]:
    if request.messages is None:
        return service.encode(request.prompt or "", "prompt", request.add_special_tokens is not False)
    options = request.chat_template_kwargs or TemplateOptions()
    wants_prompt = request.add_generation_prompt is not False
    text = render(service, request.messages, request.tools, options, add_generation_prompt=wants_prompt)
    return service.encode(text, "messages", add_special_tokens=False)


async def _unless_gone(exchange: Exchange, work: Any) -> None:
    """Does the work, unless the client goes before it is done: then it is cancelled, which aborts its requests."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(exchange.gone())
    try:
        while not (working.done() or leaving.done() or exchange.is_stalled):
            await asyncio.wait((working, leaving), timeout=STALL_CHECK_S, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGone
    finally:
        leaving.cancel()
        working.cancel()
        await asyncio.wait((working, leaving))
    working.result()


async def _say(exchange: Exchange, error: ApiError) -> None:
    if exchange.status and not exchange.began_stream:
        return  # the answer has begun, and cannot be taken back
    try:
        await exchange.answer_error(error)
    except ClientGone:
        log.debug("client gone", id=exchange.request_id)


def _request_id(scope: Scope) -> str:
    """The client's own, if it is harmless; it is only ever echoed and logged."""
    given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
    return given.decode() if re.fullmatch(rb"[\w.-]{1,64}", given, re.ASCII) else secrets.token_hex(8)
