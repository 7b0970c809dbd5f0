"""Options of a configuration: dataclass fields that carry their help text, their choices and how they are read.

From the fields alone the command line's flags, the keywords of Python calls and the messages of errors are derived.
"""

import dataclasses
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from hotstart.errors import ConfigError

__all__ = [
    "Option",
    "check_options",
    "count",
    "flag",
    "option",
    "options_of",
    "parse_bytes",
    "parse_count",
    "parse_length",
    "parse_object",
    "parse_share",
    "parse_sizes",
    "parse_words",
    "size",
    "switch",
    "words",
]

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def parse_count(value: object) -> int:
    """A number of tokens or sequences: 4096, "4096", "4k" (4000), "4K" (4096), as vLLM reads them."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kKmMgG]?)", str(value).strip())
    if isinstance(value, bool) or match is None:
        raise ConfigError(f"{value!r} is not a number of things; write 4096, 4k (4000) or 4K (4096)")
    return _whole(value, float(match[1]) * _UNITS[match[2]])


def parse_length(value: object) -> int | str:
    """A number of tokens, or "auto", or -1 as vLLM has it too: the longest that fits."""
    return "auto" if str(value) in ("auto", "-1") else parse_count(value)


def parse_bytes(value: object) -> int:
    """A number of bytes: 1073741824, "1GiB" (2**30), "1GB" (10**9), "512MiB"; "1G" (2**30), "1g" (10**9), as vLLM."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kKmMgGtT]?)(i?B)?", str(value).strip())
    if isinstance(value, bool) or match is None:
        raise ConfigError(f"{value!r} is not a size; write 4GiB, 4GB, 512MiB or a number of bytes")
    unit = {"B": match[2].lower(), "iB": match[2].upper()}.get(match[3], match[2])
    return _whole(value, float(match[1]) * _UNITS[unit])


def parse_share(value: object) -> float:
    """A part of a whole: 0.9."""
    try:
        share = float(str(value))
    except ValueError:
        share = -1.0
    if isinstance(value, bool) or not 0.0 < share <= 1.0:
        raise ConfigError(f"{value!r} is no part of a whole; write a number above 0 and up to 1, such as 0.9")
    return share


def parse_sizes(value: object) -> tuple[int, ...]:
    """Distinct numbers of things, ascending: "1,2,4,8", ["1", "2,4"] or [1, 2, 4, 8]."""
    if not isinstance(value, Iterable):
        raise ConfigError(f"{value!r} is not a list of sizes; write 1,2,4,8")
    parts = [part for item in ([value] if isinstance(value, str) else value) for part in str(item).split(",")]
    sizes = tuple(sorted({parse_count(part) for part in parts}))
    if not sizes or sizes[0] < 1:
        raise ConfigError(f"{value!r} is not a list of sizes of at least 1; write 1,2,4,8")
    return sizes


def parse_words(value: object) -> tuple[str, ...]:
    """Words, in their order: "a,b", ["a", "b,c"], or JSON's '["a", "b"]', as vLLM has some."""
    found: list[str] = []
    for item in [value] if isinstance(value, str) or not isinstance(value, Iterable) else value:
        try:
            read = json.loads(str(item))
        except json.JSONDecodeError:
            read = None
        found += map(str, read) if isinstance(read, list) else (word.strip() for word in str(item).split(","))
    if not all(found):
        raise ConfigError(f"{value!r} has an empty word; write a,b,c")
    return tuple(found)


def parse_object(value: object) -> dict[str, Any]:
    """'{"name": 1}', or a mapping."""
    try:
        read = dict(value) if isinstance(value, Mapping) else json.loads(str(value))
    except json.JSONDecodeError as error:
        raise ConfigError(f"{value!r} is not JSON ({error}); write '{{\"name\": value}}', in quotes") from None
    if not isinstance(read, dict):
        raise ConfigError(f"{value!r} is no JSON object; write '{{\"name\": value}}', in quotes")
    return read


def parse_switch(value: object) -> bool:
    if str(value).lower() not in ("true", "false"):
        raise ConfigError(f"{value!r} is neither true nor false")
    return str(value).lower() == "true"


def _whole(value: object, number: float) -> int:
    if number != int(number):
        raise ConfigError(f"{value!r} is not a whole number")
    return int(number)


@dataclass(frozen=True, slots=True)
class Option:
    """One field as a command line sees it."""

    name: str
    flag: str
    help: str
    default: object
    choices: tuple[str, ...] = ()
    parse: Callable[[str], object] = str
    metavar: str | None = None
    is_switch: bool = False  # --name and --no-name
    is_several: bool = False  # --name A B


def option(
    help: str,
    default: Any = None,
    *,
    choices: tuple[str, ...] = (),
    parse: Callable[[str], object] = str,
    metavar: str | None = None,
    minimum: int | None = None,
) -> Any:
    metadata = {"help": help, "choices": choices, "parse": parse, "metavar": metavar, "minimum": minimum}
    if default is dataclasses.MISSING:
        return field(metadata=metadata)
    return field(default=default, metadata=metadata)


def count(help: str, default: int | None = None, minimum: int = 1) -> Any:
    return option(help, default, parse=parse_count, metavar="N", minimum=minimum)


def words(help: str, default: tuple[str, ...] | None = None, metavar: str = "NAME") -> Any:
    """Several, in their order."""
    return option(help, default, parse=parse_words, metavar=metavar)


def size(help: str, minimum: int = 1) -> Any:
    """A number of bytes."""
    return option(help, parse=parse_bytes, metavar="SIZE", minimum=minimum)


def switch(help: str) -> Any:
    return option(help, False, parse=parse_switch)


def check_options(config: Any) -> None:
    """For a frozen dataclass's `__post_init__`: reads what was given as text, and raises ConfigError for nonsense."""
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        choices, parse, minimum = (item.metadata[key] for key in ("choices", "parse", "minimum"))
        if choices:
            if str(value) not in choices:
                raise ConfigError(f"{flag(item.name)} is {value!r}, it must be one of {', '.join(choices)}")
            object.__setattr__(config, item.name, str(value))  # a number may be given as one
        if parse is not str and value is not None:
            try:
                number = parse(value)
            except ConfigError as error:
                raise ConfigError(f"{flag(item.name)}: {error}") from None
            if minimum is not None and not isinstance(number, str) and number < minimum:
                raise ConfigError(f"{flag(item.name)} is {number}, it must be at least {minimum}")
            object.__setattr__(config, item.name, number)


def flag(name: str) -> str:
    """The command-line flag of a field, as messages name it."""
    return "--" + name.replace("_", "-")


def options_of(kind: Any) -> Iterator[Option]:
    """Every field of a configuration."""
    for item in dataclasses.fields(kind):
        metadata = item.metadata
        yield Option(
            name=item.name,
            flag=flag(item.name),
            help=metadata["help"],
            default=item.default,
            choices=metadata["choices"],
            parse=metadata["parse"],
            metavar=metadata["metavar"],
            is_switch=metadata["parse"] is parse_switch,
            is_several=metadata["parse"] in (parse_sizes, parse_words),
        )
