"""Stop strings are found at the same place however the text is cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotstart.text.stop import StopStrings

LETTERS = st.text(alphabet="ab", max_size=12)


def run(pieces: list[str], stops: list[str], include: bool = False) -> tuple[str, str | None, list[str]]:
    finder = StopStrings(stops, include)
    shown = [finder.push(piece) for piece in pieces]
    return "".join(shown) + finder.finish(), finder.matched, shown


@given(LETTERS, st.lists(st.text(alphabet="ab", min_size=1, max_size=4), max_size=3), st.booleans(), st.data())
def test_cuts_change_nothing(text: str, stops: list[str], include: bool, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)))))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    ends = [(text.find(s) + len(s), text.find(s), s) for s in stops if s in text]
    end, start, matched = min(ends, default=(len(text), len(text), None))
    output, found, shown = run(pieces, stops, include)
    assert (output, found) == (text[: end if include else start], matched)
    assert text.startswith("".join(shown))


@pytest.mark.parametrize(
    ("pieces", "stops", "shown"),
    [
        (["Hello </", "s", "> more"], ["</s>"], ["Hello ", "", ""]),
        (["a <", "b"], ["</s>"], ["a ", "<b"]),  # a tail that did not become a stop string comes out
        (["xaa", "ab"], ["aab"], ["x", "a"]),  # the tail overlaps itself
    ],
)
def test_a_possible_beginning_is_held_back(pieces: list[str], stops: list[str], shown: list[str]) -> None:
    assert run(pieces, stops)[2] == shown


def test_nothing_follows_a_match() -> None:
    assert run(["a!", "b", "!"], ["!"], include=True) == ("a!", "!", ["a!", "", ""])
