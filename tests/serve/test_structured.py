"""Structured output and forced tool calls, by the real `openai` client."""

import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

from serve.conftest import MODEL, Server

USER = [{"role": "user", "content": "Add: 319 + 395"}]
SCHEMA = {
    "type": "object",
    "properties": {
        "sum": {"type": "integer", "minimum": 0, "maximum": 999},
        "sure": {"type": "boolean"},
        "kind": {"enum": ["odd", "even"]},
    },
    "required": ["sum", "sure", "kind"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": SCHEMA}}
ARGUMENTS = {"type": "object", "properties": {"a": {"type": "integer", "maximum": 99, "minimum": 0}}, "required": ["a"]}
ARGUMENTS["additionalProperties"] = False
TOOLS = [{"type": "function", "function": {"name": name, "parameters": ARGUMENTS}} for name in ("add", "sort")]


def check(text: str) -> None:
    found = json.loads(text)
    assert found.keys() == {"sum", "sure", "kind"}
    assert 0 <= found["sum"] <= 999 and isinstance(found["sure"], bool) and found["kind"] in ("odd", "even")


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_is_what_its_schema_says(server: Server, stream: bool) -> None:
    for seed in range(4):
        made = server.client.chat.completions.create(
            model=MODEL, messages=USER, response_format=FORMAT, temperature=1, seed=seed, stream=stream, max_tokens=200
        )
        if stream:
            chunks = list(made)
            assert chunks[-1].choices[0].finish_reason == "stop"
            check("".join(chunk.choices[0].delta.content or "" for chunk in chunks))
        else:
            assert made.choices[0].finish_reason == "stop"
            check(made.choices[0].message.content)


def test_other_shapes(server: Server) -> None:
    def answer(**fields: Any) -> str:
        made = server.client.completions.create(model=MODEL, prompt="Add: 1", max_tokens=200, seed=1, extra_body=fields)
        return made.choices[0].text

    assert re.fullmatch(r"\d{3}-\d{4}", answer(structured_outputs={"regex": r"\d{3}-\d{4}"}))
    assert answer(structured_outputs={"choice": ["yes", "no"]}) in ("yes", "no")
    assert re.fullmatch("a+b", answer(structured_outputs={"grammar": 'root ::= "a"+ "b"'}, logit_bias={"65": 5}))
    check(answer(structured_outputs={"json": json.dumps(SCHEMA)}))
    assert json.loads(answer(structured_outputs={"json": {"const": {"a": [1]}}})) == {"a": [1]}
    assert answer(response_format={"type": "json_object"}).startswith("{")


def test_logprobs_are_finite_numbers(server: Server) -> None:
    made = server.client.chat.completions.create(
        model=MODEL, messages=USER, response_format=FORMAT, logprobs=True, top_logprobs=20, max_tokens=5
    )
    first = made.choices[0].logprobs.content[0]
    assert first.token == "{" and first.logprob == pytest.approx(0, abs=1e-3)
    assert {entry.logprob for entry in first.top_logprobs[1:]} == {-9999.0}


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "sort"}}], ids=str)
@pytest.mark.parametrize("stream", [False, True])
def test_a_forced_call_is_made(server: Server, choice: Any, stream: bool) -> None:
    made = server.client.chat.completions.create(
        model=MODEL, messages=USER, tools=TOOLS, tool_choice=choice, parallel_tool_calls=False, stream=stream
    )
    if stream:
        chunks = list(made)
        calls = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or ()]
        name, arguments = calls[0].function.name, "".join(call.function.arguments or "" for call in calls)
        assert len(calls) > 3, "arguments come piece by piece"
        assert calls[0].id and {call.index for call in calls} == {0}
        assert not any(chunk.choices[0].delta.content for chunk in chunks)
        reason = chunks[-1].choices[0].finish_reason
    else:
        (call,) = made.choices[0].message.tool_calls
        name, arguments, reason = call.function.name, call.function.arguments, made.choices[0].finish_reason
        assert made.choices[0].message.content is None
    assert reason == "tool_calls" and name in ("add", "sort")
    assert name == "sort" or choice == "required"
    assert 0 <= json.loads(arguments)["a"] <= 99


def test_strict_tools_leave_an_answer_free(server: Server) -> None:
    tools = [{"type": "function", "function": {**TOOLS[0]["function"], "strict": True}}]
    made = server.client.chat.completions.create(model=MODEL, messages=USER, tools=tools, tool_choice="auto")
    assert made.choices[0].message.content == "714" and made.choices[0].finish_reason == "stop"


