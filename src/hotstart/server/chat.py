"""/v1/chat/completions: messages through the checkpoint's template, and the answer as the assistant's message."""

import json
from collections.abc import Sequence
from typing import Any

import msgspec

from hotstart.errors import RequestError
from hotstart.server.chat_writer import ChatWriter
from hotstart.server.errors import ApiError, bad_request
from hotstart.server.exchange import Exchange
from hotstart.server.generation import Generation, Wish
from hotstart.server.sampling import params_of
from hotstart.server.schemas import ChatRequest, TemplateOptions, Tool, Turn
from hotstart.server.service import Service
from hotstart.server.structured import check_tools, shape_of_chat

__all__ = ["chat", "render"]


async def chat(service: Service, exchange: Exchange, request: ChatRequest, request_id: str) -> None:
    model = service.model_name(request.model)
    max_tokens = _max_tokens(request)
    _check(request)
    text, ids = await service.prepare(exchange, lambda: _prompt(service, request))
    service.check_prompt(ids, max_tokens, "messages")
    params = params_of(
        service,
        request,
        max_tokens=max_tokens,
        logprobs=(request.top_logprobs or 0) if request.logprobs else None,
        shape=await shape_of_chat(service, request, text),
    )
    n = params.n
    service.metrics.asked(n, max_tokens)
    wishes: list[Wish] = [(ids, each) for each in params.choices()]
    with Generation(service, request_id, wishes, n) as generation:
        writer = ChatWriter(service, request, model, f"chatcmpl-{request_id}", generation, text)
        if request.stream:
            await writer.stream(exchange)
        else:
            await generation.complete()
            await exchange.answer_json(writer.whole())


def _prompt(service: Service, request: ChatRequest) -> tuple[str, tuple[int, ...]]:
    tools = None if request.tool_choice == "none" else request.tools
    wants_prompt = request.add_generation_prompt is not False
    options = _template_options(request)
    text = render(service, request.messages, tools, options, add_generation_prompt=wants_prompt)
    return text, service.encode(text, "messages", add_special_tokens=False)


def render(
    service: Service,
    messages: Sequence[Turn],
    tools: Sequence[Tool] | None,
    options: TemplateOptions,
    *,
    add_generation_prompt: bool = True,
) -> str:
    """A conversation as the model reads it.  Raises an ApiError where the template refuses it."""
    template = service.edge.template
    if template is None:
        raise bad_request(service.edge.template_error, "messages")
    try:
        return template.render(
            [_as_template_sees(turn) for turn in messages],
            tools=None if not tools else [msgspec.to_builtins(tool) for tool in tools],
            add_generation_prompt=add_generation_prompt,
            **{**(service.server.default_chat_template_kwargs or {}), **msgspec.to_builtins(options)},
        )
    except RequestError:
        # The template's own words may quote the conversation.
        raise bad_request("the model's chat template refused these messages", "messages", "template_refused") from None


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
    check_tools(request)


def _unsupported(name: str, which: str = "") -> ApiError:
    message = f"{name}{which} is not implemented in this version; leave it away"
    return bad_request(message, name, "unsupported_parameter")


def _template_options(request: ChatRequest) -> TemplateOptions:
    options = request.chat_template_kwargs or TemplateOptions()
    if request.reasoning_effort is not None and options.reasoning_effort is None:
        options = msgspec.structs.replace(options, reasoning_effort=request.reasoning_effort)
    return options
