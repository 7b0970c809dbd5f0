import pytest

from hotstart.text.thinking import Thinking

CASES = [
    ("inside", True, "why\nso</think>\n\nthus", "why\nso", "thus"),
    ("inside, never closed", True, "why </thin", "why </thin", ""),
    ("empty", True, "</think>\n\nthus", "", "thus"),
    ("without", False, "thus <think> so", "", "thus <think> so"),
    ("opened by the model", False, "<think>\nwhy</think>thus", "why", "thus"),
    ("a beginning of a mark", False, "<thin ice", "", "<thin ice"),
]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
@pytest.mark.parametrize(("inside", "text", "reasoning", "content"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_reasoning_and_content_part_however_the_text_is_cut(inside, text, reasoning, content, size):
    thinking = Thinking(inside)
    pieces = [thinking.push(text[i : i + size]) for i in range(0, len(text), size)] + [thinking.finish()]
    assert ("".join(p[0] for p in pieces), "".join(p[1] for p in pieces)) == (reasoning, content)


@pytest.mark.parametrize(
    ("prompt", "inside"),
    [("x<|im_start|>assistant\n<think>\n", True), ("<think>\n\n</think>\n\n", False), ("assistant\n", False)],
)
def test_the_prompt_says_where_an_answer_begins(prompt, inside):
    assert Thinking.after(prompt).is_inside == inside
