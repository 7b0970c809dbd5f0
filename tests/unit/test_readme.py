"""The two READMEs say the same: headings, commands, links and numbers; and what they name is there."""

import re
from pathlib import Path

import pytest

from hotstart.cli.main import make_parser
from hotstart.cli.vllm import strip_command

ROOT = Path(__file__).parents[2]
ENGLISH, CHINESE = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh-CN.md"))


def code(text: str) -> list[str]:
    return re.findall(r"^(?:    [^\n]*\n)+|^```.*?^```", text, flags=re.MULTILINE | re.DOTALL)


def links(text: str) -> list[str]:
    return [target for target in re.findall(r"\]\(([^)]+)\)", text) if not target.startswith("README")]


def sections(text: str) -> list[str]:
    return re.split(r"^#+ .*$", text, flags=re.MULTILINE)


def numbers(text: str) -> list[str]:
    return sorted(re.findall(r"\d+(?:\.\d+)*", text))


def test_both_languages_are_in_step() -> None:
    levels = [re.findall(r"^(#+) ", text, flags=re.MULTILINE) for text in (ENGLISH, CHINESE)]
    assert levels[0] == levels[1]
    assert code(ENGLISH) == code(CHINESE)
    assert links(ENGLISH) == links(CHINESE)
    for english, chinese in zip(sections(ENGLISH), sections(CHINESE), strict=True):
        assert numbers(english) == numbers(chinese), english[:80]
        assert english.count("\n|") == chinese.count("\n|")


@pytest.mark.parametrize("target", links(ENGLISH))
def test_what_is_linked_is_there(target: str) -> None:
    assert (ROOT / target).exists()


def test_every_command_is_one_that_the_parser_takes() -> None:
    found = re.findall(r"^    hotstart (.*)$", ENGLISH, flags=re.MULTILINE)
    assert len(found) >= 5
    for command in found:
        make_parser().parse_args(strip_command(command.split()))
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert set(re.findall(r"(?:`|^    )make ([a-z-]+)", ENGLISH, flags=re.MULTILINE)) <= targets
