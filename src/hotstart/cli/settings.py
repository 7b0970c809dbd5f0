"""Where a command's settings come from: its command line, else the environment, else a file, else the defaults.

Each is read into the words of a command line, so that one parser reads them all and the same messages are given.
"""

import difflib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hotstart.cli import vllm
from hotstart.cli.parser import Flag, Parser, Takes
from hotstart.cli.words import Given, read_words
from hotstart.errors import ConfigError

__all__ = ["PREFIX", "Settings", "gather"]

PREFIX = "HOTSTART_"
NOT_FLAGS = ("HOTSTART_CACHE", "HOTSTART_LOGGING_LEVEL", "HOTSTART_MODEL", "HOTSTART_WATCH_DIR")
SECRETS = ("--api-key",)
TRUE, FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")
MODEL = "--model"


@dataclass(frozen=True, slots=True)
class Settings:
    """What was set, and by whom; and what was left out."""

    given: tuple[Given, ...] = ()
    same: tuple[Given, ...] = ()
    dropped: tuple[vllm.Problem, ...] = ()
    notes: tuple[str, ...] = ()

    def explain(self) -> str:
        """A line for each."""
        rows = [(_name(item), _value(item), item.origin) for item in self.given]
        rows += [(_name(item), _value(item), f"{item.origin}; so it is here in any case") for item in self.same]
        for problem in self.dropped:
            effect = "" if problem.verdict == vllm.HARMLESS else "THE ANSWERS MAY DIFFER: "
            rows.append((_name(problem.given), _value(problem.given), f"left out; {effect}{problem.reason}"))
        widths = [min(max((len(row[i]) for row in rows), default=0), 48) for i in range(2)]
        lines = [f"  {name:<{widths[0]}}  {value:<{widths[1]}}  {origin}" for name, value, origin in rows]
        return "\n".join(["settings, where they are not the default", *lines, *self.notes])


def gather(
    parser: Parser, words: Sequence[str], environ: Mapping[str, str], of_vllm: bool
) -> tuple[list[str], Settings]:
    """The words to parse, and where they come from.  Exits with all problems of a command line written for vLLM."""
    flags = parser.flags
    typed = [_named_model(item) for item in read_words(words, lambda name: _takes(name, flags, of_vllm))]
    variables, notes = _from_environment(environ, flags)
    found = _joined(typed, variables)
    paths = [item.values[0] for item in found if item.flag == "--config" and item.values]
    if "--config" in flags and paths:
        found = _joined(found, _from_file(Path(paths[-1]), flags))
    judged = vllm.Judged(tuple(found), (), ())
    if of_vllm:
        judged = vllm.judge(found, flags)
        unknown = any(problem.verdict == vllm.UNKNOWN for problem in judged.problems)
        wants_drop = any(item.flag == "--drop-unsupported" for item in judged.kept)
        if judged.problems and (unknown or not wants_drop):
            parser.exit(2, vllm.report(judged, parser.prog))
    theirs = [name for name in environ if name.startswith("VLLM_")] if of_vllm else []
    notes += [f"variables of vLLM are read by nobody: {', '.join(theirs)}"] * bool(theirs)
    settings = Settings(judged.kept, judged.same, judged.problems, tuple(notes))
    # The model comes first: a flag that takes several values would take a word that follows it.
    ordered = sorted(judged.kept, key=lambda item: bool(item.flag))
    return [word for item in ordered for word in _plain(item)], settings


def _plain(item: Given) -> tuple[str, ...]:
    """As argparse reads it, whatever a value begins with."""
    if item.flag and len(item.values) == 1:
        return (f"{item.flag}={item.values[0]}",)
    return (item.flag, *item.values) if item.flag else item.values


def _takes(name: str, flags: Mapping[str, Flag], of_vllm: bool) -> tuple[str, Takes | None]:
    positive = name.replace("--no-", "--", 1) if name.startswith("--no-") else name
    for candidate in (name, positive):
        if candidate in flags:
            return name, flags[candidate].takes
    table = vllm.read_table() if of_vllm else {}
    if name in table:
        first = table[name].names[0]
        return first, flags[first].takes if first in flags else table[name].takes
    return name, table[positive].takes if positive in table else None


