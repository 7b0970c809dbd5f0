"""Write the figures of bench/results into docs/PERFORMANCE.md, or check that the document tells them truly.

python -m bench.figures [--check]
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "PERFORMANCE.md"
RESULTS = ROOT / "bench" / "results"
MODELS = {"tiny": "shipped checkpoint", "0.8b": "Qwen3.5-0.8B shape, random weights"}


def circumstances(record: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items() if version)
    return (
        f"{record['cpu']}, {record['cores']} cores, {record['threads']} threads, {record['dtype']}; {versions}; "
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


def _target(met: bool) -> str:
    return "met:" if met else "**missed:**"


SECTIONS = {"cpu_vs_transformers": against_transformers, "first_request_cpu": first_request}


def rendered(document: str) -> str:
    """The document with each section between its markers written anew."""
    for name, render in SECTIONS.items():
        begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        before, _, rest = document.partition(begin)
        _, _, after = rest.partition(end)
        assert rest and after, f"{DOCUMENT.name} has no {begin} ... {end}"
        lines = render(json.loads((RESULTS / f"{name}.json").read_text()))
        document = "\n".join([before + begin, *lines, end]) + after
    return document


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing, fail if the document differs")
    document = DOCUMENT.read_text()
    wanted = rendered(document)
    if not parser.parse_args().check:
        DOCUMENT.write_text(wanted)
    elif wanted != document:
        sys.exit(f"{DOCUMENT.relative_to(ROOT)} differs from bench/results; run: python -m bench.figures")


if __name__ == "__main__":
    main()
