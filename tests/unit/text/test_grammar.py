"""Grammars for a real tokenizer: what they accept, what they refuse, and that calls they force are read back."""

import contextlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hotstart.errors import CheckpointError, RequestError
from hotstart.request import StructuredOutputsParams
from hotstart.text.grammar import MAX_CACHED, GrammarError, Grammars
from hotstart.text.tool_calls import ToolCalls, joined
from hotstart.text.tool_grammar import tool_grammar

CHECKPOINT = Path(__file__).parents[3] / "checkpoints" / "tiny-qwen3.5"
TOOLS = {
    "find": {
        "type": "object",
        "properties": {
            "text": {"type": "string"},
            "limit": {"type": "integer"},
            "order": {"enum": ["up", "down"]},
            "where": {"$ref": "#/$defs/place"},
        },
        "required": ["text", "limit"],
        "additionalProperties": False,
        "$defs": {"place": {"type": "object", "properties": {"x": {"type": "number"}}, "additionalProperties": False}},
    },
    "stop": {"type": "object", "properties": {}, "additionalProperties": False},
}
JSON_CALL = '<tool_call>\n{"name": "find", "arguments": {"text": "a \\"b\\"", "limit": 3}}\n</tool_call>'
JSON_STOP = '<tool_call>\n{"name": "stop", "arguments": {}}\n</tool_call>'
TAG_CALL = (
    "<tool_call>\n<function=find>\n<parameter=text>\na\n\n<b>\n</parameter>\n<parameter=limit>\n3\n</parameter>\n"
    '<parameter=order>\nup\n</parameter>\n<parameter=where>\n{"x": 1.5}\n</parameter>\n</function>\n</tool_call>'
)
TAG_STOP = "<tool_call>\n<function=stop>\n</function>\n</tool_call>"


ANY_GRAMMARS = Grammars(CHECKPOINT, 448, (397,))


@pytest.fixture
def grammars():
    return ANY_GRAMMARS


def accepts(grammars, text, **wish):
    """Whether text is an answer, each token of it being allowed by the mask before it."""
    matcher = grammars.matcher(StructuredOutputsParams(**wish))
    masks = np.zeros((1, 16), np.int32)
    for token in grammars.tokenizer.tokenize_str(text):
        matcher.unsafe_compute_mask_ptr(masks.ctypes.data, masks.nbytes)
        allowed = masks.view(np.uint8)[0, token // 8] >> token % 8 & 1
        assert bool(allowed) == (matcher.validate_tokens([token]) == 1)
        if not allowed:
            return False
        assert matcher.consume_token(token)
    matcher.unsafe_compute_mask_ptr(masks.ctypes.data, masks.nbytes)
    ends = [bool(masks.view(np.uint8)[0, end // 8] >> end % 8 & 1) for end in grammars.end_ids]
    assert ends == [matcher.is_accepting()] * 2, "the end comes where the answer may end, and nowhere else"
    return ends[0]


def test_the_end_token_of_the_tokenizer_counts_beside_the_models(grammars):
    assert grammars.end_ids == [397, 399]


def test_what_is_accepted(grammars):
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    for wish, good, bad in [
        ({"json": schema}, ('{"a": 1}', '{\n  "a": 1\n}', '{"a":1,"b":null}'), ('{"a": "1"}', "{}", '{"a":   1}')),
        ({"json_object": True}, ("{}", '{"é": [1, {"b": null}]}'), ("[]", "1", "{")),
        ({"regex": "a{2,3}"}, ("aa", "aaa"), ("a", "aaaa", "ab")),
        ({"choice": ('say "hi"', "no")}, ('say "hi"', "no"), ("yes", "n")),
        ({"grammar": 'start: "a" start "b" | "c"'}, ("c", "aacbb"), ("acbb", "ab")),
    ]:
        for text in good:
            assert accepts(grammars, text, **wish), (wish, text)
        for text in bad:
            assert not accepts(grammars, text, **wish), (wish, text)


def test_hints_hold_no_words_of_the_client(grammars):
    with pytest.raises(GrammarError) as caught:
        grammars.matcher(StructuredOutputsParams(json={"properties": {"s3cret": {"not": {}}}}))
    assert caught.value.kind == "json" and "not" in caught.value.hint and "s3cret" not in caught.value.hint
    with pytest.raises(GrammarError) as caught:
        grammars.matcher(StructuredOutputsParams(regex="s3cret["))
    assert caught.value.hint == "it cannot be followed"


def test_few_grammars_are_kept(grammars):
    for number in range(MAX_CACHED + 20):
        grammars.matcher(StructuredOutputsParams(regex=f"a{{{number}}}"))
    assert len(grammars._cache) == MAX_CACHED
    for number in range(30):
        grammars.matcher(StructuredOutputsParams(choice=("x" * 200_000 + str(number),)))
    assert sum(map(len, grammars._cache)) <= 2**22 and len(grammars._cache) > 10


KEYWORDS = ["type", "properties", "items", "enum", "const", "anyOf", "allOf", "required", "pattern", "$ref", "format"]
KEYWORDS += ["minimum", "maxLength", "minItems", "additionalProperties", "prefixItems", "not", "$defs", "multipleOf"]
VALUES = st.sampled_from(["object", "string", "integer", "array", "null", "#", "#/$defs/a", "date-time", "[a-", "a{9}"])
VALUES |= st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3)
SCHEMAS = st.recursive(
    VALUES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(KEYWORDS), inner, max_size=4)
        | st.dictionaries(st.text(max_size=2), inner, max_size=2)
    ),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(KEYWORDS), SCHEMAS, max_size=4), st.randoms(use_true_random=False))
