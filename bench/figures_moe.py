"""Figures of the mixture of experts."""

from statistics import median

from bench.figures_gdn import circumstances
from bench.figures_gpu import read

__all__ = ["experts"]


def experts() -> list[str]:
    record = read("moe_h200")
    lines = [
        "| experts | tokens | experts read | us | floor, us | share of the floor | torch._grouped_mm, us |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in record["rows"]:
        ours, theirs = median(row["samples_us"]), median(row["torch_samples_us"])
        floor = 1e6 * max(row["bytes"] / record["copy_bytes_per_s"], row["flops"] / record["flops_per_s"])
        lines.append(
            f"| {row['shape']} | {row['tokens']} | {row['experts_read']:.0f} | {ours:.1f} | {floor:.1f} |"
            f" {floor / ours:.0%} | {theirs:.0f} |"
        )
    return [*lines, "", circumstances(record)]
