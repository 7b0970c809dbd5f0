"""Command lines written for vLLM: what they ask for here, what can be left out, and the command to paste instead.

The table beside this file names every flag of `vllm serve` in the release below, with what leaving it out would do:
nothing to the answers (`harmless`), or something (`changes`).  Where it is given with a value that asks for what
happens here in any case, it is taken and left at that.
"""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import cast

from hotstart.cli.parser import Flag, Takes, near
from hotstart.cli.words import Given

__all__ = ["RELEASE", "Judged", "Row", "judge", "read_table", "report", "strip_command"]

RELEASE = "0.25.1"

# Values that mean the same by another name.
SYNONYMS = {("--dtype", "half"): "float16", ("--dtype", "float"): "float32"}
PYTHONS = ("python", "python3")
MODULES = ("vllm.entrypoints.openai.api_server", "vllm.entrypoints.cli.main")
SUPPORTED, HARMLESS, CHANGES, UNKNOWN = "supported", "harmless", "changes", "unknown"
COLUMN = 36
TITLES = {
    HARMLESS: "can be left out, the answers stay what they are",
    CHANGES: "without these the answers are others",
    UNKNOWN: f"known neither here nor to vLLM {RELEASE}",
}


@dataclass(frozen=True, slots=True)
class Row:
    """One flag of vLLM's."""

    names: tuple[str, ...]
    takes: Takes
    verdict: str  # supported, harmless or changes
    otherwise: str  # of a flag that is supported: the verdict on values that are not
    same: tuple[str, ...]  # values that ask for what happens here in any case; a switch's are on and off
    reason: str


@dataclass(frozen=True, slots=True)
class Problem:
    given: Given
    verdict: str
    reason: str
    nearest: str = ""  # the flag of ours that was meant, most likely


@dataclass(frozen=True, slots=True)
class Judged:
    kept: tuple[Given, ...]
    same: tuple[Given, ...]  # asked for what happens here in any case
    problems: tuple[Problem, ...]


@cache
def read_table() -> Mapping[str, Row]:
    """By every name that a flag has."""
    table: dict[str, Row] = {}
    for line in resources.files("hotstart.cli").joinpath("vllm_flags.txt").read_text("utf-8").splitlines():
        names, takes, verdicts, same, reason = (part.strip() for part in (line + "| | ").split("|")[:5])
        verdict, _, otherwise = verdicts.partition("/")
        row = Row(tuple(names.split()), cast(Takes, takes), verdict, otherwise, tuple(same.split()), reason)
        table |= dict.fromkeys(row.names, row)
    return table


def judge(given: Iterable[Given], flags: Mapping[str, Flag]) -> Judged:
    """`flags` are our own."""
    kept, same, problems = [], [], []
    table = read_table()
    for item in given:
        name = _without_no(item.flag, flags)
        row = table.get(_without_no(item.flag, table))
        if not item.flag:
            kept.append(item)
        elif name in flags:
            value = SYNONYMS.get((name, " ".join(item.values)))
            found = item if value is None else item.with_values(value)
            choices = flags[name].choices
            if row is None or not row.otherwise or not choices or set(found.values) <= set(choices):
                kept.append(found)
            else:
                reason = f"{row.reason}; here it may be {', '.join(choices)}"
                problems.append(Problem(item, row.otherwise, reason))
        elif row is None:
            nearest = near(item.flag, flags) or near(item.flag, table)
            reason = f"did you mean {nearest}?" if nearest else ""
            typed = item.origin == "command line" and nearest in flags
            problems.append(Problem(item, UNKNOWN, reason, nearest if typed else ""))
        elif _asks_for_the_same(item, row):
            same.append(item)
        else:
            problems.append(Problem(item, row.verdict, row.reason))
    return Judged(tuple(kept), tuple(same), tuple(problems))


def strip_command(words: Sequence[str]) -> list[str]:
    """`vllm serve MODEL` and `python -m vllm.entrypoints.openai.api_server` as `serve` alone."""
    for ours in ([], ["serve"]):
        for theirs in (["vllm", "serve"], *([python, "-m", module] for python in PYTHONS for module in MODULES)):
            if list(words[: len(ours) + len(theirs)]) == ours + theirs:
                rest = list(words[len(ours) + len(theirs) :])
                return ["serve", *rest[rest[:1] == ["serve"] :]]
    return list(words)


def report(judged: Judged, program: str) -> str:
    """All of the problems at once, by what leaving them out does, and the command that is left."""
    count = len(judged.problems)
    lines = [f"hotstart: {count} flag{'s' * (count > 1)} of this command cannot be honoured"]
    for verdict, title in TITLES.items():
        rows = [(_written(p.given), p.reason) for p in judged.problems if p.verdict == verdict]
        lines += ["", f"  {title}"] * bool(rows)
        lines += [_row(written, reason) for written, reason in rows]
    lines += ["", "To paste instead:", "", f"    {program} {shlex.join(_left(judged))}"]
    if all(problem.verdict != UNKNOWN for problem in judged.problems):
        lines += ["", "Or add --drop-unsupported, which leaves out what hotstart does not have and says so."]
    return "\n".join(lines) + "\n"


def _row(written: str, reason: str) -> str:
    """In two columns; what is too long for its own has a line to itself."""
    if len(written) > COLUMN:
        written += f"\n    {'':<{COLUMN}}"
    return f"    {written:<{COLUMN}}  {reason}".rstrip()


def _left(judged: Judged) -> list[str]:
    """The words of the command without the problems; a flag that was nearly right is put right."""
    mended = [Given(p.nearest, p.given.values, (p.nearest, *p.given.values)) for p in judged.problems if p.nearest]
    typed = [item for item in (*judged.kept, *mended) if item.origin == "command line"]
    return [word for item in sorted(typed, key=lambda item: bool(item.flag)) for word in item.words]


def _written(given: Given) -> str:
    origin = "" if given.origin == "command line" else f"  ({given.origin})"
    return shlex.join(given.words) + origin


def _without_no(name: str, known: Mapping[str, object]) -> str:
    positive = name.replace("--no-", "--", 1)
    return positive if name not in known and name.startswith("--no-") and positive in known else name


def _asks_for_the_same(item: Given, row: Row) -> bool:
    if row.takes == "switch":
        return ("off" if item.flag.startswith("--no-") else "on") in row.same
    return bool(item.values) and set(item.values) <= set(row.same)
