"""Write the figures of bench/results into the documents, and draw the pictures; or check that they tell them truly.

python -m bench.figures [--check]
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from bench import (
    figures_attention,
    figures_gdn,
    figures_gpu,
    figures_linear,
    figures_moe,
    figures_peers,
    figures_promise,
    figures_proofs,
    figures_table,
    figures_told,
)
from bench.figures_promise import target

ROOT = Path(__file__).parents[1]
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
            f" {row['transformers_ms']:.2f} | {row['ratio']:.2f} | {target(row['ratio'] >= row['target'])}"
            f" {row['target']:g} |"
        )
    return [*lines, "", circumstances(record)]


def first_request(record: dict[str, Any]) -> list[str]:
    lines = ["| model | what | first, ms | later, ms | ratio | target |", "|---|---|---:|---:|---:|---:|"]
    for row in record["rows"]:
        lines.append(
            f"| {MODELS[row['model']]} | {row['what']} | {row['first_ms']:.2f} | {row['later_ms']:.2f} |"
            f" {row['ratio']:.2f} | {target(row['ratio'] <= row['target'])} {row['target']:g} |"
        )
    return [*lines, "", circumstances(record)]


# What the READMEs show: a label in each language, and the figure.
SHOWN: list[tuple[str, str, Callable[[dict[str, Any]], str]]] = [
    (
        "Qwen3.5-4B's shape on an H200: first request over the median of the next 20",
        "H200 上 Qwen3.5-4B 的形状：首个请求与其后 20 个请求中位数之比",
        lambda found: f"{found['table/4b']['first-request']['ratio']:.3f}",
    ),
    (
        "the same, with nearly all of the card in use",
        "同上，显存几乎用尽时",
        lambda found: f"{found['gpu_tight']['first-request']['ratio']:.3f}",
    ),
    (
        "late compiles, tunings, loads; growth of memory; over all of that measurement",
        "整个测量期间封闭之后的编译、调优、加载次数；显存增长",
        lambda found: f"{found['gpu_tight']['num_late']}; {found['gpu_tight']['reserved_growth_bytes']} bytes",
    ),
    (
        "start of the process to ready, caches warm",
        "从进程启动到就绪（缓存已热）",
        lambda found: f"{found['table/4b-warm']['process_to_ready_s']:.1f} s",
    ),
    (
        "time to first token, 1024 tokens of prompt",
        "首个 token 的时间（提示 1024 个 token）",
        lambda found: f"{found['table/4b']['latency']['ttft_ms']['1024']:.1f} ms",
    ),
    (
        "a token, one sequence at a time",
        "单序列时每个 token",
        lambda found: f"{found['table/4b']['latency']['token_ms']:.2f} ms",
    ),
    (
        "the shipped checkpoint on 2 cores of a CPU: first request over later ones",
        "随附的检查点在 2 核 CPU 上：首个请求与后续请求之比",
        lambda found: f"{found['first_request_cpu']['ratio']:.2f}",
    ),
]


def shown(language: int) -> list[str]:
    found = {name: figures_gpu.read(name) for name in ("gpu_tight", "table/4b", "table/4b-warm")}
    found["first_request_cpu"] = figures_gpu.read("first_request_cpu")["rows"][0]
    return ["| | |", "|---|---:|", *(f"| {row[language]} | {row[2](found)} |" for row in SHOWN)]


def server_cpu(record: dict[str, Any]) -> list[str]:
    streams, start = record["rows"]
    tokens = f"{streams['offline_tokens_s']} | {streams['server_tokens_s']}"
    met = f"{target(streams['ratio'] >= streams['target'])} {streams['target']:g}"
    soon = f"{target(start['seconds'] <= start['target_s'])} {start['target_s']:g} s"
    return [
        "| what | offline, tokens/s | server, tokens/s | ratio | target |",
        "|---|---:|---:|---:|---:|",
        f"| {streams['what']} | {tokens} | {streams['ratio']:.2f} | {met} |",
        "",
        f"Of each token the process that speaks HTTP takes {streams['http_cpu_us_a_token']:.0f} us of a core. From the "
        f"command to the first answer: {start['seconds']:.2f} s ({soon}).",
        "",
        circumstances(record),
    ]


Section = Callable[[], list[str]]
DOCUMENTS: dict[str, dict[str, Section]] = {
    "docs/PERFORMANCE.md": {
        "cpu_vs_transformers": lambda: against_transformers(figures_gpu.read("cpu_vs_transformers")),
        "first_request_cpu": lambda: first_request(figures_gpu.read("first_request_cpu")),
        "first_chat": lambda: first_request(figures_gpu.read("first_chat")),
        "server_cpu": lambda: server_cpu(figures_gpu.read("server_cpu")),
        "gpu_promise": figures_promise.promise,
        **{name: getattr(figures_table, name) for name in figures_table.__all__},
        "peers": figures_peers.peers,
        "load": figures_gpu.load,
        "first_request": figures_promise.first_requests,
    },
    "docs/ARCHITECTURE.md": {"logits": figures_proofs.logits, "gpu_tests": figures_gpu.gpu_tests},
    "docs/MEMORY.md": {
        "foretold": figures_gpu.foretold,
        "plan_check": figures_gpu.plan_check,
        "weights_peak": figures_gpu.weights_peak,
        "usable_tokens": figures_promise.usable_tokens,
    },
    "docs/PREFILL.md": {
        "prefill": figures_gdn.prefill,
        "host": figures_gdn.host,
        "mixers": figures_gdn.mixers,
        "kernels": figures_gdn.kernels,
        "chunk_lengths": figures_gdn.chunk_lengths,
        "binaries": figures_gdn.binaries,
        "errors": figures_proofs.errors,
        "roundings": figures_proofs.roundings,
        "error_forms": figures_proofs.error_forms,
        "sanitizer": figures_proofs.sanitizer,
        "attention_of_prompts": figures_attention.prompts,
        "attention_forms": figures_attention.forms,
    },
    "docs/DECODE.md": {
        "decode": figures_gdn.decode,
        "decode_forms": figures_gdn.decode_forms,
        "few_tokens": figures_linear.few_tokens,
        "few_tokens_forms": figures_linear.few_tokens_forms,
        "attention_of_answers": figures_attention.answers,
    },
    "docs/AUDIT.md": {
        name: partial(figures_proofs.transcript, name)
        for name in ("audit_fla", "audit_transformers", "audit_transformers_warm")
    },
    "docs/EXPERTS.md": {"experts": figures_moe.experts},
    "docs/WARMUP.md": {
        "warm_up_seconds": figures_proofs.warm_up_seconds,
        "check_gpus": figures_proofs.check_gpus,
        "tritons": figures_proofs.tritons,
        "short_prompts": figures_gdn.short_prompts,
    },
    "README.md": {"figures": partial(shown, 0)},
    "README.zh-CN.md": {"figures": partial(shown, 1)},
}
PICTURES = {"docs/first_request.svg": figures_promise.picture}


def rendered(name: str) -> str:
    """The document with each section between its markers written anew, and the figures in its sentences."""
    document = (ROOT / name).read_text()
    for section, render in DOCUMENTS.get(name, {}).items():
        begin, end = f"<!-- {section} -->", f"<!-- end of {section} -->"
        before, _, rest = document.partition(begin)
        _, _, after = rest.partition(end)
        assert rest and after, f"{name} has no {begin} ... {end}"
        document = "\n".join([before + begin, *render(), end]) + after
    return figures_told.told(document, figures_told.TOLD.get(name, ()), name)


def text_of(name: str) -> str:
    """A document or picture, as the results have it."""
    return PICTURES[name]() if name in PICTURES else rendered(name)


def everything() -> dict[str, str]:
    return {name: text_of(name) for name in dict.fromkeys((*DOCUMENTS, *figures_told.TOLD, *PICTURES))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing, fail if the document differs")
    is_check = parser.parse_args().check
    for name, text in everything().items():
        path = ROOT / name
        if not is_check:
            path.write_text(text)
        elif not path.exists() or path.read_text() != text:
            sys.exit(f"{name} differs from bench/results; run: make figures")


if __name__ == "__main__":
    main()
