"""Structured outputs in a serving engine: every answer is of its grammar, whoever runs beside it."""

import json
import random
import re

import numpy as np
import pytest

from hotstart import LLM, SamplingParams, StructuredOutputsParams
from hotstart.engine.device import CpuDevice
from hotstart.engine.guides import Guide
from hotstart.errors import InvalidSamplingParams, PromptTooLong, RequestError
from hotstart.request import Request

CHECKPOINT = "checkpoints/tiny-qwen3.5"
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 1, "maxItems": 2},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
LIST = 'root ::= "<" item ("," item)* ">"\nitem ::= [0-9]+\n'


def is_person(text):
    found = json.loads(text)
    return set(found) == {"name", "age", "tags"} and 0 <= found["age"] <= 99 and set(found["tags"]) <= {"a", "b"}


KINDS = {
    "json": (StructuredOutputsParams(json=PERSON), is_person),
    "text": (StructuredOutputsParams(json=json.dumps({"enum": ["x", 3]})), lambda text: json.loads(text) in ("x", 3)),
    "regex": (StructuredOutputsParams(regex=r"\d{3}-\d{4}"), lambda text: re.fullmatch(r"\d{3}-\d{4}", text)),
    "choice": (StructuredOutputsParams(choice=("yes", "no", "maybe")), ("yes", "no", "maybe").__contains__),
    "grammar": (StructuredOutputsParams(grammar=LIST), lambda text: re.fullmatch(r"<\d+(,\d+)*>", text)),
    "after": (
        StructuredOutputsParams(choice=("END",), after="1"),
        lambda text: re.fullmatch("[^1]*1.*?END", text, re.S),
    ),
}


@pytest.fixture(params=[1, 2], ids=["one by one", "overlapped"])
def llm(request, monkeypatch):
    monkeypatch.setattr(CpuDevice, "flights", request.param)
    with LLM(
        CHECKPOINT,
        use_tqdm=False,
        dtype="float32",
        max_model_len=256,
        max_num_seqs=6,
        num_threads=1,
        jit_monitor_mode="error",
    ) as llm:
        yield llm


def test_every_answer_is_of_its_grammar(llm):
    dice = random.Random(0)
    names = list(KINDS) * 3 + ["free"] * 4
    dice.shuffle(names)
    params = [
        SamplingParams(
            temperature=dice.choice((0.0, 1.0, 2.0)),
            seed=seed,
            max_tokens=120,
            structured_outputs=KINDS[name][0] if name != "free" else None,
            logprobs=dice.choice((None, 2)),
            frequency_penalty=dice.choice((0.0, 0.0, 0.5)),
            min_tokens=dice.choice((0, 0, 20)),
        )
        for seed, name in enumerate(names)
    ]
    prompts = [f"Copy: {name}" for name in names]
    results = llm.generate(prompts, params, use_tqdm=False)
    complete = 0
    for name, result in zip(names, results, strict=True):
        (output,) = result.outputs
        assert result.error is None
        if name != "free" and output.finish_reason == "stop":
            assert KINDS[name][1](output.text), (name, output.text)
            complete += 1
    assert complete > 12, "answers of grammars that end"
    alone = llm.generate(prompts[:2], params[:2], use_tqdm=False)
    assert [one.outputs[0].text for one in alone] == [one.outputs[0].text for one in results[:2]]
    while llm.engine.has_work:  # a step that was under way when the last answer ended
        assert not llm.engine.step()
    llm.engine.check()
    assert llm.late_events == () and llm.engine.growth.arena_bytes == 0
    assert llm.engine.use.pages_used == 0 and not llm.engine._guides._by_sequence


