"""Peers in the same run: rendered from bench/results/table/peers-*.json, which bench.peers writes."""

import statistics
from collections.abc import Mapping
from typing import Any

from bench.figures_gpu import RESULTS, read

__all__ = ["peers", "peers_lines"]

Record = dict[str, Any]
SHAPES = {"4B": "peers-4b", "0.8B": "peers-0.8b"}
HEAD = (
    *("shape", "engine", "start, s", "first request: its first token, ms", "later ones, ms", "ratio", "a token, ms"),
    *("16 mixed requests, first time, ms", "later, ms"),
)
DASH = "-"


def peers() -> list[str]:
    found = {label: name for label, name in SHAPES.items() if (RESULTS / "table" / f"{name}.json").exists()}
    return peers_lines({label: read(f"table/{name}") for label, name in found.items()})


def peers_lines(records: Mapping[str, Record]) -> list[str]:
    if not records:
        return []
    rows = [(label, row) for label, record in records.items() for row in record["rows"]]
    lines = [f"| {' | '.join(HEAD)} |", f"|---|---|{'---:|' * (len(HEAD) - 2)}"]
    lines += [f"| {' | '.join((label, *_cells(row)))} |" for label, row in rows]
    versions = dict.fromkeys(f"{name} {v}" for _, row in rows for name, v in row.get("versions", {}).items())
    devices = dict.fromkeys(row["device"] for _, row in rows if "device" in row)
    told = [f"{record['date']}; `{record['command']}`" for record in records.values()]
    return [*lines, "", f"{', '.join((*devices, *versions))}; {'; '.join(told)}"]


def _cells(row: Record) -> list[str]:
    why = row.get("left_out") or row.get("not_finished")
    first, crowd = (row["tasks"].get(name, {}) for name in ("first_token", "crowd"))
    later = _later(first)
    return [
        f"{row['engine']} ({why})" if why else row["engine"],
        _number(row.get("start_s")),
        _number(first.get("first_ms")),
        _number(later),
        _number(first["first_ms"] / later if later else None),
        _number(row.get("token_ms")),
        _number(crowd.get("first_ms")),
        _number(_later(crowd)),
    ]


def _later(task: Record) -> float | None:
    return statistics.median(task["later_ms"]) if "later_ms" in task else None


def _number(value: float | None) -> str:
    return DASH if value is None else f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}"
