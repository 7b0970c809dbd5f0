"""Figures of a decode step's products: each beside cuBLAS and the floor, and the forms that were tried."""

from statistics import median
from typing import Any

from bench.figures_gpu import read

__all__ = ["few_tokens", "few_tokens_forms"]

LARGE_K = 4096  # kernels/linear_skinny.py
READ_BYTES_PER_S = 4.5e12  # of an H200, of which the best product reached 4.57


def few_tokens() -> list[str]:
    """A line for each product of a model, for one row and for two."""
    record = read("linear_skinny_h200")
    rate = record["copy_bytes_per_s"]
    lines = [
        "| model | product | weights | rows | floor | ours | of the floor | several launches | of the floor |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in record["rows"]:
        floor = row["bytes"] / rate * 1e6
        if row["rows"] > 1 and (row["product"] == "head" or row["K"] >= LARGE_K):  # cuBLAS's
            continue
        shares = [f"{us:.1f} | {floor / us:.0%}" for us in map(median, (row["samples_us"], row["several_samples_us"]))]
        name = f"{row['model'].removeprefix('qwen3.5-').upper()} | {row['product']}"
        lines.append(f"| {name} | {row['N']} x {row['K']} | {row['rows']} | {floor:.1f} | {' | '.join(shares)} |")
    where = f"{record['gpu']}, driver {record['driver'].split()[0]}, torch {record['torch']}, Triton {record['triton']}"
    return [*lines, "", f"{where}, a copy at {rate / 1e12:.2f} TB/s, microseconds; `{record['command']}`"]


def few_tokens_forms() -> list[str]:
    record = read("linear_skinny_forms_h200")
    floors = {model: num_bytes / READ_BYTES_PER_S * 1e6 for model, num_bytes in record["weight_bytes"].items()}
    lines = ["| all layers of a step of one token | call | 0.8B | 4B | 9B |", "|---|---:|---:|---:|---:|"]
    lines.append(_line("floor: the weights at 4.5 TB/s", "", floors))
    lines += [_line(row["form"], row["call"], row["us"]) for row in record["rows"]]
    where = f"{record['gpu']}, torch {record['torch']}, Triton {record['triton']}; {record['date']}"
    return [*lines, "", f"{where}; microseconds; attention layers replaced by Gated DeltaNet ones"]


def _line(form: str, call: Any, us: dict[str, float]) -> str:
    cells = (f"{us[model]:.0f}" if model in us else "" for model in ("0.8b", "4b", "9b"))
    return f"| {form} | {call} | {' | '.join(cells)} |"
