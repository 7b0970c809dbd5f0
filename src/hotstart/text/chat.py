"""ChatTemplate: messages to prompt text, by the template that the checkpoint brings.

The template is the checkpoint's program: it runs in a sandbox, and equals what Hugging Face's `apply_chat_template`
gives for the same file (tested).  A request never brings one.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import jinja2
from jinja2 import ext, nodes
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from hotstart.config.files import read_optional_json, read_text
from hotstart.errors import CheckpointError, InvalidPrompt

__all__ = ["ChatTemplate", "Message", "read_chat_template"]

Message = Mapping[str, Any]

# What a template can raise on messages it was not written for: Jinja's own errors, and Python's from its expressions.
_TEMPLATE_FAILURES = (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError)


class _GenerationTag(ext.Extension):
    """`{% generation %}` marks what a model wrote, for training; here its body is text like any other."""

    tags = {"generation"}  # noqa: RUF012  the base class declares it so

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class ChatTemplate:
    """Raises CheckpointError for a template that does not parse."""

    def __init__(self, source: str, special_tokens: Mapping[str, str], name: str = "the chat template") -> None:
        self._name = name
        self._special_tokens = dict(special_tokens)
        self.calls_by_tags = "<function=" in source  # how it writes tool calls (see tool_grammar.py)
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, ext.loopcontrols]
        )
        environment.filters["tojson"] = _tojson
        environment.globals.update(raise_exception=_raise_exception, strftime_now=_strftime_now)
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise CheckpointError(f"{name} does not parse: {error}; fetch it again") from error

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **variables: object,
    ) -> str:
        """Raises InvalidPrompt with the template's own words where it refuses the messages.

        `variables` (such as `enable_thinking`) reach the template as they are.
        """
        if not messages:
            raise InvalidPrompt("messages is empty; give at least one")
        names = self._special_tokens | variables
        try:
            return self._template.render(
                messages=messages, tools=tools, documents=None, add_generation_prompt=add_generation_prompt, **names
            )
        except RecursionError as error:
            raise InvalidPrompt(f"{self._name} recurses without end over these messages") from error
        except _TEMPLATE_FAILURES as error:
            raise InvalidPrompt(f"{self._name} refused the messages: {error}") from error


def read_chat_template(folder: Path, special_tokens: Mapping[str, str], given: str | None = None) -> ChatTemplate:
    """From the file given, else from chat_template.jinja, else from tokenizer_config.json."""
    path = Path(given) if given else folder / "chat_template.jinja"
    if given or path.is_file():
        return ChatTemplate(read_text(path), special_tokens, path.name)
    source = read_optional_json(folder / "tokenizer_config.json").get("chat_template")
    if isinstance(source, list):  # several by name
        source = {entry.get("name"): entry.get("template") for entry in source if isinstance(entry, dict)}.get(
            "default"
        )
    if not isinstance(source, str):
        raise CheckpointError(f"{folder} has no chat template (chat_template.jinja); give plain prompts instead")
    return ChatTemplate(source, special_tokens, "chat_template in tokenizer_config.json")


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As Hugging Face's: Jinja's own filter would escape HTML characters, sort the keys and escape non-ASCII."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)
