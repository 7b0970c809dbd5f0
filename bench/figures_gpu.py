"""Figures of the engine on a GPU: the promise, speed, what a plan foretold, and the failure that others have."""

import json
import statistics
from pathlib import Path
from typing import Any

__all__ = [
    *("first_requests", "foretold", "gpu_tests", "load", "picture", "plan_check"),
    *("promise", "read", "usable_tokens", "weights_peak"),
]

RESULTS = Path(__file__).parent / "results"
MIB, GIB = 2**20, 2**30
Record = dict[str, Any]


def read(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text())


def circumstances(run: Record) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
    commit = f"; commit {run['commit']}" if run.get("commit") else ""
    return f"{run['device']}, CUDA {run['cuda']}, {versions}; {run['date']}{commit}; `{run['command']}`"


def _target(met: bool) -> str:
    return "met:" if met else "**missed:**"


def promise() -> list[str]:
    tight, options, peers = read("gpu_tight"), read("gpu_options"), read("peers_h200")
    vllm = peers["vllm"]
    record = read("gpu_starts")
    starts = [row["ratio"] for row in record["rows"]]
    traffic, burst, beside, lengths = (tight[name] for name in ("traffic", "burst", "neighbour", "lengths"))
    late, driver = tight["num_late"] + options["num_late"], tight["driver_growth_bytes"] / MIB
    sealed = not tight["reserved_growth_bytes"] and driver <= 32
    grown = f"torch {tight['reserved_growth_bytes']} bytes, driver {driver:.1f} MiB"
    served = not burst["failed"] and not burst["num_late"]
    median, p95 = lengths["median"], lengths["p95"]
    ready = read("table/4b")["process_to_ready_s"]
    warm = read("table/4b-warm")["process_to_ready_s"]
    slow = [read(name)["process_to_ready_s"] for name in ("gpu_cold", "gpu_warm")]
    rows = [
        (
            f"growth after ready: {traffic['requests']} random requests, then 1024 at once of 8 + 8 tokens",
            vllm["growth"],
            "torch 0 bytes, driver at most 32 MiB",
            f"{_target(sealed)} {grown}",
        ),
        (
            "that burst with 97.5 % of the card in use, under `--strict`",
            vllm["tight_burst"],
            "served, no event",
            f"{_target(served)} {burst['failed']} failed, {burst['num_late']} events",
        ),
        (
            f"the burst again after another process took {beside['taken_bytes'] / GIB:.0f} GiB",
            "-",
            "no request fails",
            f"{_target(not beside['failed'])} {beside['failed']} failed",
        ),
        (
            "late compiles, tunings, loads in all of this, and in another process in "
            f"{options['traffic']['requests']} random requests with every option of sampling",
            vllm["late"],
            "0",
            f"{_target(not late)} {late}",
        ),
        (
            f"first request over the median of the next 20 of its length, {len(starts)} fresh starts: median (worst)",
            vllm["first_over_later"],
            "1.05",
            f"{_target(statistics.median(starts) <= 1.05)} {statistics.median(starts):.3f} ({max(starts):.3f})",
        ),
        (
            f"first over second request of a length never seen, {len(lengths['samples_ms'])} lengths: median / p95",
            vllm["new_length"],
            "1.05 / 1.15",
            f"{_target(median <= 1.05 and p95 <= 1.15)} {median:.3f} / {p95:.3f}",
        ),
        _started("caches cold / warm, up to 256 sequences", ready, warm, vllm["ready"]),
        _started("the same, up to 1024, without Python's bytecode on disk", *slow, "-"),
        _usable_row(),
    ]
    lines = ["| what | vLLM 0.25.1 | must | hotstart |", "|---|---|---|---|"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    fresh = f"fresh starts: `{record['command']}`, commit {record['rows'][0]['commit']}"
    others = f"options: `{options['command']}`, commit {options['commit']}"
    return [*lines, "", f"{circumstances(tight)}; {others}; {fresh}; vLLM: {peers['where']}"]


def _started(how: str, cold: float, warm: float, theirs: str) -> tuple[str, str, str, str]:
    reached = f"{_target(cold <= 40 and warm <= 12)} {cold:.1f} / {warm:.1f} s"
    return f"start of the process to ready, {how}", theirs, "40 / 12 s", reached


def first_requests() -> list[str]:
    record = read("first_request")
    lines = [
        "| prefill | warm-up | ready | first request | later ones | late compiles | late tunings | out of memory |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in record["rows"]:
        name, chunk = row["case"].split("-")
        who = ("ours" if name == "triton" else name) + f", chunks of {chunk}"
        late = [_late(row, kind) for kind in ("compile", "tuning")]
        compiles, tunings = (f"{count}, {seconds:.1f} s" if count else "0" for count, seconds in late)
        failed = row["burst_failed"] + len(row["first_errors"])
        lines.append(
            f"| {who} | {'on' if row['warm'] else '**off**'} | {row['ready_s']:.1f} s | {row['first_ms'] / 1e3:.2f} s |"
            f" {row['later_ms'] / 1e3:.2f} s | {compiles} | {tunings} | {failed} of 2069 |"
        )
    facts = record["rows"][0]["facts"]
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    left = record["left_bytes"] / GIB
    return [
        *lines,
        "",
        f"{facts['device']} with {left:.1f} GiB left, {versions}; {facts['date']}; `python -m bench.first_request`",
    ]


def _late(row: Record, kind: str) -> tuple[int, float]:
    mine = [event for event in row["late"] if event["kind"] == kind]
    return sum(event["count"] for event in mine), sum(event["seconds"] for event in mine)


def plan_check() -> list[str]:
    """Lines of the plan as start-up found them, against what was foretold for the same command."""
    lines = ["| model | card | line | foretold, MiB | found, MiB | off by |", "|---|---|---|---:|---:|---:|"]
    for row in read("plan_check")["rows"]:
        size = row["options"].get("device_memory_bytes", "whole")
        model = f"{row['model']} ({'fitted' if row['role'] == 'fit' else 'not fitted'})"
        for line in row["lines"]:
            mine, its = line["foretold"], line["found"]
            off = f"{(mine - its) / MIB:+.1f} MiB, {100 * (mine / its - 1):+.1f} %" if mine != its else "0"
            lines.append(f"| {model} | {size} | {line['name']} | {mine / MIB:.1f} | {its / MIB:.1f} | {off} |")
        pages, slots = row["pages"], row["slots"]
        lines.append(
            f"| {model} | {size} | **pages, slots** | {pages['foretold']}, {slots['foretold']} |"
            f" {pages['found']}, {slots['found']} | {100 * (pages['foretold'] / pages['found'] - 1):+.2f} % |"
        )
    facts = read("plan_check")["rows"][0]["facts"]
    return [*lines, "", f"{facts['device']}; {facts['date']}; next-small: Qwen3-Next with 12 layers of 64 experts"]


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


def _usable() -> dict[str, tuple[int, dict[str, tuple[int, int, int, int]]]]:
    """Bytes of a card's caches, and of whom: bytes of 256 states, of a piece of the rest, its tokens, pieces."""
    block, whole = read("peers_h200")["vllm"]["block"], read("gpu_cold")["plan"]
    (small,) = (row["plan"] for row in read("first_request")["rows"] if row["case"] == "triton-64" and row["warm"])
    page, slot, size = whole["page_bytes"], whole["slot_bytes"], whole["page_size"]
    budgets = {
        "32 GiB left": small["state slots"] + small["cache pages"],
        "whole": whole["num_pages"] * page + whole["num_slots"] * slot,
    }
    found = {}
    for card, budget in budgets.items():
        cuts = {
            "hotstart": (256 * slot, page, size),
            "vLLM 0.25.1": (256 * block["state_blocks"] * block["bytes"], block["bytes"], block["tokens"]),
        }
        found[card] = budget, {who: (*cut, (budget - cut[0]) // cut[1]) for who, cut in cuts.items()}
    return found


def usable_tokens() -> list[str]:
    """Of equally long sequences, 256 at once, in the bytes that a measured plan gives to pages and slots."""
    lines = [
        "| card | for caches | who | 256 states | what is left, in pieces | tokens of each sequence | usable tokens |",
        "|---|---:|---|---:|---|---:|---:|",
    ]
    for card, (budget, whose) in _usable().items():
        for who, (states, piece, tokens, count) in whose.items():
            each = count // 256 * tokens
            lines.append(
                f"| {card} | {budget / GIB:.2f} GiB | {who} | {states / GIB:.2f} GiB |"
                f" {count} of {piece / MIB:.1f} MiB, {tokens} tokens | {each} | {256 * each} |"
            )
    return lines


def _usable_row() -> tuple[str, str, str, str]:
    """Of the promise's table; the sums stand in docs/MEMORY.md."""
    tokens = {card: [256 * (c // 256 * t) for _, _, t, c in whose.values()] for card, (_, whose) in _usable().items()}
    ours, theirs = (" / ".join(f"{pair[i]}" for pair in tokens.values()) for i in (0, 1))
    more = all(pair[0] > pair[1] for pair in tokens.values())
    what = f"usable tokens of 256 sequences from the same budget, {' / '.join(tokens)} ([the sums](MEMORY.md))"
    return what, f"{theirs}, blocks of 528", "more", f"{_target(more)} {ours}"


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
    """Of `bench.gpu_tests`: what passed, at which commit."""
    record = read("gpu_tests")
    told = []
    for commit in dict.fromkeys(row["commit"] for row in record["rows"]):
        rows = [row for row in record["rows"] if row["commit"] == commit]
        ran = [row for row in rows if "tests" in row]
        missed = [name for row in rows for name in row.get("failed", []) + row.get("cut_off", [])]
        skipped = sum(len(row["skipped"]) for row in ran)
        passed = f"{sum(row['tests'] - len(row['failed']) for row in ran) - skipped} passed at {commit}"
        passed += f" ({skipped} skipped, of a library that is not installed there)" if skipped else ""
        passed += f", **not passed: {', '.join(missed)}**" if missed else ""
        names = dict.fromkeys(row["what"].partition("::")[0].rpartition("/")[2] for row in rows)
        told.append(passed if not told else f"{passed}, those of {' and '.join(f'`{name}`' for name in names)}")
    where = f"driver {record['driver']}, torch {record['torch']}, Triton {record['triton']}"
    return [
        f"On an {record['gpu']} ({where}), {record['rows'][0]['date']}: {'; '.join(told)}. `{record['command']}`, "
        "[each file](../bench/results/gpu_tests.json)."
    ]


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


# One picture for light and dark pages: it follows the reader's system.
_STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1f2328; }
.small { font-size: 11px; fill: #59636e; }
.off { fill: #d1242f; }
.on { fill: #1a7f37; }
.axis { stroke: #d1d9e0; }
@media (prefers-color-scheme: dark) {
  text { fill: #f0f6fc; }
  .small { fill: #9198a1; }
  .off { fill: #f85149; }
  .on { fill: #3fb950; }
  .axis { stroke: #3d444d; }
}
"""
_LEFT, _WIDTH, _ROW = 150, 760, 58


def picture() -> str:
    """Seconds of the first request, without the warm-up and with it."""
    record = read("first_request")
    rows = [row for row in record["rows"] if "first_ms" in row]
    cases = list(dict.fromkeys(row["case"] for row in rows))
    longest = max(row["first_ms"] for row in rows)
    height = 62 + _ROW * len(cases)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img">',
        "<title>Seconds of the first request after ready, without the warm-up and with it</title>",
        f"<style>{_STYLE}</style>",
        '<text x="0" y="18">Seconds of the first request after ready</text>',
        '<text x="0" y="36" class="small">Qwen3.5-4B shape, 1024 tokens in, 32 out, '
        f"{record['left_bytes'] / GIB:.0f} GiB of an H200 left; then 2048 requests of 8 tokens</text>",
        f'<line x1="{_LEFT}" x2="{_LEFT}" y1="48" y2="{height - 8}" class="axis"/>',
    ]
    for i, case in enumerate(cases):
        top = 52 + _ROW * i
        name, chunk = case.split("-")
        parts.append(f'<text x="0" y="{top + 18}">{"our kernels" if name == "triton" else name}</text>')
        parts.append(f'<text x="0" y="{top + 34}" class="small">chunks of {chunk}</text>')
        for row in rows:
            if row["case"] == case:
                parts += _bar(row, top + 22 * row["warm"], longest)
    return "\n".join([*parts, "</svg>", ""])


def _bar(row: Record, top: int, longest: float) -> list[str]:
    width = max(2, round(200 * row["first_ms"] / longest))
    failed = row["burst_failed"] + len(row["first_errors"])
    compiles, tunings = _late(row, "compile")[0], _late(row, "tuning")[0]
    words = f"{row['first_ms'] / 1e3:.2f} s, warm-up {'on' if row['warm'] else 'off'}: "
    words += f"{compiles} compiles, {tunings} tunings" if row["num_late"] else "nothing late"
    words += f"; {failed} out of memory" if failed else "; none failed"
    kind = "on" if row["warm"] else "off"
    return [
        f'<rect x="{_LEFT}" y="{top + 4}" width="{width}" height="16" rx="2" class="{kind}"/>',
        f'<text x="{_LEFT + width + 8}" y="{top + 17}" class="small">{words}</text>',
    ]