def test_line_ends_may_stand_before_the_grammar_where_it_begins_later(llm):
    guides = llm.engine._guides
    tokenizer = llm.get_tokenizer()
    (line_end,), (one, *_), (end, *_) = (tokenizer.encode(text) for text in ("\n", "1", "END"))
    for tokens, allowed in (((one,), {end, line_end}), ((one, line_end), {end}), ((), set(range(60)))):
        guide = Guide.of(guides._grammars, StructuredOutputsParams(choice=("END",), after="1"))
        for token in tokens:
            guide.take(token, guides._grammars)
        masks = np.zeros((2, 16), np.int32)
        guides._fill([(guide, 1)], masks)
        found = set(np.unpackbits(masks.view(np.uint8)[1], bitorder="little").nonzero()[0].tolist())
        assert not masks[0].any() and allowed <= found and (found <= allowed | {end} or not tokens)
        assert not found & {397, 399}, "it does not end before"


def test_logprobs_are_of_what_the_grammar_leaves(llm):
    wish = StructuredOutputsParams(choice=("yes", "no"))
    params = SamplingParams(temperature=0.0, structured_outputs=wish, logprobs=20, max_tokens=1)
    (position,) = llm.generate("Add: 1 + 1", params, use_tqdm=False)[0].outputs[0].logprobs
    likely = [found for found in position.values() if found.logprob > -1e9]
    assert {found.decoded_token for found in likely} <= {"y", "n", "ye", "yes", "no"}
    assert sum(2.718281828**found.logprob for found in likely) == pytest.approx(1.0, abs=1e-3)


def test_what_cannot_be_followed_ends_alone(llm):
    cases = [
        ({"json": '{"type": "strin"}'}, "json cannot be followed"),
        ({"json": {"not": {}}}, "not"),
        ({"json": "{"}, "json cannot be followed"),
        ({"regex": "(?=a)b"}, "regex cannot be followed"),
        ({"grammar": "root ::= missing"}, "grammar cannot be followed"),
        ({"regex": "a" * 300_000}, "at most 262144 are read"),
    ]
    beside = SamplingParams(temperature=0.0, max_tokens=4)
    for number, (wish, message) in enumerate(cases):
        params = SamplingParams(structured_outputs=StructuredOutputsParams(**wish))
        with pytest.raises(InvalidSamplingParams, match=f"prompt 1: .*{message}"):
            llm.generate(["Add: 1", "Add: 1"], [beside, params], use_tqdm=False)
        llm.engine.add(Request(f"bad {number}", (1, 2), params, 0.0))  # a client whose server knows less
    with pytest.raises(PromptTooLong):  # at once, whatever its grammar
        llm.engine.add(Request("long", (1,) * 256, params, 0.0))
    llm.engine.add(Request("good", (1, 2), beside, 0.0))
    ends = {}
    while llm.engine.has_work:
        ends |= {event.request_id: event for event in llm.engine.step() if event.finish_reason is not None}
    for number, (_, message) in enumerate(cases):
        event = ends[f"bad {number}"]
        assert isinstance(event.error, InvalidSamplingParams) and message in str(event.error)
        assert event.finish_reason == "error"
    assert ends["good"].error is None


def test_a_request_may_leave_while_its_grammar_is_compiled(llm):
    params = SamplingParams(structured_outputs=StructuredOutputsParams(regex="[a-z]{50}"))
    stream = llm.stream("Add: 1", params)
    next(stream)
    stream.close()
    while llm.engine.has_work:
        assert llm.engine.step() == []
    llm.engine.add(llm._make_group("Add: 1", params)[0].request)
    name = llm.engine._guides.request_ids[0]
    with pytest.raises(RequestError, match="in use"):
        llm.engine.add(llm.engine._guides._compiling[name][0])
    assert llm.engine.num_waiting == 1 and llm.engine.abort(name)[0].finish_reason == "abort"
    assert not llm.engine.has_work


def test_exactly_one_wish():
    for wishes in ({}, {"regex": "a", "json_object": True}, {"choice": ()}, {"choice": ("",)}, {"grammar": ""}):
        with pytest.raises(InvalidSamplingParams, match="structured_outputs"):
            StructuredOutputsParams(**wishes)
    with pytest.raises(InvalidSamplingParams, match="exclude each other"):
        SamplingParams(structured_outputs=StructuredOutputsParams(regex="a"), allowed_token_ids=(1,))
