import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hotstart.text.tool_calls import Call, ToolCalls

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
CASES = [
    ("tags", "Let me see.\n\n" + TAGS, "Let me see.", [("f", {"x": 1, "s": "2\n\nb"})]),
    ("json", JSON, "", [("f", {"x": 1, "s": "ü"})]),
    ("two", JSON + "\n" + TAGS, "", [("f", {"x": 1, "s": "ü"}), ("f", {"x": 1, "s": "2\n\nb"})]),
    ("not closed", TAGS.removesuffix("\n</tool_call>"), "", [("f", {"x": 1, "s": "2\n\nb"})]),
    ("no call", "<tool_call>nonsense</tool_call> and on", "<tool_call>nonsense</tool_call> and on", []),
    ("no mark", "a <tool_ b \n", "a <tool_ b \n", []),
]


def read(text: str, size: int) -> tuple[str, list[Call]]:
    parser = ToolCalls(SCHEMAS)
    pieces = [parser.push(text[i : i + size]) for i in range(0, len(text), size)] + [parser.finish()]
    return "".join(p[0] for p in pieces), [call for p in pieces for call in p[1]]


@pytest.mark.parametrize("size", [1, 2, 5, 1000])
@pytest.mark.parametrize(("text", "content", "calls"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_calls_are_found_however_the_text_is_cut(text, content, calls, size):
    found_content, found = read(text, size)
    assert found_content == content
    assert [(call.name, json.loads(call.arguments)) for call in found] == calls


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(["<tool_call>", "</tool_call>", "<function=f>", "<parameter=x>", "{", '"', " ", "a"])))
def test_any_text_is_read_the_same_in_one_piece_and_in_many(parts):
    text = "".join(parts)
    assert read(text, 1) == read(text, 1000)
