"""/v1/chat/completions: messages through the checkpoint's template, and the answer as the assistant's message."""

import json
from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from hotstart.errors import RequestError
from hotstart.request import PositionLogprobs
from hotstart.server.errors import ApiError, bad_request
from hotstart.server.exchange import Exchange
from hotstart.server.generation import Choice, Generation, Wish
from hotstart.server.sampling import choices_of, params_of
from hotstart.server.schemas import (
    Answer,
    ChatChoice,
    ChatChunk,
    ChatCompletion,
    ChatLogprobs,
    ChatRequest,
    ChunkChoice,
    Delta,
    TemplateOptions,
    TokenLogprob,
    Tool,
    TopLogprob,
    Turn,
    Usage,
)
from hotstart.server.service import Service

__all__ = ["chat", "render"]


async def chat(service: Service, exchange: Exchange, request: ChatRequest, request_id: str) -> None:
    model = service.model_name(request.model)
    max_tokens = _max_tokens(request)
    _check(request)
    ids = render(
        service,
        request.messages,
        None if request.tool_choice == "none" else request.tools,
        _template_options(request),
        add_generation_prompt=request.add_generation_prompt is not False,
    )
    service.check_prompt(ids, max_tokens, "messages")
    params = params_of(
        request,
        service.text.defaults,
        max_tokens=max_tokens,
        logprobs=(request.top_logprobs or 0) if request.logprobs else None,
        end_token_id=service.text.tokenizer.eos_token_id,
    )
    n = request.n or 1
    service.metrics.asked(n, max_tokens)
    wishes: list[Wish] = [(ids, each) for each in choices_of(params, n)]
    with Generation(service, request_id, wishes, n) as generation:
        writer = _Writer(service, request, model, f"chatcmpl-{request_id}", generation)
        if request.stream:
            await writer.stream(exchange)
        else:
            await generation.complete()
            await exchange.answer_json(writer.whole())


def render(
    service: Service,
    messages: Sequence[Turn],
    tools: Sequence[Tool] | None,
    options: TemplateOptions,
    *,
    add_generation_prompt: bool = True,
) -> tuple[int, ...]:
    """The token ids of a conversation.  Raises an ApiError where the template refuses it."""
    template = service.text.template
    if template is None:
        raise bad_request(service.text.template_error, "messages")
    try:
        text = template.render(
            [_as_template_sees(turn) for turn in messages],
            tools=None if not tools else [msgspec.to_builtins(tool) for tool in tools],
            add_generation_prompt=add_generation_prompt,
            **msgspec.to_builtins(options),
        )
    except RequestError:
        # The template's own words may quote the conversation.
        raise bad_request("the model's chat template refused these messages", "messages", "template_refused") from None
    return service.encode(text, "messages", add_special_tokens=False)


def _as_template_sees(turn: Turn) -> dict[str, Any]:
    """Templates ask whether a key is there, so that null must not be; and want arguments of tools as objects."""
    seen: dict[str, Any] = {"role": turn.role, "content": _text_of(turn)}
    reasoning = turn.reasoning_content or turn.reasoning
    if reasoning is not None:
        seen["reasoning_content"] = reasoning
    for name in ("name", "tool_call_id"):
        if getattr(turn, name) is not None:
            seen[name] = getattr(turn, name)
    if turn.tool_calls:
        seen["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.function.name, "arguments": _arguments(call.function.arguments)},
            }
            for call in turn.tool_calls
        ]
    return seen


def _text_of(turn: Turn) -> str:
    if isinstance(turn.content, list):
        return "\n".join(part.text for part in turn.content)
    return turn.content or ""


def _arguments(text: str) -> Any:
    try:
        return json.loads(text) if text else {}
    except (json.JSONDecodeError, RecursionError):
        raise bad_request("arguments of a tool call are not valid JSON", "messages") from None


def _max_tokens(request: ChatRequest) -> int | None:
    given = {request.max_tokens, request.max_completion_tokens} - {None}
    if len(given) > 1:
        raise bad_request("max_tokens and max_completion_tokens differ; give one of them", "max_tokens")
    return given.pop() if given else None


