import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hotstart.text.tool_calls import Call, CallPiece, ToolCalls, joined

SCHEMAS = {"f": {"type": "object", "properties": {"x": {"type": "integer"}, "s": {"type": "string"}}}}
TAGS = """<tool_call>
<function=f>
<parameter=x>
1
</parameter>
<parameter=s>
2

b
</parameter>
</function>
</tool_call>"""
JSON = '<tool_call>\n{"name": "f", "arguments": {"x": 1, "s": "ü"}}\n</tool_call>'
CODE = (
    '<tool_call>\n<function=f>\n<parameter=s>\n\nif x < 3:\n\tprint("é</b>")\n\n</parameter>\n</function>\n</tool_call>'
)
BARE = "<tool_call>\n<function=f>\n</function>\n</tool_call>"
OPEN = "<tool_call><function=f><parameter=s>a\n<parameter=x>\n[1,\n 2]\n<parameter=s>\nb\n</function></tool_call>"
ESCAPED = '<tool_call>{"name": "f", "arguments": {"s": "}\\\\\\"{", "x": [{}, "]"]}, "id": 1}</tool_call>'
OTHER_ORDER = '<tool_call>{"arguments": {"x": 1}, "name": "f"}</tool_call>'
CASES = [
    ("tags", "Let me see.\n\n" + TAGS, "Let me see.", [("f", {"x": 1, "s": "2\n\nb"})]),
    ("json", JSON, "", [("f", {"x": 1, "s": "ü"})]),
    ("two", JSON + "\n" + TAGS, "", [("f", {"x": 1, "s": "ü"}), ("f", {"x": 1, "s": "2\n\nb"})]),
    ("not closed", TAGS.removesuffix("\n</tool_call>"), "", [("f", {"x": 1, "s": "2\n\nb"})]),
    ("cut off", TAGS[: TAGS.index("b\n</p")], "", [("f", {"x": 1, "s": "2\n"})]),
    ("code", CODE, "", [("f", {"s": '\nif x < 3:\n\tprint("é</b>")\n'})]),
    ("no parameters", BARE, "", [("f", {})]),
    ("parameters not closed", OPEN, "", [("f", {"s": "b", "x": [1, 2]})]),
    ("escapes", ESCAPED, "", [("f", {"s": '}\\"{', "x": [{}, "]"]})]),
    ("another order", OTHER_ORDER, "", [("f", {"x": 1})]),
    ("no arguments", '<tool_call>{"name": "f"}</tool_call>', "", [("f", {})]),
    ("no call", "<tool_call>nonsense</tool_call> and on", "<tool_call>nonsense</tool_call> and on", []),
    ("no mark", "a <tool_ b \n", "a <tool_ b \n", []),
]


def read(text: str, size: int) -> tuple[str, list[Call]]:
    content, pieces = stream(text, size)
    return content, joined(pieces)


def stream(text: str, size: int) -> tuple[str, list[CallPiece]]:
    parser = ToolCalls(SCHEMAS)
    parts = [parser.push(text[i : i + size]) for i in range(0, len(text), size)] + [parser.finish()]
    return "".join(part[0] for part in parts), [piece for part in parts for piece in part[1]]


@pytest.mark.parametrize("size", [1, 2, 5, 1000])
@pytest.mark.parametrize(("text", "content", "calls"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_calls_are_found_however_the_text_is_cut(text, content, calls, size):
    found_content, found = read(text, size)
    assert found_content == content
    assert [(call.name, json.loads(call.arguments)) for call in found] == calls


def test_arguments_come_piece_by_piece():
    for text in (CODE, JSON, ESCAPED):
        _, pieces = stream(text, 3)
        assert [piece.name for piece in pieces] == ["f"] + [None] * (len(pieces) - 1)
        assert len(pieces) > 6 and {piece.number for piece in pieces} == {0}
    parser = ToolCalls(SCHEMAS)
    _, pieces = parser.push("<tool_call>\n<function=f>\n<parameter=s>\nHello wor")
    assert [tuple(piece) for piece in pieces] == [
        (0, "f", ""),
        (0, None, '{"s": '),
        (0, None, '"'),
        (0, None, "Hello wor"),
    ]


PARTS = [
    "<tool_call>",
    "</tool_call>",
    "<function=f>",
    "<parameter=x>",
    "<parameter=s>",
    "\n",
    "</parameter>",
    "{",
    "}",
]
PARTS += ["</function>", '"', " ", "a", "<", "1", "\\", '{"name": "f", "arguments": ']


@settings(max_examples=500, deadline=None)
@given(st.lists(st.sampled_from(PARTS)), st.integers(1, 4))
def test_any_text_is_read_the_same_in_one_piece_and_in_many(parts, size):
    text = "".join(parts)
    assert read(text, size) == read(text, 1000)


def test_what_is_long_and_no_call_takes_no_time():
    for text in ("<tool_call>" + " " * 100_000, "<tool_call><function=f>" + "<" * 100_000, JSON[:60] + "{" * 100_000):
        began = time.monotonic()
        stream(text, 7)
        assert time.monotonic() - began < 5
