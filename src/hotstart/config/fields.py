"""Fields: typed reading of a JSON object that remembers what was read."""

from typing import Any

from hotstart.errors import ConfigError, UnsupportedModel

__all__ = ["Fields"]


class Fields:
    """One JSON object; `where` begins every error message.  A default of None makes a field required."""

    def __init__(self, values: dict[str, Any], where: str) -> None:
        self.where = where
        self._values = values
        self._read: set[str] = set()

    def mark(self, *names: str) -> None:
        """Count fields as read that were looked at elsewhere or are not needed."""
        self._read.update(names)

    def unread(self) -> set[str]:
        return self._values.keys() - self._read

    def integer(self, name: str, default: int | None = None, minimum: int = 1) -> int:
        value = self._get(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
            raise self._wrong(name, value, f"a whole number from {minimum}")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        value = self._get(name, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < float("inf"):
            raise self._wrong(name, value, "a positive number")
        return float(value)

    def optional_number(self, name: str) -> float | None:
        return None if self._get(name, _NOTHING) in (None, _NOTHING) else self.number(name)

    def boolean(self, name: str, default: bool) -> bool:
        value = self._get(name, default)
        if not isinstance(value, bool):
            raise self._wrong(name, value, "true or false")
        return value

    def optional_string(self, name: str) -> str | None:
        value = self._get(name, _NOTHING)
        if value is None or value is _NOTHING:
            return None
        if not isinstance(value, str):
            raise self._wrong(name, value, "a string")
        return value

    def optional_choice(self, name: str, choices: tuple[str, ...]) -> str | None:
        value = self.optional_string(name)
        if value is None:
            return None
        value = value.removeprefix("torch.")
        if value not in choices:
            raise UnsupportedModel(f"{self.where}{name} is {value!r}, hotstart implements {', '.join(choices)}")
        return value

    def integers(self, name: str) -> tuple[int, ...]:
        """A whole number, a list of them, or nothing."""
        value = self._get(name, _NOTHING)
        if value is None or value is _NOTHING:
            return ()
        items = value if isinstance(value, list) else [value]
        if any(not isinstance(item, int) or isinstance(item, bool) or item < 0 for item in items):
            raise self._wrong(name, value, "whole numbers from 0")
        return tuple(items)

    def strings(self, name: str) -> tuple[str, ...] | None:
        value = self._get(name, _NOTHING)
        if value is None or value is _NOTHING:
            return None
        if not isinstance(value, list) or any(not isinstance(item, str) for item in value):
            raise self._wrong(name, value, "a list of strings")
        return tuple(value)

    def inner(self, name: str) -> "Fields | None":
        value = self._get(name, _NOTHING)
        if value is None or value is _NOTHING:
            return None
        if not isinstance(value, dict):
            raise self._wrong(name, value, "an object")
        return Fields(value, f"{self.where}{name}.")

    def divides(self, divisor: str, name: str) -> None:
        if self._values[name] % self._values[divisor]:
            raise ConfigError(
                f"{self.where}{name} is {self._values[name]}, expected a multiple of {divisor}, {self._values[divisor]}"
            )

    def _get(self, name: str, default: Any) -> Any:
        self._read.add(name)
        value = self._values.get(name, default)
        if value is None and name not in self._values:
            raise ConfigError(f"{self.where}{name} is missing; the file is incomplete, download it again")
        return value

    def _wrong(self, name: str, value: Any, expected: str) -> ConfigError:
        return ConfigError(f"{self.where}{name} is {value!r}, expected {expected}")


_NOTHING = object()
