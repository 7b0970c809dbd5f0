"""ImportWatch: a process that imports a module after it is warm makes somebody wait for what start-up forgot."""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

__all__ = ["ImportWatch", "late_import"]


class ImportWatch(MetaPathFinder):
    """Asked first for every module that is not there yet; it finds none, and remembers which were looked for."""

    def __init__(self) -> None:
        self.names: list[str] = []  # since the seal, each once: whether or not the module exists, looking takes time

    def seal(self) -> None:
        self.names.clear()
        if self not in sys.meta_path:
            sys.meta_path.insert(0, self)

    def close(self) -> None:
        if self in sys.meta_path:
            sys.meta_path.remove(self)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in self.names:
            self.names.append(fullname)
        return None


def late_import(name: str, process: str) -> dict[str, Any]:
    """The event, as it is told beside those of the engine's watch."""
    cause = f"{process} imported it after start-up, which should have"
    return {"kind": "import", "key": name, "cause": cause, "seconds": 0.0, "num_bytes": 0}
