"""Figures of attention's kernels: beside PyTorch's own on dense keys and values, and the floor."""

from typing import Any

from bench.figures_gpu import read
from bench.floors import FLOPS_PER_S

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
    at, lines = record["attention"], ["| sequences x tokens | ours | torch's | floor: products | of the floor |"]
    lines.append("|---|---:|---:|---:|---:|")
    for row in (row for row in record["rows"] if row["part"] == "prefill"):
        count, length = map(int, row["what"].split("x"))
        products = 2 * count * length * length * at["num_heads"] * at["head_dim"]  # twice, of half of the square
        lines.append(_line(row, max(1e6 * products / FLOPS_PER_S, row["floor_us"])))
    return [*lines, "", _where(record)]


_FORMS: list[tuple[str, dict[str, Any]]] = [
    ("the kernel that serves", {"form": "serves"}),
    ("roles, key heads one after the other", {"heads": "one after the other", "copies": "waited for, then told"}),
    ("key heads side by side", {"heads": "side by side"}),
    ("copies tell those who wait by themselves", {"copies": "tell themselves"}),
    ("and nobody fences", {"copies": "tell themselves, no fence"}),
    ("40 registers for a thread that copies, not 72", {"copy_registers": 40}),
    ("tiles of 32 keys", {"keys": 32}),
    ("a program a multiprocessor, which takes block after block", {"programs": "one a multiprocessor"}),
]


def forms() -> list[str]:
    """One line for each form that was tried; the first row that fits is meant."""
    record = read("attention_forms_h200")
    lines = [f"| | {' | '.join(record['shapes'])} |", "|---|" + "---:|" * len(record["shapes"])]
    for label, wanted in _FORMS:
        row = next(row for row in record["rows"] if wanted.items() <= row.items())
        lines.append(f"| {label} | {' | '.join(f'{us:.1f}' for us in row['us'])} |")
    return [*lines, "", f"{record['gpu']}, torch {record['torch']}, Triton {record['triton']}; microseconds"]


def _line(row: dict[str, Any], floor: float) -> str:
    return f"| {row['what']} | {row['us']:.1f} | {row['torch_us']:.1f} | {floor:.1f} | {floor / row['us']:.0%} |"


def _where(record: dict[str, Any]) -> str:
    at = record["attention"]
    heads = f"{at['num_heads']} heads, {at['num_kv_heads']} of keys, of {at['head_dim']}, gated, bfloat16, microseconds"
    commit = f"; commit {record['commit']}" if record.get("commit") else ""
    return (
        f"{record['gpu']}, torch {record['torch']}, Triton {record['triton']}; {heads}{commit}; `{record['command']}`"
    )
