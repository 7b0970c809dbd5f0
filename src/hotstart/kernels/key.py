"""LaunchKey: what makes one binary different from another, in words that a log line can show.

Derived from a launch, ours or anyone's, never written by hand.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from triton._utils import type_canonicalisation_dict

__all__ = ["LaunchKey", "explain", "key_of_compile", "key_of_tuning", "pointer_type", "type_name"]

# Options that choose a binary and are worth showing, with the value that goes without saying.
_DEFAULT_OPTIONS = {"num_warps": 4, "num_stages": 3, "num_ctas": 1, "maxnreg": None, "launch_pdl": False}


@dataclass(frozen=True, slots=True)
class LaunchKey:
    kernel: str
    arguments: tuple[tuple[str, str], ...]  # name -> pointer type, scalar type, or the value of a constexpr

    def __str__(self) -> str:
        return f"{self.kernel}({', '.join(f'{name}: {value}' for name, value in self.arguments)})"

    def differences(self, other: "LaunchKey") -> list[str]:
        """What `other` has instead, one phrase for each argument in which they differ."""
        mine, theirs = dict(self.arguments), dict(other.arguments)
        names = dict.fromkeys([*mine, *theirs])
        return [
            f"{name} is {mine.get(name, _default(name))}, was {theirs.get(name, _default(name))}"
            for name in names
            if mine.get(name) != theirs.get(name)
        ]


def _default(name: str) -> str:
    return str(_DEFAULT_OPTIONS.get(name, "absent"))


def explain(key: LaunchKey, known: Iterable[LaunchKey]) -> str:
    """Why this key is new: what differs from the nearest of the known ones."""
    candidates = [key.differences(other) for other in known if other.kernel == key.kernel]
    if not candidates:
        return "this kernel was never warmed"
    fewest = min(len(phrases) for phrases in candidates)
    nearest = next(phrases for phrases in candidates if len(phrases) == fewest)
    return "; ".join(nearest) or "the same key again: another device, or an emptied cache"


def type_name(dtype: torch.dtype | str) -> str:
    """Triton's short name: torch.bfloat16 -> bf16."""
    name = str(dtype).removeprefix("torch.")
    return str(type_canonicalisation_dict.get(name, name))


def pointer_type(dtype: torch.dtype) -> str:
    return "*" + type_name(dtype)


def options_in_words(options: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """The options that differ from Triton's defaults."""
    chosen = {name: options.get(name, default) for name, default in _DEFAULT_OPTIONS.items()}
    return tuple((name, str(value)) for name, value in chosen.items() if value != _DEFAULT_OPTIONS[name])


def key_of_compile(fn: Any, compile_info: Mapping[str, Any]) -> LaunchKey:
    """The key of a compile, from what Triton hands to its hooks.

    Triton compiles integers of value 1 into the binary and marks those that 16 divides, pointers too, unless told not
    to; both show here, because both make late binaries.
    """
    constants = {path[0]: value for path, value in compile_info["constants"].items()}
    attributes = {path[0]: value for group in compile_info["configs"] for path, value in group.items()}
    arguments = []
    for index, (name, kind) in enumerate(compile_info["signature"].items()):
        if index in constants:
            words = str(constants[index])
        elif kind == "constexpr":
            words = "None"
        else:
            divisible = any("divisibility" in str(a[0]) for a in attributes.get(index, []))
            pointer = str(kind).startswith("*")
            words = str(kind) + (" unaligned" if pointer and not divisible else "")
            words += " (16 divides it)" if divisible and not pointer else ""
        arguments.append((name, words))
    options = json.loads(compile_info["specialization_data"])["options"]
    return LaunchKey(str(fn.name).split(".")[-1], (*arguments, *options_in_words(options)))


def key_of_tuning(tuner: Any, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> LaunchKey:
    """The key under which Triton's autotuner remembers a winner: the declared arguments, and every dtype."""
    given = {**dict(zip(tuner.arg_names, arguments, strict=False)), **keywords}
    chosen = [(name, str(given[name])) for name in tuner.keys if name in given]
    dtypes = [
        (name, pointer_type(value.dtype))
        for name, value in given.items()
        if name in tuner.arg_names and hasattr(value, "dtype")
    ]
    return LaunchKey(tuner.base_fn.__name__, tuple(chosen + dtypes))