def test_any_schema_is_followed_or_refused(schema, dice):
    grammars = ANY_GRAMMARS
    try:
        matcher = grammars.matcher(StructuredOutputsParams(json=schema))
    except GrammarError as error:
        assert len(error.hint) < 200
        return
    masks = np.zeros((1, 16), np.int32)
    for _ in range(30):
        matcher.unsafe_compute_mask_ptr(masks.ctypes.data, masks.nbytes)
        allowed = np.unpackbits(masks.view(np.uint8)[0], bitorder="little").nonzero()[0]
        assert len(allowed) and max(allowed) < 400
        assert matcher.consume_token(int(dice.choice(allowed))) or matcher.is_error()


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.sampled_from(["a", ".", "*", "+", "?", "{2,9}", "(", ")", "[a-z]", "|", "\\d", "^", "$", "\\", "é"]))
)
def test_any_expression_is_followed_or_refused(parts):
    for kind in ("regex", "grammar"):
        if parts:
            with contextlib.suppress(GrammarError):
                ANY_GRAMMARS.matcher(StructuredOutputsParams(**{kind: "".join(parts)}))


@pytest.mark.parametrize(("as_tags", "call", "stop"), [(False, JSON_CALL, JSON_STOP), (True, TAG_CALL, TAG_STOP)])
def test_forced_calls_are_read_back(grammars, as_tags, call, stop):
    def forced(text, **options):
        return accepts(grammars, text, grammar=tool_grammar(TOOLS, as_tags=as_tags, forced=True, **options))

    assert forced(call) and forced(stop) and forced("\n\n" + call + "\n" + stop)
    assert forced(call, several=False) and not forced(call + "\n" + stop, several=False)
    for wrong in ("Hello", "", call + " and", call.replace("limit", "size"), stop.replace("stop", "halt")):
        assert not forced(wrong), wrong
    assert not forced(call.replace("3", '"3"')) and not forced(call.removesuffix("</tool_call>"))
    assert forced('{"sum": 3}', answer={"type": "object"}) and forced(call, answer={"type": "object"})
    assert not forced("[3]", answer={"type": "object"})
    parser = ToolCalls(TOOLS)
    calls = joined(parser.push(call + "\n" + stop)[1] + parser.finish()[1])
    assert [one.name for one in calls] == ["find", "stop"] and json.loads(calls[0].arguments)["limit"] == 3


@pytest.mark.parametrize(("as_tags", "call", "stop"), [(False, JSON_CALL, JSON_STOP), (True, TAG_CALL, TAG_STOP)])
def test_strict_calls_are_followed_where_they_come(grammars, as_tags, call, stop):
    schemas = {"find": TOOLS["find"], "stop": None}
    grammar = tool_grammar(schemas, as_tags=as_tags, forced=False)
    for text in ("", "Hello <tool_ there", "First\n" + call, call + "\n" + call, "a" + stop + "b"):
        assert accepts(grammars, text, grammar=grammar), text
    for text in (call.replace("3", '"3"'), "<tool_call>nonsense", call.replace("find", "other"), "<tool_call>\n"):
        assert not accepts(grammars, text, grammar=grammar), text
    anything = stop.replace("{}", '{"a": [1]}').replace(">\n</fun", ">\n<parameter=a>\nb\n</parameter>\n</fun")
    assert anything != stop and accepts(grammars, anything, grammar=grammar)


def test_names_that_no_call_could_hold_are_refused():
    for schemas in ({"a b": None}, {"a>": None}, {"f": {"properties": {"x\n": {}}}}):
        with pytest.raises(RequestError):
            tool_grammar(schemas, as_tags=True, forced=True)


def test_a_folder_without_a_tokenizer_gives_none(tmp_path):
    with pytest.raises(CheckpointError):
        Grammars(tmp_path, 448, ())
    (tmp_path / "tokenizer.json").write_text('{"model": {}}')
    with pytest.raises(CheckpointError, match="gives no grammars"):
        Grammars(tmp_path, 448, ())
