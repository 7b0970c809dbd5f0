"""/v1/completions: text or token ids in; text out, with the prompt and log-probabilities where they are asked for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from msgspec import UNSET, UnsetType

from hotstart.request import PositionLogprobs, SamplingParams, StructuredOutputsParams
from hotstart.server.answers import Completion, TextChoice, TextLogprobs, Usage
from hotstart.server.errors import bad_request
from hotstart.server.exchange import Exchange
from hotstart.server.generation import Choice, Generation, Wish
from hotstart.server.sampling import params_of
from hotstart.server.schemas import MAX_PROMPTS, CompletionRequest
from hotstart.server.service import Service
from hotstart.server.stream import stream
from hotstart.server.structured import shape_of

__all__ = ["complete"]


@dataclass(frozen=True, slots=True)
class _Prompt:
    ids: tuple[int, ...]
    text: str | None  # as it was given


async def complete(service: Service, exchange: Exchange, request: CompletionRequest, request_id: str) -> None:
    model = service.model_name(request.model)
    _check(request)
    given = _split(request.prompt)
    prompts = await service.prepare(exchange, lambda: [_encode(service, prompt, request) for prompt in given])
    for prompt in prompts:
        service.check_prompt(prompt.ids, request.max_tokens, "prompt")
    params = _params(service, request, await shape_of(service, request))
    n = params.n
    wishes: list[Wish] = [(prompt.ids, each) for prompt in prompts for each in params.choices()]
    service.metrics.asked(n, request.max_tokens)
    with Generation(service, request_id, wishes, n) as generation:
        writer = _Writer(
            service, request, model, f"cmpl-{request_id}", generation, [p for p in prompts for _ in range(n)]
        )
        if request.stream:
            await writer.stream(exchange)
        else:
            await generation.complete()
            await exchange.answer_json(writer.whole())


def _check(request: CompletionRequest) -> None:
    if request.suffix:
        raise bad_request("suffix is not implemented; leave it away", "suffix", "unsupported_parameter")
    if request.best_of not in (None, request.n or 1):
        raise bad_request("best_of is not implemented; leave it away", "best_of", "unsupported_parameter")
    if request.max_tokens == 0 and not request.echo:
        raise bad_request("max_tokens is 0, which needs echo; raise it to at least 1", "max_tokens")


def _split(given: str | list[str | int | list[int]]) -> Sequence[str | list[int]]:
    """One prompt or several, each as text or as token ids."""
    if isinstance(given, str):
        return [given]
    if all(isinstance(item, int) for item in given):
        return [given]  # type: ignore[list-item]  # all of it are integers
    if len(given) > MAX_PROMPTS:
        raise bad_request(f"{len(given)} prompts, at most {MAX_PROMPTS} are accepted in one request", "prompt")
    if any(isinstance(item, int) for item in given):
        raise bad_request("prompt mixes token ids with prompts; give one list of ids, or a list of prompts", "prompt")
    return given  # type: ignore[return-value]  # no integer is in it


def _encode(service: Service, prompt: str | list[int], request: CompletionRequest) -> _Prompt:
    if isinstance(prompt, str):
        return _Prompt(service.encode(prompt, "prompt", request.add_special_tokens is not False), prompt)
    if prompt and min(prompt) < 0:
        raise bad_request("prompt holds a negative token id", "prompt")
    return _Prompt(tuple(prompt), None)


def _params(service: Service, request: CompletionRequest, shape: StructuredOutputsParams | None) -> SamplingParams:
    return params_of(
        service,
        request,
        # The engine always samples; what was not asked for is not shown.
        max_tokens=16 if request.max_tokens is None else max(request.max_tokens, 1),
        logprobs=request.logprobs,
        prompt_logprobs=request.logprobs if request.echo else None,
        shape=shape,
    )


class _Writer:
    def __init__(
        self,
        service: Service,
        request: CompletionRequest,
        model: str,
        completion_id: str,
        generation: Generation,
        prompts: Sequence[_Prompt],
    ) -> None:
        self._service = service
        self._request = request
        self._model = model
        self._id = completion_id
        self._generation = generation
        self._prompts = prompts
        self._created = service.now()

    def whole(self) -> Completion:
        return self._completion([self._piece(choice) for choice in self._generation.choices], self._usage())

    async def stream(self, exchange: Exchange) -> None:
        await stream(
            exchange,
            self._generation,
            self._request.stream_options,
            keep_alive_s=float(self._service.server.sse_keep_alive_interval),
            pieces_of=self._new_pieces,
            chunk=self._completion,
            usage=self._usage,
        )

    def _new_pieces(self, grown: list[Choice]) -> list[TextChoice]:
        pieces = [self._piece(choice) for choice in grown]
        return [p for p in pieces if p.text or p.finish_reason or p.logprobs or p.token_ids]

    def _usage(self) -> Usage:
        usage = self._generation.usage()
        if self._request.max_tokens == 0:
            usage.completion_tokens, usage.total_tokens = 0, usage.prompt_tokens
        return usage

    def _completion(self, choices: list[TextChoice], usage: Usage | UnsetType | None) -> Completion:
        return Completion(self._id, self._created, self._model, choices, usage=usage)

    def _piece(self, choice: Choice) -> TextChoice:
        """What is new of a choice; the first piece brings the prompt, if it is wanted."""
        request = self._request
        shows_answer = request.max_tokens != 0
        first = not choice.num_pieces
        choice.num_pieces += 1
        text = choice.take_text() if shows_answer else ""
        ids, positions = choice.take_ids(), list[PositionLogprobs | None](choice.take_logprobs())
        if not shows_answer:
            ids, positions = [], []
        if request.echo and first:
            prompt = self._prompts[choice.number]
            text = (
                self._service.edge.tokenizer.decode(prompt.ids, False) if prompt.text is None else prompt.text
            ) + text
            positions = [*choice.builder.prompt_logprobs, *positions]
        logprobs = None
        if request.logprobs is not None:
            named = choice.prompt_token_ids if request.echo and first else ()
            logprobs = self._logprobs(choice, [*named, *ids], positions)
        return TextChoice(
            choice.number,
            text,
            logprobs,
            ("length" if not shows_answer and choice.finish_reason else choice.finish_reason),
            choice.stop_reason,
            ids if request.return_token_ids else UNSET,
            list(choice.prompt_token_ids) if request.return_token_ids and first else UNSET,
        )

    def _logprobs(
        self, choice: Choice, ids: Sequence[int], positions: Sequence[PositionLogprobs | None]
    ) -> TextLogprobs:
        text = self._service.edge.tokenizer.token_text
        found = TextLogprobs([], [], [], [])
        offset = choice.logprobs_offset
        for token_id, position in zip(ids, positions, strict=True):
            token = text(token_id)
            found.text_offset.append(offset)
            found.tokens.append(token)
            found.token_logprobs.append(None if position is None else position.logprob)
            found.top_logprobs.append(None if position is None else _top(position, text))
            offset += len(token)
        choice.logprobs_offset = offset
        return found


def _top(position: PositionLogprobs, text: Callable[[int], str]) -> dict[str, float]:
    """The likeliest tokens, and the one that stands there."""
    top = {text(token_id): logprob for token_id, logprob in zip(position.top_ids, position.top_logprobs, strict=True)}
    top.setdefault(text(position.token_id), position.logprob)
    return top
