"""Figures of what was proved where: errors of kernels, memory checkers, versions of Triton, GPUs that are not here."""

from statistics import median
from typing import Any

from bench.figures_gpu import RESULTS, read

__all__ = [
    *("check_gpus", "error_forms", "errors", "logits", "roundings", "sanitizer", "transcript", "tritons"),
    "warm_up_seconds",
]

WORST = 1.2  # times the library's error, which ours must not exceed


def errors() -> list[str]:
    record = read("gdn_errors_h200")
    lines = ["| | ours: outputs, state | flash-linear-attention |", "|---|---|---|"]
    worst = 0.0
    for row in record["rows"]:
        ours, theirs = (", ".join(f"{value * 1e3:.1f}e-3" for value in row[who]) for who in ("ours", "peer"))
        lines.append(f"| {row['case']} | {ours} | {theirs} |")
        worst = max(worst, *(a / b for a, b in zip(row["ours"], row["peer"], strict=True)))
    assert worst <= WORST, f"our error is {worst:.2f} times the library's"
    # The same inputs by the same seeds: a library that did not change need not run again.
    earlier = f", the library in the call of {record['peer_commit']}" if "peer_commit" in record else ""
    return [
        *lines,
        "",
        f"{record['gpu']}, torch {record['torch']}, Triton {record['triton']}, flash-linear-attention {record['fla']};"
        f" kernels of {record['commit']}{earlier}; `{record['command']}`",
    ]


def _in_thousandths(errors: list[float]) -> str:
    return ", ".join(f"{value * 1e3:.1f}" for value in errors)


def roundings() -> list[str]:
    """Outputs and state, in parts in a thousand."""
    record = read("gdn_roundings")
    cases = record["rows"]
    lines = [f"| rounded | {' | '.join(cases)} |", f"|---|{'---|' * len(cases)}"]
    for name in next(iter(cases.values())):
        lines.append(f"| {name} | {' | '.join(_in_thousandths(rows[name]) for rows in cases.values())} |")
    return [*lines, "", f"Outputs, state, in parts in a thousand, on a CPU; `{record['command']}`"]


def error_forms() -> list[str]:
    record = read("gdn_forms_h200")
    forms = record["forms"]
    cases, shapes = next(iter(forms.values()))["errors"], ("1x8192", "1x32768", "8x1024")
    names = [*(f"state, {case}" for case in cases), *(f"mixer, {shape.replace('x', ' x ')}" for shape in shapes)]
    lines = [f"| form | {' | '.join(names)} |", f"|---|{'---:|' * len(names)}"]
    for name, form in forms.items():
        cells = [_in_thousandths(form["errors"][case][1:]) for case in cases]
        cells += [f"{median(run[shape] for run in form['runs_us']):.0f}" for shape in shapes]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    where = f"{record['gpu']}, driver {record['driver']}, torch {record['torch']}, Triton {record['triton']}"
    return [*lines, "", f"{where}; parts in a thousand, microseconds"]


def sanitizer() -> list[str]:
    record = read("sanitizer_h200")
    lines = []
    for row in record["rows"]:
        assert row["exit_code"] == 0, f"{row['tool']} found something"
        found = row["summary"][0].partition("SUMMARY: ")[2]
        lines.append(f"- {row['tool']}: {found}; {row['tests'][0].partition(' in ')[0]}")
    return [*lines, "", f"{record['gpu']}, compute-sanitizer {record['sanitizer']}; `{record['command']}`"]


def tritons() -> list[str]:
    record = read("tritons")
    lines = ["| Triton | NumPy | the kernels' tests that need no GPU |", "|---|---|---|"]
    for row in record["rows"]:
        assert row["exit_code"] == 0, f"a test fails on Triton {row['triton']}"
        told = ", ".join(part for part in row["result"].split(", ") if "deselected" not in part)
        lines.append(f"| {row['triton']} | {row['numpy']} | {told} |")
    return [*lines, "", f"torch {record['torch']}, {record['date']}, commit {record['commit']}; `{record['command']}`"]


def check_gpus() -> list[str]:
    """A line for each architecture: all published sizes."""
    record = read("check_gpus")
    lines = [
        "| compiled for | sizes | binaries | most shared memory, KiB | late keys | cold, s | warm, s |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for gpu, cold in _by_gpu(record["cold"]).items():
        warm = _by_gpu(record["warm"])[gpu]
        late = sum(row["late"] for row in [*cold, *warm])
        most = max(row["shared_kib"] for row in cold)
        seconds = (f"{sum(row['seconds'] for row in rows):.0f}" for rows in (cold, warm))
        binaries = sum(row["binaries"] for row in cold)
        lines.append(f"| {gpu} | {len(cold)} | {binaries} | {most:.0f} | {late} | {' | '.join(seconds)} |")
    where = f"{record['cores']} cores for each line, Triton {record['triton']}, commits ({record['commit']})"
    return [*lines, "", f"{where}; `{record['command']}`"]


def _by_gpu(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    return {gpu: [row for row in rows if row["gpu"] == gpu] for gpu in dict.fromkeys(row["gpu"] for row in rows)}


def warm_up_seconds() -> list[str]:
    """Of all kernels, of which those of Gated DeltaNet are a part."""
    cold, warm = (read(f"table/{name}")["startup"]["phases_s"]["warm up kernels"] for name in ("4b", "4b-warm"))
    return [
        f"On an H200 all kernels of Qwen3.5-4B's shape are compiled, loaded and launched in {cold:.1f} s at a first"
        f" start, and in {warm:.1f} s at later ones.",
    ]


def logits() -> list[str]:
    """How far logits are from transformers', of each checkpoint and kernels, as tests/gpu/test_logits_gpu.py tells."""
    record = read("logits_h200")
    (row,) = record["rows"]
    found: dict[str, dict[str, str]] = {}
    for name, value in row["figures"].items():
        checkpoint, kernels, dtype, *_ = name.split()
        found.setdefault(f"{checkpoint} | {kernels}", {})[dtype] = value
    dtypes = "float32", "bfloat16", "float16"
    lines = [
        "| checkpoint | kernels | float32: largest difference | bfloat16: rms error over theirs | float16: the same |",
        "|---|---|---:|---:|---:|",
        *(f"| {what} | {' | '.join(values.get(dtype, '-') for dtype in dtypes)} |" for what, values in found.items()),
    ]
    where = (
        f"{record['gpu']}, torch {record['torch']}, triton {record['triton']}; {row['date']}, commit {row['commit']}"
    )
    return [
        *lines,
        "",
        f"Logits spread by 2.5; errors are against float32. {where}; `python -m bench.gpu_tests --match test_logits`",
    ]


def transcript(name: str) -> list[str]:
    """What was typed, and what came."""
    return ["```", *(RESULTS / f"{name}.txt").read_text().splitlines(), "```"]