def _check(request: ChatRequest) -> None:
    if request.top_logprobs and not request.logprobs:
        raise bad_request("top_logprobs needs logprobs to be true", "top_logprobs")
    if request.continue_final_message:
        raise _unsupported("continue_final_message")
    if request.tool_choice not in (None, "none", "auto"):
        raise _unsupported("tool_choice", " other than none and auto")
    if request.tool_choice == "auto" and not request.tools:
        raise bad_request("tool_choice is auto, but there are no tools", "tool_choice")


def _unsupported(name: str, which: str = "") -> ApiError:
    message = f"{name}{which} is not implemented in this version; leave it away"
    return bad_request(message, name, "unsupported_parameter")


def _template_options(request: ChatRequest) -> TemplateOptions:
    options = request.chat_template_kwargs or TemplateOptions()
    if request.reasoning_effort is not None and options.reasoning_effort is None:
        options = msgspec.structs.replace(options, reasoning_effort=request.reasoning_effort)
    return options


class _Writer:
    def __init__(
        self, service: Service, request: ChatRequest, model: str, completion_id: str, generation: Generation
    ) -> None:
        self._service = service
        self._request = request
        self._model = model
        self._id = completion_id
        self._generation = generation
        self._created = service.now()

    def whole(self) -> ChatCompletion:
        choices = [self._choice(choice) for choice in self._generation.choices]
        return ChatCompletion(self._id, self._created, self._model, choices, self._usage())

    async def stream(self, exchange: Exchange) -> None:
        options = self._request.stream_options
        wants_usage = bool(options and options.include_usage)
        always = wants_usage and bool(options and options.continuous_usage_stats)
        no_usage = None if wants_usage else UNSET
        keep_alive_s = float(self._service.server.sse_keep_alive_interval)
        while not self._generation.finished:
            grown = await self._generation.grow(keep_alive_s)
            if not exchange.began_stream:
                await exchange.begin_stream()
            if not grown:
                await exchange.send_comment()
            pieces = [piece for choice in grown for piece in self._pieces(choice)]
            usage = self._usage() if always else no_usage
            if pieces:
                await exchange.send_events(*(self._chunk([piece], usage) for piece in pieces))
        if wants_usage:
            await exchange.send_events(self._chunk([], self._usage()))
        await exchange.end_stream()

    def _usage(self) -> Usage:
        return self._generation.usage()

    def _chunk(self, choices: list[ChunkChoice], usage: Usage | UnsetType | None) -> ChatChunk:
        return ChatChunk(self._id, self._created, self._model, choices, usage=usage)

    def _pieces(self, choice: Choice) -> list[ChunkChoice]:
        """The role at first, then what is new, then why it ended."""
        pieces = []
        if not choice.num_pieces:
            pieces.append(ChunkChoice(choice.number, Delta(role="assistant", content="")))
        choice.num_pieces += 1
        text, ids, logprobs = choice.take_text(), choice.take_ids(), self._logprobs(choice)
        shown_ids = ids if self._request.return_token_ids else UNSET
        if text or logprobs or shown_ids:
            pieces.append(ChunkChoice(choice.number, Delta(content=text), logprobs, token_ids=shown_ids))
        if choice.finish_reason is not None:
            pieces.append(
                ChunkChoice(choice.number, Delta(), finish_reason=choice.finish_reason, stop_reason=choice.stop_reason)
            )
        return pieces

    def _choice(self, choice: Choice) -> ChatChoice:
        assert choice.finish_reason is not None, "an unfinished answer is not whole"
        return ChatChoice(
            choice.number,
            Answer(choice.take_text()),
            self._logprobs(choice),
            choice.finish_reason,
            choice.stop_reason,
            choice.take_ids() if self._request.return_token_ids else UNSET,
        )

    def _logprobs(self, choice: Choice) -> ChatLogprobs | None:
        positions = choice.take_logprobs()
        return ChatLogprobs([self._token_logprob(p) for p in positions]) if positions else None

    def _token_logprob(self, position: PositionLogprobs) -> TokenLogprob:
        tokenizer = self._service.text.tokenizer
        top = [
            TopLogprob(tokenizer.token_text(token_id), logprob, list(tokenizer.token_bytes(token_id)))
            for token_id, logprob in zip(position.top_ids, position.top_logprobs, strict=True)
        ]
        token_id = position.token_id
        text, data = tokenizer.token_text(token_id), list(tokenizer.token_bytes(token_id))
        return TokenLogprob(text, position.logprob, data, top)
