"""Figures of a decode step's products: each beside cuBLAS and the floor, and the forms that were tried."""

from statistics import median
from typing import Any

from bench.figures_gpu import read

__all__ = ["few_tokens", "few_tokens_forms"]

READ_BYTES_PER_S = 4.5e12  # of an H200, of which the best product reached 4.57


def few_tokens() -> list[str]:
    """A line for each product of a model: shares of the floor, of ours and of several launches, by rows."""
    record = read("linear_skinny_h200")
    rate = record["copy_bytes_per_s"]
    counts = sorted({row["rows"] for row in record["rows"]})
    heads = [f"{count} row{'s' * (count > 1)}" for count in counts]
    lines = [
        f"| model | product | weights | floor, us | {' | '.join(heads)} |",
        f"|---|---|---:|---:|{'---:|' * len(counts)}",
    ]
    for first in (row for row in record["rows"] if row["rows"] == counts[0]):
        same = [row for row in record["rows"] if all(row[key] == first[key] for key in ("model", "product"))]
        floor = first["bytes"] / rate * 1e6
        cells = [_shares(row, floor) for row in sorted(same, key=lambda row: row["rows"])]
        name = f"{first['model'].removeprefix('qwen3.5-').upper()} | {first['product']}"
        lines.append(f"| {name} | {first['N']} x {first['K']} | {floor:.1f} | {' | '.join(cells)} |")
    where = f"{record['gpu']}, driver {record['driver'].split()[0]}, torch {record['torch']}, Triton {record['triton']}"
    return [
        *lines,
        "",
        f"{where}; commit {record['commit']}; a copy at {rate / 1e12:.2f} TB/s; `{record['command']}`",
    ]


def _shares(row: dict[str, Any], floor: float) -> str:
    """Ours / several launches; in bold what the engine takes."""
    names = {"ours": "samples_us", "several": "several_samples_us"}
    shares = {who: f"{floor / median(row[key]):.0%}" for who, key in names.items()}
    shares[row["taken"]] = f"**{shares[row['taken']]}**"
    return f"{shares['ours']} / {shares['several']}"


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
