"""The failure this project exists for: requests after "ready" that compile, tune and run out of memory; and without.

python -m bench.first_request [--left 32GiB] [--cases fla-16,fla-32,fla-64,triton-64] [--out FILE]

A second process holds the rest of the card.  Each case is one command line, run twice in fresh processes: without the
warm-up on empty caches of compiled kernels, then with it, where it finds what the first run compiled.  Nothing else
differs.  Rows of cases that are not run stay in the file.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.measure import RESULTS
from hotstart.config.engine import parse_bytes

CASES = ("triton-64", "fla-16", "fla-32", "fla-64")
HOLDER = """
import sys, torch
free, _ = torch.cuda.mem_get_info()
held = []
while (more := torch.cuda.mem_get_info()[0] - int(sys.argv[1])) >= 2 << 20:
    held.append(torch.empty(more // (2 << 20) * (2 << 20), dtype=torch.uint8, device="cuda"))
print(torch.cuda.mem_get_info()[0], flush=True)
sys.stdin.read()
"""


def command(model: str, case: str, warm: bool, out: Path) -> list[str]:
    backend, chunk = case.split("-")
    return [
        *(sys.executable, "-m", "hotstart", "bench", "first-request,burst", model),
        *("--device", "cuda", "--load-format", "dummy", "--dtype", "bfloat16", "--max-model-len", "9216"),
        *("--gdn-prefill-backend", backend, "--gdn-chunk-length", chunk, "--tune", "off"),
        *([] if warm else ["--unsafe-skip-warmup"]),
        *("--quiet", "--output", str(out)),
    ]


def run(model: str, case: str, warm: bool, caches: Path) -> dict[str, Any]:
    environment = os.environ | {
        "TRITON_CACHE_DIR": str(caches / "triton"),
        "XDG_CACHE_HOME": str(caches / "home"),
    }
    out = caches / f"{case}-{warm}.json"
    done = subprocess.run(
        command(model, case, warm, out), env=environment, stderr=subprocess.PIPE, text=True, timeout=280, check=False
    )
    if not out.exists():
        print(done.stderr[-3000:], flush=True)
        return {"failed_to_run": done.stderr.strip().splitlines()[-1:]}
    found: dict[str, Any] = json.loads(out.read_text())
    plan = found["plan"]
    found["plan"] = {line["name"]: line["num_bytes"] for line in plan["lines"]} | {"total": plan["total_bytes"]}
    return found


def row(case: str, warm: bool, found: dict[str, Any]) -> dict[str, Any]:
    if "failed_to_run" in found:
        return {"case": case, "warm": warm, **found}
    first, burst = found["first-request"], found["burst"]
    return {
        "case": case,
        "warm": warm,
        "ready_s": found["process_to_ready_s"],
        "plan": found["plan"],
        "first_ms": first["first_ms"],
        "later_ms": first["later_ms"],
        "times_ms": first["times_ms"],
        "first_errors": first["errors"],
        "burst_s": burst["seconds"],
        "burst_failed": burst["failed"],
        "burst_errors": burst["errors"],
        "late": found["late"],
        "num_late": found["num_late"],
        "reserved_growth_bytes": found["reserved_growth_bytes"],
        "driver_growth_bytes": found["driver_growth_bytes"],
        "facts": {name: found[name] for name in ("command", "date", "commit", "device", "cuda", "versions")},
    }


def _kept(path: Path, model: str) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    record = json.loads(path.read_text())
    rows: list[dict[str, Any]] = record["rows"]
    return rows if record["model"] == model else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="qwen3.5-4b")
    parser.add_argument("--left", type=parse_bytes, default="32GiB", help="bytes that remain on the card")
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--out", type=Path, default=RESULTS / "first_request.json")
    arguments = parser.parse_args()
    cases = arguments.cases.split(",")
    rows = [row for row in _kept(arguments.out, arguments.model) if row["case"] not in cases]
    holder = [sys.executable, "-c", HOLDER, str(arguments.left)]
    with subprocess.Popen(holder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdin is not None and other.stdout is not None
        left = int(other.stdout.readline())
        for case in cases:
            with tempfile.TemporaryDirectory() as caches:
                for warm in (False, True):
                    rows.append(row(case, warm, run(arguments.model, case, warm, Path(caches))))
                    brief = ("case", "warm", "ready_s", "first_ms", "later_ms", "num_late", "burst_failed")
                    print({name: rows[-1].get(name) for name in brief}, flush=True)
                    in_order = sorted(rows, key=lambda row: row["case"])
                    record = {"model": arguments.model, "left_bytes": left, "rows": in_order}
                    arguments.out.write_text(json.dumps(record, indent=1) + "\n")
        other.stdin.close()


if __name__ == "__main__":
    main()
