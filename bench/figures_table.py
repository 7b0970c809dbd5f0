"""Speed on a GPU: the table of targets, all shapes, what options cost, and the host's part.

Everything is rendered from bench/results/table, which bench.gpu_table writes; a job that is not there leaves a dash.
"""

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from bench.figures_gpu import RESULTS, circumstances, read
from bench.floors import COPY_BYTES_PER_S, FLOPS_PER_S, Floors
from bench.shapes import model_config

__all__ = ["options", "phases", "shapes", "steps", "targets"]

Record = dict[str, Any]
SHAPE = {
    "0.8b": "qwen3.5-0.8b",
    "4b": "qwen3.5-4b",
    "9b": "qwen3.5-9b",
    "27b": "qwen3.5-27b",
    "next-small": "next-small",
}
CROWD = (512, 128)  # tokens in and out
CONTEXT = 64 + 128  # of a request alone, in the middle of its answer
LENGTHS = (64, 1024, 8192, 32768)
DASH = "-"


def job(name: str) -> Record | None:
    if not (RESULTS / "table" / f"{name}.json").exists():
        return None
    found: Record = read(f"table/{name}")
    assert not found["num_late"] and not list(_errors(found)), f"no speed: requests of table/{name} failed or waited"
    return found


def _errors(found: Any) -> Iterator[str]:
    """Of all suites of a record."""
    if isinstance(found, dict):
        yield from found.get("errors", ())
        for part in found.values():
            yield from _errors(part)


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table of targets.  `figure` gives ours, `floor` the hardware's, in the same unit."""

    what: str
    vllm: float | None
    must: float
    aim: float
    figure: Callable[[], float | None]
    floor: Callable[[], float] | None
    unit: str = "ms"  # or tok/s, of which more is better

    def line(self) -> str:
        ours, vllm = self.figure(), DASH if self.vllm is None else _number(self.vllm)
        start = f"| {self.what}, {self.unit} | {vllm} | {_number(self.must)} | {_number(self.aim)} |"
        if ours is None:
            return f"{start} {DASH} | {DASH} | {DASH} | {DASH} |"
        sign = -1 if self.unit == "tok/s" else 1
        reached = (
            "aim" if sign * ours <= sign * self.aim else "must" if sign * ours <= sign * self.must else "**missed**"
        )
        if self.floor is None:
            return f"{start} {_number(ours)} | {reached} | {DASH} | {DASH} |"
        floor = self.floor()
        share = (floor / ours) ** sign
        return f"{start} {_number(ours)} | {reached} | {_number(floor)} | {100 * share:.0f} % |"


def _number(value: float) -> str:
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}"


def _floors(name: str, state_dtype: str = "float32") -> Floors:
    return Floors(model_config(SHAPE[name]), state_dtype)


def _decode(name: str, vllm: float, must: float, aim: float, label: str, state: str = "float32") -> Row:
    shape = name.removesuffix("-bf16-state")
    return Row(
        f"{label}, decode, batch 1",
        vllm,
        must,
        aim,
        lambda: _get(name, "latency", "token_ms"),
        lambda: 1e3 * _floors(shape, state).decode_s(1, CONTEXT),
    )


def _crowd(name: str, count: int, vllm: float, must: float, aim: float, label: str, state: str = "float32") -> Row:
    shape, crowd = name.removesuffix("-bf16-state"), f"{count}x512/128"
    return Row(
        f"{label}, {count} x 512 in / 128 out",
        vllm,
        must,
        aim,
        lambda: _get(name, "throughput", crowd, "output_tokens_per_s"),
        lambda: _floors(shape, state).crowd_tokens_per_s(count, *CROWD),
        "tok/s",
    )


def _first(length: int, vllm: float, must: float, aim: float) -> Row:
    return Row(
        f"4B, time to first token, {length} tokens",
        vllm,
        must,
        aim,
        lambda: _get("4b", "latency", "ttft_ms", str(length)),
        lambda: 1e3 * _floors("4b").prompt_s(length),
    )


def _ready(name: str) -> float | None:
    return _get(name, "process_to_ready_s")


NEXT = "Qwen3-Next, 12 layers, 64 experts"
ROWS = (
    _decode("4b", 3.70, 2.9, 2.3, "4B"),
    _decode("9b", 5.54, 4.9, 4.6, "9B"),
    _decode("0.8b", 2.70, 1.0, 0.6, "0.8B"),
    _first(64, 19, 10, 5),
    _first(1024, 32, 25, 16),
    _first(8192, 121, 112, 100),
    _first(32768, 559, 530, 490),
    _crowd("4b", 64, 6850, 7500, 8500, "4B"),
    _crowd("4b", 256, 9300, 9800, 10800, "4B"),
    _decode("next-small-bf16-state", 1.91, 1.4, 1.0, f"{NEXT}, bfloat16 states", "bfloat16"),
    _decode("next-small", 1.91, 1.4, 1.0, f"{NEXT}, float32 states"),
    _crowd("next-small-bf16-state", 64, 13400, 14500, 18000, f"{NEXT}, bfloat16 states", "bfloat16"),
    _crowd("next-small", 64, 13400, 14500, 18000, f"{NEXT}, float32 states"),
    Row("4B, start of the process to ready, cold", 80.8, 30, 20, lambda: _ready("4b"), None, "s"),
    Row("the same, caches warm", 31.5, 10, 6, lambda: _ready("4b-warm"), None, "s"),
)


def _get(name: str, *path: str) -> float | None:
    found: Any = job(name)
    for key in path:
        found = found.get(key) if found else None
    return found


