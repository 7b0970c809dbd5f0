"""Figures of the prefill kernels: beside other libraries, kernel by kernel, and at three chunk lengths."""

from statistics import median
from typing import Any

from bench.figures_gpu import read

__all__ = ["binaries", "chunk_lengths", "kernels", "prefill", "short_prompts"]

Row = dict[str, Any]
LENGTHS = (16, 32, 64)


def circumstances(record: Row) -> str:
    peers = f", flash-linear-attention {record['fla']}" if "fla" in record else ""
    return (
        f"{record['gpu']}, driver {record['driver']}, torch {record['torch']}, Triton {record['triton']}{peers}; "
        f"kernels of {record['commit']}; `{record['command']}`"
    )


def _name(row: Row) -> str:
    return f"{row['sequences']} x {row['tokens']}"


def _us(value: float) -> str:
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"


def prefill() -> list[str]:
    """The rule and the mixer of each shape in one line."""
    record, earlier = read("gdn_prefill_h200"), read("gdn_prefill_flashinfer")["microseconds"]
    rows: dict[str, dict[str, Row]] = {}
    for row in record["rows"]:
        rows.setdefault(_name(row), {})[row["scope"]] = row
    lines = [
        "| sequences x tokens | rule alone | flash-linear-attention | ratio | FlashInfer, earlier |"
        " whole mixer, conv to gated norm | floor by bytes | host, mixer |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, scopes in rows.items():
        rule, mixer = scopes["rule"], scopes["mixer"]
        ours, theirs = median(rule["samples_us"]), median(rule["peer_samples_us"])
        floor = mixer["bytes"] / record["copy_bytes_per_s"] * 1e6
        lines.append(
            f"| {name} | {_us(ours)} | {_us(theirs)} | {theirs / ours:.2f} | {earlier[name.replace(' ', '')]:g} |"
            f" {_us(median(mixer['samples_us']))} | {_us(floor)} | {_us(mixer['host_us'])} |"
        )
    long = rows["1 x 32768"]["rule"]
    return [
        *lines,
        "",
        f"Peak memory of a call of the rule at 1 x 32768: {long['peak_bytes'] / 2**20:.0f} MiB"
        f" (flash-linear-attention {long['peer_peak_bytes'] / 2**20:.0f},"
        f" FlashInfer {read('gdn_prefill_flashinfer')['peak_mib_1x32768']}).",
        "",
        circumstances(record),
    ]


def kernels() -> list[str]:
    record = read("gdn_prefill_kernels_h200")
    lines = ["| | conv | prep | scan | norm |", "|---|---:|---:|---:|---:|"]
    for name, times in record["rows"].items():
        before, now = times["earlier"], times["now"]
        before = {**before, "prep": before["solve"] + before["apply"]}
        for label, row in ((f"{name.replace('x', ' x ')}, before", before), ("now", now)):
            lines.append(f"| {label} | {' | '.join(_us(row[key]) for key in ('conv', 'prep', 'scan', 'norm'))} |")
    counters = {key: value for key, value in record["counters_8x1024"].items() if key != "how"}
    for label in ("dram", "l2", "issue"):
        cells = " | ".join(f"{counters[key][f'{label}_percent']} %" for key in ("conv", "prep", "scan", "norm"))
        lines.append(f"| {'issue slots' if label == 'issue' else label.upper()} in use at 8 x 1024 | {cells} |")
    return lines


def chunk_lengths() -> list[str]:
    record = read("gdn_chunk_lengths_h200")
    found = {(_name(row), row["chunk_length"]): median(row["samples_us"]) for row in record["rows"]}
    lines = ["| sequences x tokens | chunk 16 | chunk 32 | chunk 64 |", "|---|---:|---:|---:|"]
    for name in dict.fromkeys(name for name, _ in found):
        lines.append(f"| {name} | {' | '.join(_us(found[name, length]) for length in LENGTHS)} |")
    return [*lines, "", circumstances(record)]


def short_prompts() -> list[str]:
    """What WARMUP.md says of it, in one sentence."""
    rows = read("gdn_chunk_lengths_h200")["rows"]
    found = {(_name(row), row["chunk_length"]): row for row in rows}

    def us(name: str, length: int) -> str:
        return _us(median(found[name, length]["samples_us"]))

    one, many, full = "1 x 16", "64 x 16", "64 x 64"
    return [
        f"A prompt of 16 tokens takes {us(one, 64)} us a layer with chunks of 64 and {us(one, 16)} with chunks of 16,",
        f"under {found[one, 64]['host_us']:.0f} us of the host's time either way; 64 such prompts at once take"
        f" {us(many, 64)} and {us(many, 16)} us,",
        f"64 prompts of 64 tokens {us(full, 64)} and {us(full, 16)}.",
    ]


def binaries() -> list[str]:
    record = read("gdn_binaries")
    found = {(row["target"], row["chunk_length"]): row for row in record["rows"]}

    def cells(key: str, form: str, scale: float = 1.0) -> list[str]:
        return [
            " / ".join(form.format(found[target, length][key] / scale) for target in ("sm_90", "sm_120"))
            for length in LENGTHS
        ]

    def total(key: str, form: str) -> str:
        sums = (sum(found[target, length][key] for length in LENGTHS) for target in ("sm_90", "sm_120"))
        return " / ".join(map(form.format, sums))

    rows = [
        ("binaries on sm_90 / sm_120", [*cells("binaries", "{:.0f}"), total("binaries", "{:.0f}")]),
        ("seconds to compile them", [*cells("compile_s", "{:.1f}"), total("compile_s", "{:.1f}")]),
        ("most shared memory of a binary, KiB", [*cells("shared_bytes", "{:.0f}", 1024), ""]),
    ]
    lines = ["| | chunk 16 | chunk 32 | chunk 64 | all three |", "|---|---|---|---|---|"]
    lines += [f"| {label} | {' | '.join(values)} |" for label, values in rows]
    return [*lines, "", f"CPU time without the assembler's, Triton {record['triton']}; `{record['command']}`"]
