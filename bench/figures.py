"""Write the figures of bench/results into docs/PERFORMANCE.md and the READMEs, or check that they tell them truly.

python -m bench.figures [--check]
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "PERFORMANCE.md"
RESULTS = ROOT / "bench" / "results"
MODELS = {"tiny": "shipped checkpoint", "0.8b": "Qwen3.5-0.8B shape, random weights"}


def circumstances(record: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items() if version)
    return (
        f"{record['cpu']}, {record['cores']} cores, {record['threads']} threads, {record['dtype']}, "
        f"{record['scheduling']} scheduling; {versions}; "
        f"{record['date']}; `{record['command']}`"
    )


def against_transformers(record: dict[str, Any]) -> list[str]:
    lines = ["| model | what | hotstart, ms | transformers, ms | ratio | target |", "|---|---|---:|---:|---:|---:|"]
    for row in record["rows"]:
        batches = f" (static batches {row['static_batches']})" if "static_batches" in row else ""
        lines.append(
            f"| {MODELS[row['model']]} | {row['what']}{batches} | {row['hotstart_ms']:.2f} |"
            f" {row['transformers_ms']:.2f} | {row['ratio']:.2f} | {_target(row['ratio'] >= row['target'])}"
            f" {row['target']:g} |"
        )
    return [*lines, "", circumstances(record)]


def first_request(record: dict[str, Any]) -> list[str]:
    lines = ["| model | what | first, ms | later, ms | ratio | target |", "|---|---|---:|---:|---:|---:|"]
    for row in record["rows"]:
        lines.append(
            f"| {MODELS[row['model']]} | {row['what']} | {row['first_ms']:.2f} | {row['later_ms']:.2f} |"
            f" {row['ratio']:.2f} | {_target(row['ratio'] <= row['target'])} {row['target']:g} |"
        )
    return [*lines, "", circumstances(record)]


def gpu_engine(record: dict[str, Any]) -> list[str]:
    (row,) = record["rows"]
    one, prompts, crowds = row["first"], row["ttft"], row["crowd"]
    clean = not row["late_events"] and not row["reserved_growth_bytes"]
    events = f"{len(row['late_events'])} events, {row['reserved_growth_bytes']} bytes"
    lines = ["| what | figure |", "|---|---:|"]
    lines.append(f"| start to ready, imports not counted | {row['ready_s']:.1f} s |")
    lines.append(f"| first request (1024 in, 32 out) | {one['first_ms']:.1f} ms |")
    lines.append(f"| median of the next 20 | {one['later_ms']:.1f} ms |")
    lines.append(f"| first over later | {_target(one['ratio'] <= 1.05)} {one['ratio']:.3f} |")
    lines += [
        f"| time to first token, {name.removesuffix('_ms')} tokens | {ms:.1f} ms |" for name, ms in prompts.items()
    ]
    lines.append(f"| a token at batch 1 | {row['decode']['batch_1_ms']:.2f} ms |")
    for name, crowd in crowds.items():
        lines.append(f"| {name}, output tokens | {statistics.median(crowd['output_tokens_s']):.0f} / s |")
    lines.append(f"| 1024 requests at once, 8 in and 8 out | {row['burst']['seconds'][0]:.2f} s |")
    lines.append(
        f"| late events and growth, all of the above and {row['random']['requests']} random requests |"
        f" {_target(clean)} {events} |"
    )
    versions = ", ".join(f"{name} {record['versions'][name]}" for name in ("torch",))
    facts = f"{record['gpu']}, CUDA {record['cuda']}, {versions}, triton {record['triton']}"
    return [*lines, "", f"{facts}; {record['date']}; `{record['command']}`"]


def gpu_engine_tight(record: dict[str, Any]) -> list[str]:
    (row,) = record["rows"]
    burst, taken = row["burst"], row["neighbour"]["taken_bytes"] / 2**30
    clean = not row["late_events"] and not row["reserved_growth_bytes"]
    lines = ["| what | figure |", "|---|---:|"]
    lines.append(f"| start to ready, kernels cached, imports not counted | {row['ready_s']:.1f} s |")
    lines.append(
        f"| first request over the next 20 | {_target(row['first']['ratio'] <= 1.05)} {row['first']['ratio']:.3f} |"
    )
    lines.append(f"| requests that failed in the burst | {_target(not burst['failed'])} {burst['failed']} |")
    lines.append(
        f"| in another burst, after another process took {taken:.0f} GiB | {_target(not row['neighbour']['failed'])}"
        f" {row['neighbour']['failed']} |"
    )
    lines.append(
        f"| late events and growth | {_target(clean)} {len(row['late_events'])} events,"
        f" {row['reserved_growth_bytes']} bytes of torch's, {row['driver_growth_bytes']} at the driver |"
    )
    return [*lines, "", f"{record['gpu']}; {record['date']}; `{record['command']}`"]


# What the READMEs show: a label in each language, and the figure.
SHOWN: list[tuple[str, str, Callable[[dict[str, Any]], str]]] = [
    (
        "Qwen3.5-4B's shape on an H200: first request over the median of the next 20",
        "H200 上 Qwen3.5-4B 的形状：首个请求与其后 20 个请求中位数之比",
        lambda found: f"{found['gpu_engine']['first']['ratio']:.3f}",
    ),
    (
        "the same, with nearly all of the card in use",
        "同上，显存几乎用尽时",
        lambda found: f"{found['gpu_engine_tight']['first']['ratio']:.3f}",
    ),
    (
        "late compiles, tunings, loads; growth of memory; over all of that measurement",
        "整个测量期间封闭之后的编译、调优、加载次数；显存增长",
        lambda found: (
            f"{len(found['gpu_engine']['late_events'])}; {found['gpu_engine']['reserved_growth_bytes']} bytes"
        ),
    ),
    (
        "start to ready, imports not counted",
        "从启动到就绪（不计导入）",
        lambda found: f"{found['gpu_engine']['ready_s']:.1f} s",
    ),
    (
        "time to first token, 1024 tokens of prompt",
        "首个 token 的时间（提示 1024 个 token）",
        lambda found: f"{found['gpu_engine']['ttft']['1024_ms']:.1f} ms",
    ),
    (
        "a token, one sequence at a time",
        "单序列时每个 token",
        lambda found: f"{found['gpu_engine']['decode']['batch_1_ms']:.2f} ms",
    ),
    (
        "the shipped checkpoint on 2 cores of a CPU: first request over later ones",
        "随附的检查点在 2 核 CPU 上：首个请求与后续请求之比",
        lambda found: f"{found['first_request_cpu']['ratio']:.2f}",
    ),
]
LANGUAGES = {"README.md": 0, "README.zh-CN.md": 1}


def shown(language: int) -> list[str]:
    names = ("gpu_engine", "gpu_engine_tight", "first_request_cpu")
    found = {name: json.loads((RESULTS / f"{name}.json").read_text())["rows"][0] for name in names}
    return ["| | |", "|---|---:|", *(f"| {row[language]} | {row[2](found)} |" for row in SHOWN)]


def _target(met: bool) -> str:
    return "met:" if met else "**missed:**"


SECTIONS = {
    "cpu_vs_transformers": against_transformers,
    "first_request_cpu": first_request,
    "gpu_engine": gpu_engine,
    "gpu_engine_tight": gpu_engine_tight,
}


def rendered(path: Path) -> str:
    """The document with each section between its markers written anew."""
    document = path.read_text()
    if path.name in LANGUAGES:
        sections = {"figures": shown(LANGUAGES[path.name])}
    else:
        sections = {
            name: render(json.loads((RESULTS / f"{name}.json").read_text())) for name, render in SECTIONS.items()
        }
    for name, lines in sections.items():
        begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        before, _, rest = document.partition(begin)
        _, _, after = rest.partition(end)
        assert rest and after, f"{path.name} has no {begin} ... {end}"
        document = "\n".join([before + begin, *lines, end]) + after
    return document


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing, fail if the document differs")
    is_check = parser.parse_args().check
    for path in (DOCUMENT, *(ROOT / name for name in LANGUAGES)):
        wanted = rendered(path)
        if not is_check:
            path.write_text(wanted)
        elif wanted != path.read_text():
            sys.exit(f"{path.relative_to(ROOT)} differs from bench/results; run: python -m bench.figures")


if __name__ == "__main__":
    main()
