"""Parser: argparse with a mistake in one line, near names for a misspelt flag, and flags that can be asked about."""

import argparse
import difflib
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

__all__ = ["EXIT_MISTAKE", "Flag", "Parser", "near"]

EXIT_MISTAKE = 2
MANY = 10

Takes = Literal["switch", "value", "values", "maybe"]


@dataclass(frozen=True, slots=True)
class Flag:
    """One flag as a command has it."""

    name: str  # --max-model-len
    dest: str
    takes: Takes
    help: str
    metavar: str
    choices: tuple[str, ...]
    has_negation: bool = False  # --no-max-model-len


class Parser(argparse.ArgumentParser):
    """`prepare` may rewrite a command's words before they are read: for files, variables, and other programs' flags."""

    def __init__(self, *, prepare: Callable[["Parser", list[str]], list[str]] | None = None, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)
        self._prepare = prepare

    @property
    def flags(self) -> dict[str, Flag]:
        """By name.  Of two names for one flag the first counts."""
        found = (_flag(action) for action in self._actions if action.option_strings and action.dest != "help")
        return {flag.name: flag for flag in found}

    @property
    def groups(self) -> list[tuple[str, list[argparse.Action]]]:
        """What `--help` shows, in its order."""
        return [(group.title or "", group._group_actions) for group in self._action_groups if group._group_actions]

    @property
    def subparsers(self) -> dict[str, "Parser"]:
        """By the name of their command."""
        kinds = [action for action in self._actions if isinstance(action, argparse._SubParsersAction)]
        return dict(kinds[0].choices) if kinds else {}

    def format_help(self) -> str:
        """Of many flags, usage names none: they are listed below it."""
        if len(self.flags) > MANY and self.usage is None:
            words = [action for action in self._actions if not action.option_strings]
            shown = [f"[{word.metavar}]" if word.nargs == "?" else str(word.metavar) for word in words]
            self.usage = " ".join([self.prog, *shown, "[flags]"])
        return super().format_help()

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]  # argparse overloads it
        """Knows them all: what it does not know is a mistake."""
        words = list(sys.argv[1:] if args is None else args)
        if self._prepare is not None and not {"-h", "--help"} & set(words):
            words = self._prepare(self, words)
        if self.subparsers and words and not words[0].startswith("-") and words[0] not in self.subparsers:
            self.error(f"there is no command {words[0]!r}{_suggested(words[0], self.subparsers)}")
        namespace, rest = super().parse_known_args(words, namespace)
        if rest:
            self.error(self._unknown(rest[0]))
        return namespace, rest

    def _unknown(self, word: str) -> str:
        name = word.partition("=")[0]
        if not name.startswith("-"):
            return f"{word!r} is one word too many"
        return f"there is no flag {name}{_suggested(name, self.flags)}"

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_MISTAKE, f"hotstart: {message}; {self.prog} --help lists what there is{os.linesep}")


def near(name: str, names: Iterable[str]) -> str:
    """The name that was meant, most likely, or nothing."""
    return next(iter(difflib.get_close_matches(name, list(names), n=1, cutoff=0.7)), "")


def _suggested(name: str, names: Iterable[str]) -> str:
    nearest = near(name, names)
    return f", did you mean {nearest}?" if nearest else ""


def _flag(action: argparse.Action) -> Flag:
    takes: Takes = "switch" if action.nargs == 0 else "values" if action.nargs == "+" else "value"
    return Flag(
        name=action.option_strings[0],
        dest=action.dest,
        takes=takes,
        help=(action.help or "").replace("%%", "%"),
        metavar=str(action.metavar or action.dest.upper()),
        choices=tuple(str(choice) for choice in action.choices or ()),
        has_negation=isinstance(action, argparse.BooleanOptionalAction),
    )
