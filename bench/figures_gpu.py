"""Figures of the engine on a GPU beside the promise and speed: tests, what a plan foretold, what loading takes."""

import json
from pathlib import Path
from typing import Any

__all__ = ["foretold", "gpu_tests", "load", "plan_check", "read", "weights_peak"]

RESULTS = Path(__file__).parent / "results"
MIB, GIB = 2**20, 2**30
Record = dict[str, Any]


def read(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text())


def circumstances(run: Record) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
    commit = f"; commit {run['commit']}" if run.get("commit") else ""
    return f"{run['device']}, CUDA {run['cuda']}, {versions}; {run['date']}{commit}; `{run['command']}`"


def plan_check() -> list[str]:
    """Lines of the plan as start-up found them, beside what was foretold for the same command."""
    rows = read("plan_check")["rows"]
    inexact = ("process", "step peak", "graphs")
    lines = [
        "| model | card | process, MiB | step peak, MiB | graphs, MiB | slots | pages | pages off by |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        size = row["options"].get("device_memory_bytes", "whole")
        model = row["model"] + ("" if row["role"] == "fit" else ", not fitted")
        at = {line["name"]: line for line in row["lines"]}
        pairs = [f"{at[name]['foretold'] / MIB:.1f} / {at[name]['found'] / MIB:.1f}" for name in inexact]
        pairs += [f"{row[name]['foretold']} / {row[name]['found']}" for name in ("slots", "pages")]
        off = round(100 * (row["pages"]["foretold"] / row["pages"]["found"] - 1), 2) + 0.0  # no "-0.00"
        lines.append(f"| {model} | {size} | {' | '.join(pairs)} | {off:+.2f} % |")
    sized = (*inexact, "cache pages")
    others = {line["name"]: 0 for row in rows for line in row["lines"] if line["name"] not in sized}
    for row in rows:
        for line in row["lines"]:
            if line["name"] in others:
                others[line["name"]] = max(others[line["name"]], abs(line["foretold"] - line["found"]))
    told = ", ".join(f"{name} {num_bytes}" for name, num_bytes in others.items())
    facts = rows[0]["facts"]
    commits = ", ".join(sorted({row["facts"]["commit"] for row in rows}))
    return [
        *lines,
        "",
        f"Foretold / found. Bytes by which the other lines were off: {told}.",
        f"{facts['device']}; {facts['date']}; commit {commits}; next-small: Qwen3-Next with 12 layers of 64 experts",
    ]


def weights_peak() -> list[str]:
    """What loading took beside the weights."""
    record = read("weights_peak_h200")
    lines = [
        "| checkpoint, bfloat16 | loaded as | files | weights, GiB | beside them: tensors, MiB | by the driver, MiB |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for row in record["rows"]:
        beside = f"{row['beside_torch_bytes'] / MIB:.0f} | {row['beside_driver_bytes'] / MIB:.0f}"
        lines.append(
            f"| {row['shape']}, {row['fewer']['num_hidden_layers']} layers, {row['name']} | {row['dtype']} |"
            f" {row['num_shards']} | {row['weights_bytes'] / GIB:.2f} | {beside} |"
        )
    where = f"{record['gpu']}, torch {record['torch']}; {record['date']}; `{record['command']}`"
    return [*lines, "", where]


def foretold() -> list[str]:
    """`hotstart plan qwen3.5-9b --gpu rtx5090`, as it answers."""
    from hotstart.config.engine import EngineConfig
    from hotstart.config.published import published_config
    from hotstart.engine.predict import predict
    from hotstart.kernels.gpus import parse_gpu

    name = "qwen3.5-9b"
    found = predict(EngineConfig(model=name), published_config(name), name, parse_gpu("rtx5090"))
    return ["```", *found.explain().splitlines(), "```"]


def gpu_tests() -> list[str]:
    """Of `bench.gpu_tests`: what passed, at which commit; the first is the latest, and has most files."""
    record = read("gpu_tests")
    told = []
    for commit in dict.fromkeys(row["commit"] for row in record["rows"]):
        rows = [row for row in record["rows"] if row["commit"] == commit]
        notes = [
            f"{sum(len(row.get(key, [])) for row in rows)} {words}"
            for key, words in _NOT_RUN.items()
            if _any(rows, key)
        ]
        passed = sum(row.get("tests", 0) - len(row.get("failed", [])) - len(row.get("skipped", [])) for row in rows)
        line = f"{passed} passed at {commit}" + (f" ({', '.join(notes)})" if notes else "")
        if missed := [name for row in rows for name in row.get("failed", [])]:
            line += f", **not passed: {', '.join(missed)}**"
        names = ", ".join(f"`{row['what'].rpartition('/')[2]}`" for row in rows)
        told.append(line if not told else f"{line}, those of {names}")
    where = f"driver {record['driver']}, torch {record['torch']}, Triton {record['triton']}"
    return [
        f"On an {record['gpu']} ({where}), {record['rows'][0]['date']}: {'; '.join(told)}. `{record['command']}`, "
        "[each file](../bench/results/gpu_tests.json)."
    ]


_NOT_RUN = {"skipped": "skipped, of a library that is not installed there", "cut_off": "had no time"}


def _any(rows: list[dict[str, Any]], key: str) -> bool:
    return any(row.get(key) for row in rows)


def load() -> list[str]:
    """Weights from a file, beside what reading it and copying it take alone."""
    record = read("load_h200")
    size, rates = record["bytes"], {**record["read_bytes_per_s"], "copied": record["copy_bytes_per_s"]}
    lines = ["| what | seconds | GB/s |", "|---|---:|---:|"]
    for start in record["starts"][1:]:
        seconds = start["phases_s"]["load weights"]
        where = "the page cache" if start["is_cached"] else "the disk"
        lines.append(f"| load weights, from {where} | {seconds:.2f} | {size / seconds / 1e9:.1f} |")
    names = {
        "1 threads": "read the file from the page cache, one thread",
        "8 threads": "the same, eight threads",
        "8 threads, from the disk": "read the file from the disk, eight threads",
        "copied": "copy as many bytes from pinned memory to the device",
    }
    lines += [f"| {what} | {size / rates[key]:.2f} | {rates[key] / 1e9:.1f} |" for key, what in names.items()]
    where = f"{record['gpu']}, {size / 1e9:.2f} GB of weights; {record['date']}; commit {record['commit']}"
    return [*lines, "", f"{where}; `{record['command']}`"]