def test_an_answer_of_a_shape_may_be_a_call_instead(server: Server) -> None:
    for seed in range(4):
        made = server.client.chat.completions.create(
            model=MODEL, messages=USER, tools=TOOLS, response_format=FORMAT, temperature=2, seed=seed, max_tokens=150
        )
        message = made.choices[0].message
        assert (message.content is None) == bool(message.tool_calls)
        if message.content and made.choices[0].finish_reason == "stop":
            check(message.content)
        for call in message.tool_calls or ():
            assert call.function.name in ("add", "sort")


REFUSED: list[tuple[dict[str, Any], str]] = [
    *(({"response_format": value}, "response_format") for value in ("json", {"type": "xml"}, {"type": "json_schema"})),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, "response_format.json_schema"),
    ({"response_format": {"type": "json_schema", "json_schema": {"schema": 5}}}, "response_format.json_schema.schema"),
    *(
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": schema}}}, "response_format.json_schema")
        for schema in ({"type": "strin"}, {"not": {}}, {"$ref": "#/no"}, {"enum": []}, {"pattern": "(?=a)"})
    ),
    *(
        ({"structured_outputs": value}, "structured_outputs")
        for value in (
            {"regex": "["}, {"regex": ""}, {"regex": 1}, {"choice": []}, {"choice": "a"}, {"grammar": "root ::= x"},
            {"json": "{"}, {"json": 5}, {"regex": "a", "choice": ["b"]}, {"whitespace": 1}, {"json": {"type": "strin"}},
            {"regex": "a" * 300_000}, {"choice": [str(i) * 9 for i in range(50_000)]}, "json",
        )
    ),
    ({"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}}, "structured_outputs"),
    ({"structured_outputs": {"regex": "a"}, "allowed_token_ids": [1]}, "allowed_token_ids"),
    *(({name: "x"}, name) for name in ("guided_json", "guided_regex", "guided_choice", "guided_grammar")),
    *(({"tool_choice": value}, "tool_choice") for value in ("required", "auto", "always", {"type": "function"})),
    ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice"),
    ({"tools": TOOLS, "tool_choice": "required", "response_format": FORMAT}, "response_format"),
    ({"tools": [{"type": "function", "function": {"name": "a b"}}], "tool_choice": "required"}, "tools"),
    (
        {"tools": [{"type": "function", "function": {"name": "f", "strict": True, "parameters": {"not": {}}}}]},
        "tools",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "param"), REFUSED, ids=[f"{n}-{i}" for i, (_, n) in enumerate(REFUSED)])
def test_what_cannot_be_followed_is_refused_by_name(server: Server, fields: dict[str, Any], param: str) -> None:
    status, answer = server.ask("/v1/chat/completions", {"messages": USER, **fields})
    assert status == 400 and (answer["error"]["param"] or "").startswith(param), answer
    assert len(json.dumps(answer)) < 600


def test_hostile_grammars_delay_nobody_and_harm_nothing(server: Server) -> None:
    hostile = ["(a+)+$", "(x{1,1000}){1,1000}", "(.*a){50}", "((a{1,100}){1,100}){1,100}", "(a|aa)+" * 200]
    big = {"properties": {f"k{i}": {"enum": [f"v{j}" for j in range(200)]} for i in range(200)}, "type": "object"}

    def ask(wish: dict[str, Any]) -> int:
        body = {"prompt": "Add: 1", "max_tokens": 4, "structured_outputs": wish}
        return server.ask("/v1/completions", body)[0]

    with ThreadPoolExecutor(6) as threads:
        asked = [threads.submit(ask, wish) for wish in [{"regex": regex} for regex in hostile] * 3 + [{"json": big}]]
        began = time.monotonic()
        assert server.client.chat.completions.create(model=MODEL, messages=USER).choices[0].message.content == "714"
        assert time.monotonic() - began < 2
        assert {one.result() for one in asked} <= {200, 400}
    server.wait_until(server.is_idle, "idle")


def test_a_client_that_goes_away_frees_what_it_held(server: Server) -> None:
    for _ in range(5):
        stream = server.client.chat.completions.create(
            model=MODEL, messages=USER, response_format={"type": "json_object"}, stream=True, temperature=1
        )
        next(iter(stream))
        stream.close()
    server.wait_until(server.is_idle, "idle")
    assert server.ask("/plan")[1]["late_events"] == []
    with pytest.raises(openai.BadRequestError):
        server.client.chat.completions.create(model=MODEL, messages=USER, response_format={"type": "json_schema"})
