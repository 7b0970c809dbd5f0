"""What an answer must be: from response_format, structured_outputs, tool_choice and strict tools to one grammar.

It is compiled here once, so that a request whose grammar cannot be followed is refused by the field's name; the
engine compiles it again, beside its steps.
"""

import asyncio
from collections.abc import Mapping
from typing import Any

from hotstart.errors import InvalidSamplingParams, RequestError
from hotstart.request import StructuredOutputsParams
from hotstart.server.errors import bad_request
from hotstart.server.schemas import ChatRequest, NamedTool, SamplingFields, Tool
from hotstart.server.service import Service
from hotstart.text.grammar import GrammarError
from hotstart.text.thinking import END, Thinking
from hotstart.text.tool_grammar import tool_grammar

__all__ = ["check_tools", "shape_of", "shape_of_chat"]

_OLD_NAMES = {
    "guided_json": "json",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "grammar",
    "guided_json_object": "json_object",
}
_Wish = tuple[str, Mapping[str, Any]]  # the field that asks, and fields of StructuredOutputsParams


async def shape_of(service: Service, request: SamplingFields) -> StructuredOutputsParams | None:
    """Raises an ApiError that names the field."""
    wish = _wish(request)
    return None if wish is None else await _compiled(service, *wish)


async def shape_of_chat(service: Service, request: ChatRequest, prompt: str) -> StructuredOutputsParams | None:
    """A grammar begins where the answer does: after the reasoning.  Raises an ApiError that names the field."""
    wish = _wish(request)
    if wish is not None and request.tool_choice not in (None, "auto", "none"):
        raise bad_request(f"{wish[0]} and a tool_choice that forces a call exclude each other", wish[0])
    if wish is None or wish[0].startswith("response_format"):
        # Whoever asks for JSON and has tools gets either.
        wish = _calls(service, request, wish) or wish
    if wish is None:
        return None
    after = END if Thinking.after(prompt).is_inside else None
    return await _compiled(service, wish[0], {**wish[1], "after": after})


def check_tools(request: ChatRequest) -> None:
    choice, names = request.tool_choice, [tool.function.name for tool in request.tools or ()]
    if choice in (None, "none"):
        return
    if not names:
        asked = choice if isinstance(choice, str) else "a function"
        raise bad_request(f"tool_choice is {asked}, but there are no tools", "tool_choice")
    if isinstance(choice, NamedTool) and choice.function.name not in names:
        raise bad_request("tool_choice names a function that is not among the tools", "tool_choice")


def _wish(request: SamplingFields) -> _Wish | None:
    for old, new in _OLD_NAMES.items():
        if getattr(request, old) is not None:
            raise bad_request(f"{old} is now structured_outputs.{new}", old, "unsupported_parameter")
    wishes: list[_Wish] = []
    form = request.response_format
    if form is not None and form.type == "json_object":
        wishes.append(("response_format", {"json_object": True}))
    elif form is not None and form.type == "json_schema":
        if form.json_schema is None or form.json_schema.schema is None:
            raise bad_request("json_schema needs a schema", "response_format.json_schema")
        wishes.append(("response_format.json_schema", {"json": form.json_schema.schema}))
    given = request.structured_outputs
    if given is not None:
        fields = ("json", "regex", "choice", "grammar")
        found = {name: getattr(given, name) for name in fields if getattr(given, name) is not None}
        if given.json_object:
            found["json_object"] = True
        if found:
            wishes.append(("structured_outputs", found))
    if len(wishes) > 1:
        raise bad_request("response_format and structured_outputs exclude each other", "structured_outputs")
    return wishes[0] if wishes else None


def _calls(service: Service, request: ChatRequest, answer: _Wish | None) -> _Wish | None:
    """The grammar of a call that is forced, or stands beside an answer of some shape, or of those of strict tools."""
    tools, choice = request.tools or [], request.tool_choice
    if not tools or choice == "none":
        return None
    forced = choice == "required" or isinstance(choice, NamedTool) or answer is not None
    if not forced and not any(tool.function.strict for tool in tools):
        return None
    if isinstance(choice, NamedTool):
        tools = [tool for tool in tools if tool.function.name == choice.function.name]
    template = service.edge.template
    assert template is not None, "a chat was rendered without a template"
    try:
        grammar = tool_grammar(
            {tool.function.name: _arguments(tool, forced) for tool in tools},
            as_tags=template.calls_by_tags,
            forced=forced,
            several=not isinstance(choice, NamedTool) and request.parallel_tool_calls is not False,
            answer=None if answer is None else answer[1].get("json", {"type": "object"}),
        )
    except RequestError as error:
        raise bad_request(str(error), "tools") from None
    return ("tools" if answer is None else answer[0]), {"grammar": grammar}


def _arguments(tool: Tool, forced: bool) -> Mapping[str, Any] | None:
    function = tool.function
    return function.parameters if forced or function.strict else None


async def _compiled(service: Service, field: str, wish: Mapping[str, Any]) -> StructuredOutputsParams:
    try:
        shape = StructuredOutputsParams(**wish)
    except InvalidSamplingParams as error:
        raise bad_request(str(error), field) from None
    try:
        await asyncio.to_thread(service.edge.grammars.matcher, shape)
    except GrammarError as error:
        raise bad_request(f"{field}: {error.hint}", field) from None
    return shape