def _named_model(item: Given) -> Given:
    """`--model X` is the word X."""
    return Given("", item.values, item.values, item.origin) if item.flag == MODEL and item.values else item


def _joined(first: Sequence[Given], second: Iterable[Given]) -> list[Given]:
    """Both, without what the first one has already."""
    taken = {_key(item) for item in first}
    return [*first, *(item for item in second if _key(item) not in taken)]


def _key(item: Given) -> str:
    return {"--strict": "--jit-monitor-mode"}.get(item.flag, item.flag.replace("--no-", "--", 1))


def _from_environment(environ: Mapping[str, str], flags: Mapping[str, Flag]) -> tuple[list[Given], list[str]]:
    found = []
    variables = {_variable(flag.name): flag for flag in flags.values()}
    notes = []
    for name, flag in variables.items():
        if environ.get(name, "").startswith("tcp://"):
            notes.append(f"{name} is what Kubernetes sets for a service of that name; it is not read as a setting")
        elif name in environ:
            found += _switch_or_value(flag.name, flag, environ[name], f"environment, {name}")
    if "HOTSTART_MODEL" in environ:
        model = environ["HOTSTART_MODEL"]
        found.append(Given("", (model,), (model,), "environment, HOTSTART_MODEL"))
    for name in environ:
        if name.startswith(PREFIX) and name not in variables and name not in NOT_FLAGS:
            match = difflib.get_close_matches(name, variables, n=1, cutoff=0.85)
            notes += [f"{name} is set and read by nobody; did you mean {match[0]}?"] if match else []
    return found, notes


def _variable(name: str) -> str:
    return PREFIX + name.removeprefix("--").replace("-", "_").upper()


def _from_file(path: Path, flags: Mapping[str, Flag]) -> list[Given]:
    import yaml  # here, so that `--help` takes no time

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--config: cannot read {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config: {path} is not YAML: {error}") from error
    if content is not None and not isinstance(content, dict):
        raise ConfigError(f"--config: {path} holds no settings; write a line `flag-name: value` for each")
    found = []
    for key, value in (content or {}).items():
        name = "--" + str(key).replace("_", "-")
        if name == "--config":
            raise ConfigError(f"--config: {path} names another file; put all settings into one")
        if isinstance(value, list):
            values = tuple(map(str, value))
            found.append(Given(name, values, (name, *values), path.name))
        elif isinstance(value, dict):
            found += _switch_or_value(name, flags.get(name), json.dumps(value), path.name)
        elif value is None:
            raise ConfigError(f"--config: {path} gives {key} no value; give it one, or take the line out")
        else:
            text = str(value).lower() if isinstance(value, bool) else str(value)
            found += _switch_or_value(name, flags.get(name), text, path.name)
    return [_named_model(item) for item in found]


def _switch_or_value(name: str, flag: Flag | None, text: str, origin: str) -> list[Given]:
    row = vllm.read_table().get(name)
    is_switch = flag.takes == "switch" if flag else row is not None and row.takes == "switch"
    if not is_switch:
        return [Given(name, (text,), (name, text), origin)]
    if text.lower() not in (*TRUE, *FALSE):
        raise ConfigError(f"{name} ({origin}) is {text!r}; write true or false")
    if text.lower() in TRUE:
        return [Given(name, (), (name,), origin)]
    has_negation = flag is None or flag.has_negation
    no = name.replace("--", "--no-", 1)
    return [Given(no, (), (no,), origin)] if has_negation else []


def _name(item: Given) -> str:
    return item.flag.removeprefix("--") or "model"


def _value(item: Given) -> str:
    if item.flag in SECRETS:
        return f"{len(item.values)} of them, not shown"
    return " ".join(item.values) or "yes"


def prepare(parser: Parser, words: list[str], of_vllm: bool = False) -> list[str]:
    """For Parser: what was set elsewhere is read as if it stood on the command line."""
    found, settings = gather(parser, words, os.environ, of_vllm)
    parser.set_defaults(settings=settings)
    return found
