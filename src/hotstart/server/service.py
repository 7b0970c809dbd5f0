"""Service: what the endpoints share.  Names, tokenizer, template, the engine, and who may come in."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from hotstart.config.engine import EngineConfig
from hotstart.config.generation import read_sampling_defaults
from hotstart.config.model import read_model_config
from hotstart.config.server import Keys, ServerConfig
from hotstart.engine.imports import ImportWatch
from hotstart.engine.messages import Ready
from hotstart.errors import CheckpointError, HotstartError, RequestError
from hotstart.request import SamplingParams
from hotstart.server.client import EngineClient
from hotstart.server.errors import ApiError, api_error_of, bad_request
from hotstart.server.exchange import Exchange
from hotstart.server.metrics import Metrics
from hotstart.server.report import late_counts, samples
from hotstart.server.submission import Submission
from hotstart.text.chat import ChatTemplate, read_chat_template
from hotstart.text.grammar import Grammars
from hotstart.text.tokenizer import Tokenizer

__all__ = ["LONG_BODY_BYTES", "Service"]

LONG_BODY_BYTES = 16 * 2**10
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Edge:
    """Text on its way in and out, and what the checkpoint recommends."""

    tokenizer: Tokenizer
    template: ChatTemplate | None
    template_error: str
    defaults: SamplingParams
    grammars: Grammars

    @classmethod
    def read(cls, config: EngineConfig, server: ServerConfig) -> "Edge":
        """Raises CheckpointError, ConfigError or UnsupportedModel."""
        folder = Path(config.tokenizer or config.model)
        tokenizer = Tokenizer(folder)
        assert tokenizer.longest_token_bytes, "a vocabulary without text"
        try:
            template, error = read_chat_template(folder, tokenizer.special_tokens, server.chat_template), ""
        except CheckpointError:
            if server.chat_template:
                raise
            template, error = None, "this model has no chat template; use /v1/completions"
        defaults = read_sampling_defaults(
            Path(config.model), server.generation_config, server.override_generation_config
        )
        model = read_model_config(config.model)
        grammars = Grammars(folder, model.vocab_size, model.eos_token_ids)
        return cls(tokenizer, template, error, defaults, grammars)


class Service:
    def __init__(self, config: EngineConfig, server: ServerConfig, keys: Keys, client: EngineClient) -> None:
        self.config = config
        self.server = server
        self.keys = keys
        self.client = client
        self.model_names = server.model_names(config.model)
        self.metrics = self.make_metrics()
        self.created = int(time.time())
        self._edge: Edge | None = None
        self.imports = ImportWatch()
        self.is_open = False  # sealed and warm: requests of clients are served
        self.is_draining = False

    async def read(self) -> None:
        """What text needs, once the checkpoint is here.  Raises CheckpointError, ConfigError or UnsupportedModel."""
        self._edge = await asyncio.to_thread(Edge.read, await self.client.wait_checkpoint(), self.server)

    async def open(self) -> None:
        """From here on clients are served, and what this process or the engine's imports is late."""
        await self.client.open()
        self.imports.seal()
        self.is_open = True

    def close(self) -> None:
        self.imports.close()

    @property
    def status(self) -> str:
        if self.client.failure is not None:
            return "dead"
        if self.is_draining:
            return "draining"
        return "ready" if self.is_open else "loading"

    @property
    def ready(self) -> Ready:
        assert self.client.ready is not None, "asked before the engine was ready"
        return self.client.ready

    @property
    def edge(self) -> Edge:
        assert self._edge is not None, "asked before the tokenizer was read"
        return self._edge

    @property
    def has_chat(self) -> bool:
        return self._edge is not None and self._edge.template is not None

    def check_open(self, is_warmup: bool) -> None:
        """Raises the ApiError that says why nothing is served now."""
        status = self.status
        if status == "ready" or (is_warmup and status == "loading"):
            return
        if status == "loading":
            message = f"the model is loading: {self.client.startup.phase}; ask /ready"
        elif status == "draining":
            message = "the server is shutting down"
        else:
            message = "the engine has stopped; the server is going down"
        raise ApiError(503, status, message, retry_after_s=5)

    def model_name(self, asked: str | None) -> str:
        """The name to answer with.  Raises an ApiError for a model that is not here."""
        if asked is None:
            return self.model_names[0]
        if asked not in self.model_names:
            raise ApiError(
                404, "model_not_found", "there is no such model here; /v1/models names those there are", param="model"
            )
        return asked

    def check_prompt(self, token_ids: Sequence[int], max_tokens: int | None, field: str) -> None:
        """Raises an ApiError for a prompt that could never run, or whose answer might not fit."""
        limits = self.ready.limits
        try:
            limits.check_prompt(len(token_ids))
        except RequestError as error:
            found = api_error_of(error)
            raise ApiError(found.status, found.code, found.message, param=field) from None
        if max(token_ids) >= self.ready.vocab_size:
            raise bad_request(f"token ids must be below {self.ready.vocab_size}, one of them is not", field)
        if max_tokens is not None and len(token_ids) + max_tokens > limits.max_sequence_length:
            raise ApiError(
                400,
                "context_length_exceeded",
                f"the prompt has {len(token_ids)} tokens and max_tokens is {max_tokens}; together they may be "
                f"{limits.max_sequence_length}; lower max_tokens or shorten the prompt",
                param="max_tokens",
            )

    def encode(self, text: str, field: str, add_special_tokens: bool = True) -> tuple[int, ...]:
        fewest = len(text) // self.edge.tokenizer.longest_token_bytes
        limit = self.ready.limits.max_model_len
        if fewest > limit:
            message = f"the prompt has at least {fewest} tokens, this model reads {limit}; shorten it"
            raise bad_request(message, field, "context_length_exceeded")
        try:
            return tuple(self.edge.tokenizer.encode(text, add_special_tokens))
        except RequestError as error:
            raise bad_request(str(error), field) from None

    async def prepare(self, exchange: Exchange, work: Callable[[], T]) -> T:
        """What takes long for a long text is done beside the loop, so that streams go on."""
        return await asyncio.to_thread(work) if exchange.num_body_bytes > LONG_BODY_BYTES else work()

    def submit(self, prompts: Sequence[tuple[tuple[int, ...], SamplingParams]]) -> Submission:
        """Raises an ApiError: too many now, or more than this server ever takes at once."""
        if len(prompts) > self.client.capacity:
            raise bad_request(
                f"{len(prompts)} answers are asked for at once, this server takes {self.client.capacity}", "n"
            )
        try:
            return self.client.submit(prompts)
        except HotstartError as error:
            raise api_error_of(error) from None

    def late_counts(self) -> dict[str, int | None]:
        """By kind, of both processes; None where nothing could ever be such an event."""
        return late_counts(self.client, self.imports.names)

    def make_metrics(self) -> Metrics:
        return Metrics(self.model_names[0], lambda: samples(self.client, self.imports.names))

    def now(self) -> int:
        return int(time.time())
