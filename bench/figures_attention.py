"""Figures of attention's kernels: beside PyTorch's own on dense keys and values, and the floor."""

from typing import Any

from bench.figures_gpu import read
from bench.floors import FLOPS_PER_S

__all__ = ["answers", "prompts"]


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
    at, lines = record["attention"], ["| sequences x tokens | ours | torch's | floor: products | of the floor |"]
    lines.append("|---|---:|---:|---:|---:|")
    for row in (row for row in record["rows"] if row["part"] == "prefill"):
        count, length = map(int, row["what"].split("x"))
        products = 2 * count * length * length * at["num_heads"] * at["head_dim"]  # twice, of half of the square
        lines.append(_line(row, max(1e6 * products / FLOPS_PER_S, row["floor_us"])))
    return [*lines, "", _where(record)]


def _line(row: dict[str, Any], floor: float) -> str:
    return f"| {row['what']} | {row['us']:.1f} | {row['torch_us']:.1f} | {floor:.1f} | {floor / row['us']:.0%} |"


def _where(record: dict[str, Any]) -> str:
    at = record["attention"]
    heads = f"{at['num_heads']} heads, {at['num_kv_heads']} of keys, of {at['head_dim']}, gated, bfloat16, microseconds"
    commit = f"; commit {record['commit']}" if record.get("commit") else ""
    return (
        f"{record['gpu']}, torch {record['torch']}, Triton {record['triton']}; {heads}{commit}; `{record['command']}`"
    )
