"""Tables of measured tiles: shipped in the package, kept on this machine's disk, written for others.

One JSON file for each GPU.  An entry counts only with its measurement: what was timed, when, by which command, on which
versions, of which kernel source.
"""

import dataclasses
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from hotstart import log
from hotstart.errors import ConfigError
from hotstart.kernels.target import Target

__all__ = ["Entry", "Table", "cache_folder", "cached_path", "read_cached", "read_table", "shipped", "write_table"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    kernel: str
    family: dict[str, Any]  # the shapes and types for which these tiles are best
    tiles: dict[str, Any]
    us: dict[str, float]  # measured microseconds by shape, "8x512" for 8 sequences of 512 tokens
    default_us: dict[str, float]  # of the safe default, at the same time
    date: str
    command: str
    versions: dict[str, str]
    source: str  # hash of the kernel's source

    @property
    def gain(self) -> float:
        """How many times faster than the default, over all shapes."""
        shapes = self.us.keys() & self.default_us.keys()
        product = 1.0
        for shape in shapes:
            product *= self.default_us[shape] / self.us[shape]
        return float(product ** (1 / len(shapes))) if shapes else 1.0


@dataclass(frozen=True, slots=True)
class Table:
    gpu: str
    entries: tuple[Entry, ...] = field(default=())

    def find(self, kernel: str, family: Mapping[str, Any]) -> Entry | None:
        return next((e for e in self.entries if e.kernel == kernel and e.family == family), None)

    def merged(self, newer: tuple[Entry, ...]) -> "Table":
        """With `newer` entries in the place of those of the same kernel and family."""
        replaced = [(e.kernel, e.family) for e in newer]
        kept = (e for e in self.entries if (e.kernel, e.family) not in replaced)
        entries = sorted((*kept, *newer), key=lambda e: (e.kernel, json.dumps(e.family, sort_keys=True)))
        return Table(self.gpu, tuple(entries))


def read_table(path: Any) -> Table:
    """Raises ConfigError for a file that is no table, or holds an entry without its measurement."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        gpu, rows = str(values["gpu"]), list(values["tiles"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is no table of tiles: {error}; make one with hotstart tune --export") from error
    return Table(gpu, tuple(_entry(row, f"{path}, entry {i}") for i, row in enumerate(rows)))


def _entry(row: Any, where: str) -> Entry:
    fields = {f.name: f.type for f in dataclasses.fields(Entry)}
    missing = sorted(name for name in fields if not isinstance(row, dict) or not row.get(name))
    if missing:
        raise ConfigError(f"{where} has no {', '.join(missing)}: it does not count; measure it with hotstart tune")
    unknown = sorted(row.keys() - fields)
    times = [*row["us"].values(), *row["default_us"].values()]
    if unknown or not all(isinstance(us, int | float) and us > 0 for us in times):
        raise ConfigError(f"{where}: {'unknown: ' + ', '.join(unknown) if unknown else 'a time is no positive number'}")
    return Entry(**row)


def write_table(path: Path, table: Table) -> None:
    """In one move, so that no reader sees half of it."""
    rows = [dataclasses.asdict(entry) for entry in table.entries]
    text = json.dumps({"gpu": table.gpu, "tiles": rows}, indent=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
        file.write(text + "\n")
    Path(file.name).chmod(0o644)
    Path(file.name).replace(path)


def shipped(target: Target) -> Table:
    """What the package brings for this GPU; an empty table for one that nobody measured."""
    path = resources.files("hotstart.kernels") / "tables" / f"{_slug(target.gpu)}.json"
    return read_table(path) if path.is_file() else Table(target.gpu)


def cache_folder() -> Path:
    """$HOTSTART_CACHE, or hotstart in the user's folder of caches."""
    chosen = os.environ.get("HOTSTART_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hotstart"


def cached_path(target: Target) -> Path:
    """A file for each GPU, driver and Triton; within it, an entry holds for one source of its kernel."""
    key = "|".join([target.gpu, target.driver, target.versions["triton"]])
    return cache_folder() / "tiles" / f"{_slug(target.gpu)}-{hashlib.sha256(key.encode()).hexdigest()[:12]}.json"


def read_cached(target: Target) -> Table:
    """What this machine measured before; a file that cannot be read is as good as none, and is told."""
    path = cached_path(target)
    if not path.is_file():
        return Table(target.gpu)
    try:
        return read_table(path)
    except ConfigError as error:
        log.warning("tile cache not read", cause=str(error))
        return Table(target.gpu)


def _slug(gpu: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")
