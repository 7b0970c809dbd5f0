"""All tests that need a GPU, a process for each of their files, side by side: what passed, and where.

Libraries of others compile for minutes: of their file, each test has a process of its own.

python -m bench.gpu_tests [--jobs 5] [--limit SECONDS] [--match WORD ...] [--out FILE]

`make test-gpu` runs the same, one after the other.  With --match, what FILE tells of the other files stays.
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
SPLIT = "test_backends"
SLOW = ("test_backends", "test_logits", "test_gdn_prefill", "test_attention", "test_moe", "test_gdn_decode")  # first


def files(words: list[str]) -> list[Path]:
    found = [*ROOT.glob("tests/gpu/test_*.py"), *ROOT.glob("tests/kernels/gpu/test_*.py")]
    found = [path for path in found if not words or any(word in path.as_posix() for word in words)]
    order = {name: i for i, name in enumerate(SLOW)}
    return sorted(found, key=lambda path: (min([i for n, i in order.items() if n in path.name], default=9), path.name))


def parts(path: Path) -> list[str]:
    """What pytest is asked for: a file, or each of its tests."""
    name = path.relative_to(ROOT).as_posix()
    if SPLIT not in name:
        return [name]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "--collect-only", name]
    told = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout
    return [line for line in told.splitlines() if line.startswith(name)]


def run(name: str, until: float) -> dict[str, Any]:
    with tempfile.NamedTemporaryFile(suffix=".xml") as report:
        command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"]
        command += [f"--junitxml={report.name}", name]
        try:
            done = subprocess.run(
                command, cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=max(until - time.monotonic(), 1)
            )
        except subprocess.TimeoutExpired:
            return {"what": name, "cut_off": True}
        told = ET.parse(report.name)
    cases = list(told.iter("testcase"))
    figures = {one.attrib["name"]: one.attrib["value"] for one in told.iter("property")}
    kinds = {"failed": ("failure", "error"), "skipped": ("skipped",)}
    names = {
        kind: [c.attrib["name"] for c in cases if any(c.find(t) is not None for t in tags)]
        for kind, tags in kinds.items()
    }
    if names["failed"]:
        print(done.stdout[-6000:], flush=True)
    seconds = round(sum(float(case.attrib["time"]) for case in cases), 1)
    found = {"what": name, "tests": len(cases), **names, "seconds": seconds}
    return found | {"figures": figures} if figures else found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=5)
    parser.add_argument("--limit", type=float, default=1200.0)
    parser.add_argument("--match", nargs="+", default=[], metavar="WORD", help="of files' names; default: all")
    parser.add_argument("--out", type=Path, default=RESULTS / "gpu_tests.json")
    arguments = parser.parse_args()
    until = time.monotonic() + arguments.limit
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    record = facts("python -m bench.gpu_tests")
    before = json.loads(arguments.out.read_text())["rows"] if arguments.match and arguments.out.exists() else []
    wanted, here = files(arguments.match), {"date": today, "commit": record.pop("commit")}
    names = [name for path in wanted for name in parts(path)]
    record["rows"] = [row for row in before if row["what"] not in names]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for row in pool.map(lambda name: run(name, until) | here, names):
            record["rows"].append(row)
            print({key: len(value) if isinstance(value, list) else value for key, value in row.items()}, flush=True)
            arguments.out.write_text(json.dumps(record, indent=1) + "\n")
    sys.exit(any(row.get("failed") or row.get("cut_off") for row in record["rows"]))


if __name__ == "__main__":
    main()
