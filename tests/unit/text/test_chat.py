"""Rendered chats equal transformers' `apply_chat_template`; what a template refuses is a typed error."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from hotstart.errors import CheckpointError, InvalidPrompt
from hotstart.text.chat import ChatTemplate, read_chat_template

CHATML = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
    {{- "# Tools\\n\\n<tools>" }}
    {%- for tool in tools %}{{- "\\n" }}{{- tool | tojson }}{%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- endif %}
{%- set ns = namespace(last_query=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if message.role == "user" and not message.content.startswith('<tool_response>') %}
        {%- set ns.last_query = index %}
        {%- break %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == "assistant" %}
        {%- set content = message.content %}
        {%- if '</think>' in content and loop.index0 <= ns.last_query %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\\n' }}{% generation %}{{- content }}{% endgeneration %}
        {%- for call in message.tool_calls or [] %}
            {{- '\\n<tool_call>\\n<function=' + call.function.name + '>\\n' }}
            {%- for name, value in call.function.arguments | items %}
                {{- '<parameter=' + name + '>\\n' }}
                {{- value if value is string else value | tojson }}
                {{- '\\n</parameter>\\n' }}
            {%- endfor %}
            {{- '</function>\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- else %}
        {{- '<think>\\n' }}
    {%- endif %}
{%- endif %}
"""
INSTRUCT = """{{ bos_token }}{% for message in messages %}
    {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{ raise_exception('roles must alternate user/assistant') }}
    {% endif %}
    {% if loop.last and not message.content %}{% continue %}{% endif %}
{{ '[INST] ' + message['content'] | trim + ' [/INST]' if message.role == 'user' else message.content + eos_token }}
{% endfor %}
"""
DATED = """Today: {{ strftime_now('%Y') }}
{% macro block(x) %}<{{ x }}>{% endmacro %}
{% for m in messages %}{{ block(m.role) }}{{ m | tojson(indent=2, sort_keys=true) }}{{ m.content | upper }}
{% endfor %}{{ documents is none }}{{ tools is none }}{{ undefined_name }}"""

WEATHER = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"properties": {"city": {"type": "string", "about": "<é & 'ü'>"}}}},
}
CALL = {
    "function": {"name": "weather", "arguments": {"city": "Zürich", "days": [1, 2.5, None, True], "x": {"<": 1e-7}}}
}
PLAIN = [{"role": "user", "content": "Hi <b>\n"}, {"role": "assistant", "content": "<think>\nhm</think>\n\nHello"}]
TOOLED: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    *PLAIN,
    {"role": "user", "content": "Weather?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "user", "content": "<tool_response>rain</tool_response>"},
]
CASES: list[tuple[str, list[dict[str, Any]], dict[str, Any]]] = [
    (CHATML, PLAIN, {}),
    (CHATML, PLAIN, {"enable_thinking": False}),
    (CHATML, PLAIN, {"enable_thinking": True, "add_generation_prompt": False}),
    (CHATML, TOOLED, {"tools": [WEATHER]}),
    (INSTRUCT, PLAIN, {}),
    (INSTRUCT, [*PLAIN, {"role": "user", "content": ""}], {}),
    (DATED, PLAIN, {}),
]
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}


@pytest.mark.parametrize(("source", "messages", "options"), CASES)
def test_equals_transformers(
    tokenizer_folder: Path, source: str, messages: list[dict[str, Any]], options: dict[str, Any]
) -> None:
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(tokenizer_folder / "tokenizer.json"), **SPECIAL)
    options = {"add_generation_prompt": True} | options
    expected = theirs.apply_chat_template(messages, chat_template=source, tokenize=False, **options)
    assert ChatTemplate(source, SPECIAL).render(messages, **options) == expected


@pytest.mark.parametrize(
    ("source", "messages", "words"),
    [
        (INSTRUCT, PLAIN[::-1], "roles must alternate"),
        (CHATML, [{"role": "user", "content": None}], "refused the messages"),
        (CHATML, [], "messages is empty"),
        ("{{ ''.__class__.__mro__ }}{{ messages.append(1) }}", PLAIN, "refused the messages"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", PLAIN, "without end"),
        ("{{ messages[9].content }}", PLAIN, "refused the messages"),
    ],
)
def test_refused_messages_are_a_typed_error(source: str, messages: list[dict[str, Any]], words: str) -> None:
    with pytest.raises(InvalidPrompt, match=words):
        ChatTemplate(source, SPECIAL).render(messages)


def test_the_template_is_found(tmp_path: Path) -> None:
    config = tmp_path / "tokenizer_config.json"
    with pytest.raises(CheckpointError, match="no chat template"):
        read_chat_template(tmp_path, SPECIAL)
    config.write_text(json.dumps({"chat_template": [{"name": "default", "template": "several"}]}))
    assert read_chat_template(tmp_path, SPECIAL).render(PLAIN) == "several"
    config.write_text(json.dumps({"chat_template": "one"}))
    assert read_chat_template(tmp_path, SPECIAL).render(PLAIN) == "one"
    (tmp_path / "chat_template.jinja").write_text("file{{ eos_token }}")
    assert read_chat_template(tmp_path, SPECIAL).render(PLAIN) == "file</s>"
    (tmp_path / "chat_template.jinja").write_text("{% for %}")
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja does not parse"):
        read_chat_template(tmp_path, SPECIAL)
