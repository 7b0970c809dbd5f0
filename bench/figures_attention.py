"""Figures of attention's kernels: beside PyTorch's own on dense keys and values, and the floor."""

import statistics
from typing import Any

from bench.figures_gpu import read

__all__ = ["answers", "forms", "prompts"]


def answers() -> list[str]:
    """One token for each sequence, to a context in pages."""
    record = read("attention_h200")
    lines = [
        "| sequences x context | ours | torch's, dense | floor: keys and values | of the floor |",
        "|---|---:|---:|---:|---:|",
    ]
    lines += [_line(row, row["floor_us"]) for row in record["rows"] if row["part"] == "decode"]
    return [*lines, "", _where(record)]


def prompts() -> list[str]:
    record = read("attention_h200")
    lines = ["| sequences x tokens | ours | torch's | floor | of the floor |", "|---|---:|---:|---:|---:|"]
    lines += [_line(row, row["floor_us"]) for row in record["rows"] if row["part"] == "prefill"]
    return [*lines, "", _where(record)]


_FORMS = {
    "triton": "the Triton form, values a tile behind the keys",
    "serves": "roles, as they serve",
    "half": "half of each query in registers",
    "one": "one warp copies keys and values",
    "stages": "two stages of keys and three of values, not three and two",
    "turns": "groups take turns at the tensor cores",
    "heads": "key heads one after the other, not side by side",
    "threads": "four warps copy row by row, a quarter of each query in registers",
}


def forms() -> list[str]:
    record = read("attention_forms_h200")
    lines = [f"| | {' | '.join(record['shapes'])} |", "|---|" + "---:|" * len(record["shapes"])]
    for form, label in _FORMS.items():
        lines.append(f"| {label} | {' | '.join(f'{statistics.median(us):.1f}' for us in record['us'][form])} |")
    where = f"{record['gpu']}, torch {record['torch']}, Triton {record['triton']}; bfloat16, microseconds"
    return [*lines, "", f"{where}; commit {record['commit']}"]


def _line(row: dict[str, Any], floor: float) -> str:
    return f"| {row['what']} | {row['us']:.1f} | {row['torch_us']:.1f} | {floor:.1f} | {floor / row['us']:.0%} |"


def _where(record: dict[str, Any]) -> str:
    at = record["attention"]
    heads = f"{at['num_heads']} heads, {at['num_kv_heads']} of keys, of {at['head_dim']}, gated, bfloat16, microseconds"
    commit = f"; commit {record['commit']}" if record.get("commit") else ""
    return (
        f"{record['gpu']}, torch {record['torch']}, Triton {record['triton']}; {heads}{commit}; `{record['command']}`"
    )
