"""The words of a command line as flags with their values, whatever program they were written for."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from hotstart.cli.parser import Takes

__all__ = ["Given", "read_words"]


@dataclass(frozen=True, slots=True)
class Given:
    """A flag that somebody set.  `flag` is "" for a word that belongs to none."""

    flag: str  # --tensor-parallel-size, dashes only
    values: tuple[str, ...]
    words: tuple[str, ...]  # as they were written
    origin: str = "command line"

    def with_values(self, *values: str) -> "Given":
        return replace(self, values=values, words=(self.flag, *values))


def read_words(words: Sequence[str], takes: Callable[[str], tuple[str, Takes | None]]) -> list[Given]:
    """`takes` gives a flag's first name, and how many values it has; None where nobody knows it."""
    found: list[Given] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word == "--":
            found += [Given("", (value,), (value,)) for value in rest]
            break
        if not _is_flag(word):
            found.append(Given("", (word,), (word,)))
            continue
        written, equals, value = word.partition("=")
        # --speculative-config.method is a part of --speculative-config.
        name = re.sub(r"^-O=?\d?$", "--optimization-level", written).partition(".")[0]
        if name.startswith("--"):
            name = name.replace("_", "-")
        name, kind = takes(name)
        values = [value] if equals else []
        if not equals and not re.fullmatch(r"-O\d", written):
            most = {"switch": 0, "value": 1, "values": len(rest), "maybe": 1, None: 1}[kind]
            while rest and len(values) < most and not _is_flag(rest[0]):
                values.append(rest.pop(0))
        found.append(Given(name, tuple(values), (word, *([] if equals else values))))
    return found


def _is_flag(word: str) -> bool:
    name = word.partition("=")[0]
    return len(word) > 1 and word.startswith("-") and " " not in name and re.match(r"-\.?\d", word) is None