def targets() -> list[str]:
    lines = [
        "| what | vLLM 0.25.1 | must | aim | hotstart | reached | floor | share of the floor |",
        "|---|---:|---:|---:|---:|---|---:|---:|",
        *(row.line() for row in ROWS),
    ]
    main = job("4b")
    if main is None:
        return lines
    ceilings = f"{COPY_BYTES_PER_S / 1e12:.2f} TB/s for bytes and {FLOPS_PER_S / 1e12:.0f} TFLOP/s for products"
    return [*lines, "", f"Floors at {ceilings}. {circumstances(main)}; vLLM: {read('peers_h200')['where']}"]


SHAPES = {
    "0.8b": "0.8B",
    "4b": "4B",
    "4b-bf16-state": "4B, bfloat16 states",
    "9b": "9B",
    "27b": "27B",
    "next-small": NEXT,
    "next-small-bf16-state": f"{NEXT}, bfloat16 states",
}


def shapes() -> list[str]:
    """One line for each shape; in parentheses, the share of the floor."""
    firsts = [f"first token after {length}, ms" for length in LENGTHS]
    columns = [
        "shape",
        "ready, s",
        "first / next requests, ms",
        "token, ms",
        *firsts,
        "64 x 512/128",
        "256 x 512/128, tok/s",
    ]
    lines = [f"| {' | '.join(columns)} |", f"|---|{'---:|' * (len(columns) - 1)}"]
    for name, label in SHAPES.items():
        run = job(name)
        if run is None:
            continue
        shape = name.removesuffix("-bf16-state")
        floors = _floors(shape, "float32" if shape == name else "bfloat16")
        one = run.get("first-request")
        cells = [f"{run['process_to_ready_s']:.1f}", f"{one['first_ms']:.1f} / {one['later_ms']:.1f}" if one else DASH]
        cells.append(_cell(_get(name, "latency", "token_ms"), 1e3 * floors.decode_s(1, CONTEXT)))
        for length in LENGTHS:
            cells.append(_cell(_get(name, "latency", "ttft_ms", str(length)), 1e3 * floors.prompt_s(length)))
        for count in (64, 256):
            rate = _get(name, "throughput", f"{count}x512/128", "output_tokens_per_s")
            cells.append(_cell(rate, floors.crowd_tokens_per_s(count, *CROWD), more_is_better=True))
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return lines


def _cell(figure: float | None, floor: float, *, more_is_better: bool = False) -> str:
    if figure is None:
        return DASH
    share = figure / floor if more_is_better else floor / figure
    return f"{_number(figure)} ({100 * share:.0f} %)"


def options() -> list[str]:
    run = job("4b-options")
    if run is None:
        return []
    found = run["options"]
    lines = ["| option | output tok/s, 64 x 512/128 | times as long |", "|---|---:|---:|"]
    for name, ratio in found["times_as_long"].items():
        lines.append(f"| {name} | {statistics.median(found['samples_per_s'][name]):.0f} | {ratio:.3f} |")
    return [*lines, "", circumstances(run)]


def steps() -> list[str]:
    """A crowd of 64 step by step: where its seconds go, against the floor of each part, and what the host takes."""
    lines = [
        "| shape | steps with prompts, ms | steps of answers alone, ms | one of 64 answers, ms | the host's part, ms |",
        "|---|---:|---:|---:|---:|",
    ]
    prompt, answer = CROWD
    for name in ("0.8b", "4b", "next-small"):
        run = job(name)
        if run is None or "steps" not in run:
            continue
        found, floors = run["steps"], _floors(name)
        count = found["answers"]
        longer = [ms for tokens, ms, _ in found["steps"] if tokens > count]
        alone = [(tokens, ms) for tokens, ms, _ in found["steps"] if tokens <= count]
        prompts_floor = 1e3 * count * floors.prompt_flops(prompt) / FLOPS_PER_S
        answers_floor = sum(1e3 * floors.decode_s(tokens, prompt + answer // 2) for tokens, _ in alone)
        cells = (
            f"{len(longer)}: {_cell(sum(longer), prompts_floor)}",
            f"{len(alone)}: {_cell(sum(ms for _, ms in alone), answers_floor)}",
            f"{found['answer_step_ms']:.2f}",
            f"{found['answer_host_ms']:.2f}",
        )
        lines.append(f"| {SHAPES[name]} | {' | '.join(cells)} |")
    return lines


def phases() -> list[str]:
    """Where the seconds of a start go."""
    runs = {label: run for label, name in (("cold", "4b"), ("warm", "4b-warm")) if (run := job(name)) is not None}
    if not runs:
        return []
    names = list(dict.fromkeys(name for run in runs.values() for name in run["startup"]["phases_s"]))
    lines = [f"| phase | {' | '.join(f'{label}, s' for label in runs)} |", f"|---|{'---:|' * len(runs)}"]
    before = [run["process_to_ready_s"] - run["startup"]["ready_s"] for run in runs.values()]
    lines.append(f"| process, imports, CUDA context | {' | '.join(f'{seconds:.2f}' for seconds in before)} |")
    for name in names:
        seconds = [run["startup"]["phases_s"].get(name, 0.0) for run in runs.values()]
        if max(seconds) >= 0.01:
            lines.append(f"| {name} | {' | '.join(f'{one:.2f}' for one in seconds)} |")
    ready = [f"{run['process_to_ready_s']:.2f}" for run in runs.values()]
    return [*lines, f"| all | {' | '.join(ready)} |"]
