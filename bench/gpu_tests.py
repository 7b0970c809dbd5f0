"""All tests that need a GPU, a process for each of their files, side by side: what passed, and where.

python -m bench.gpu_tests [--jobs 5] [--limit SECONDS] [--out FILE]

`make test-gpu` runs the same, one after the other.
"""

import argparse
import datetime
import json
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bench.device import facts
from bench.measure import RESULTS

ROOT = Path(__file__).parents[1]
SLOW = ("test_backends", "test_logits", "test_gdn_prefill", "test_attention", "test_engine")  # these begin


def files() -> list[Path]:
    found = [*ROOT.glob("tests/gpu/test_*.py"), *ROOT.glob("tests/kernels/gpu/test_*.py")]
    order = {name: i for i, name in enumerate(SLOW)}
    return sorted(found, key=lambda path: (min([i for n, i in order.items() if n in path.name], default=9), path.name))


def run(path: Path, until: float) -> dict[str, Any]:
    name = path.relative_to(ROOT).as_posix()
    with tempfile.NamedTemporaryFile(suffix=".xml") as report:
        command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"]
        command += [f"--junitxml={report.name}", name]
        try:
            done = subprocess.run(
                command, cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=max(until - time.monotonic(), 1)
            )
        except subprocess.TimeoutExpired:
            return {"file": name, "cut_off": True}
        cases = list(ET.parse(report.name).iter("testcase"))
    kinds = {"failed": ("failure", "error"), "skipped": ("skipped",)}
    names = {
        kind: [c.attrib["name"] for c in cases if any(c.find(t) is not None for t in tags)]
        for kind, tags in kinds.items()
    }
    if names["failed"]:
        print(done.stdout[-6000:], flush=True)
    seconds = round(sum(float(case.attrib["time"]) for case in cases), 1)
    return {"file": name, "tests": len(cases), **names, "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=5)
    parser.add_argument("--limit", type=float, default=1200.0)
    parser.add_argument("--out", type=Path, default=RESULTS / "gpu_tests.json")
    arguments = parser.parse_args()
    until = time.monotonic() + arguments.limit
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    record = facts("python -m bench.gpu_tests") | {"date": today, "rows": []}
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for row in pool.map(lambda path: run(path, until), files()):
            record["rows"].append(row)
            print({key: len(value) if isinstance(value, list) else value for key, value in row.items()}, flush=True)
            arguments.out.write_text(json.dumps(record, indent=1) + "\n")
    sys.exit(any(row.get("failed") or row.get("cut_off") for row in record["rows"]))


if __name__ == "__main__":
    main()
