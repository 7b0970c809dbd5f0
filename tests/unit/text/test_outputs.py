"""Token events become text, logprobs and finish reasons as vLLM's users know them."""

from collections.abc import Sequence
from typing import Any

import pytest

from hotstart.engine.outputs import Logprob, OutputBuilder
from hotstart.errors import StepError
from hotstart.request import FinishReason, PositionLogprobs, Request, SamplingParams, TokenEvent
from hotstart.text.tokenizer import Tokenizer

TEXT = "größer than 日本語"


def builder_for(tokenizer: Tokenizer | None, **params: Any) -> OutputBuilder:
    return OutputBuilder(Request("7", (1, 2), SamplingParams(max_tokens=99, **params), 0.0), "ab", tokenizer)


def push_each(
    builder: OutputBuilder, ids: Sequence[int], reason: FinishReason, stop_id: int | None = None
) -> list[str]:
    *first, last = ids
    events = [TokenEvent("7", (i,)) for i in first]
    events.append(TokenEvent("7", (last,), finish_reason=reason, stop_token_id=stop_id))
    shown = []
    for event in events:
        builder.push(event)
        shown.append(builder.take_text())
    return shown


def test_shown_text_joins_to_the_output(tokenizer: Tokenizer) -> None:
    builder, ids = builder_for(tokenizer, stop=("ß?",)), tokenizer.encode(TEXT)
    shown = push_each(builder, ids, FinishReason.LENGTH)
    result = builder.output()
    assert "".join(shown) == TEXT == result.outputs[0].text
    assert (result.outputs[0].token_ids, result.outputs[0].finish_reason, result.finished) == (ids, "length", True)
    assert (result.request_id, result.prompt, result.prompt_token_ids) == ("7", "ab", [1, 2])
    assert result.prompt_logprobs is result.outputs[0].logprobs is result.outputs[0].cumulative_logprob is None


@pytest.mark.parametrize(
    ("params", "text", "reason"),
    [
        ({"stop": ("an 日", "absent")}, "größer th", "an 日"),
        ({"stop": ("an 日",), "include_stop_str_in_output": True}, "größer than 日", "an 日"),
        ({"stop": ("größ", "日"), "min_tokens": 4}, "größer than ", "日"),
    ],
)
def test_a_stop_string_ends_the_text(tokenizer: Tokenizer, params: dict[str, Any], text: str, reason: str) -> None:
    builder = builder_for(tokenizer, **params)
    for token_id in tokenizer.encode(TEXT):
        builder.push(TokenEvent("7", (token_id,)))
    builder.push(TokenEvent("7", (1,), finish_reason=FinishReason.ABORT))  # too late: it has ended
    output = builder.output().outputs[0]
    assert (output.text, output.finish_reason, output.stop_reason) == (text, "stop", reason)
    assert tokenizer.decode(output.token_ids).startswith(text)  # ids go on to the end of the token that completed it


@pytest.mark.parametrize(
    ("params", "stop", "text", "reason"),
    [
        ({}, "<|im_end|>", "ab", None),
        ({"skip_special_tokens": False}, "<|im_end|>", "ab", None),
        ({"include_stop_str_in_output": True, "skip_special_tokens": False}, "<|im_end|>", "ab<|im_end|>", None),
        ({"stop_token_ids": (70,)}, 70, "ab", 70),
    ],
)
def test_a_stop_token_is_counted_but_not_shown(
    tokenizer: Tokenizer, params: dict[str, Any], stop: str | int, text: str, reason: int | None
) -> None:
    stop_id = stop if isinstance(stop, int) else tokenizer.encode(stop)[0]
    builder, ids = builder_for(tokenizer, **params), [*tokenizer.encode("ab"), stop_id]
    push_each(builder, ids, FinishReason.STOP, stop_id)
    output = builder.output().outputs[0]
    assert (output.text, output.token_ids, output.finish_reason, output.stop_reason) == (text, ids, "stop", reason)


def test_logprobs_name_the_sampled_token_first(tokenizer: Tokenizer) -> None:
    a, b, c = (tokenizer.encode(letter)[0] for letter in "abc")
    builder = builder_for(tokenizer, logprobs=2, prompt_logprobs=0)
    prompt = (None, PositionLogprobs(2, -0.5, 1, (), ()))
    sampled = PositionLogprobs(c, -3.0, 9, (a, b), (-0.25, -2.0))
    builder.push(TokenEvent("7", (c,), (sampled,), prompt))
    builder.push(TokenEvent("7", (a,), (PositionLogprobs(a, -1.0, 1, (a, b), (-1.0, -2.0)),)))
    result = builder.output()
    assert result.prompt_logprobs == [None, {2: Logprob(-0.5, 1, tokenizer.token_text(2))}]
    assert result.outputs[0].cumulative_logprob == -4.0 and not result.finished
    first, second = result.outputs[0].logprobs or []
    assert first == {c: Logprob(-3.0, 9, "c"), a: Logprob(-0.25, 1, "a"), b: Logprob(-2.0, 2, "b")}
    assert list(first) == [c, a, b] and list(second) == [a, b]


def test_an_error_keeps_what_came_before(tokenizer: Tokenizer) -> None:
    builder, error = builder_for(tokenizer), StepError("step 3 failed")
    builder.push(TokenEvent("7", tuple(tokenizer.encode("ab"))))
    builder.push(TokenEvent("7", finish_reason=FinishReason.ERROR, error=error))
    result = builder.output()
    assert (result.error, result.outputs[0].finish_reason, result.outputs[0].text) == (error, "error", "ab")


def test_without_a_tokenizer_there_are_ids() -> None:
    builder = builder_for(None)
    push_each(builder, [3, 4], FinishReason.LENGTH)
    assert (builder.output().outputs[0].text, builder.output().outputs[0].token_ids) == ("", [3, 4])
