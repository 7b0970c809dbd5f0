"""All tests that need a GPU, in processes side by side: what passed of each file, and where.

python -m bench.gpu_tests [--jobs 8] [--limit SECONDS] [--match WORD ...] [--shard I/N] [--out FILE]
python -m bench.gpu_tests --join FILE FILE ... [--out FILE]

`make test-gpu` runs the same, one after the other.  With several GPUs, each takes a shard, and the shards' files are
joined.  With --match, what FILE tells of the other files stays.
"""

import argparse
import datetime
import itertools
import json
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bench.device import facts
from bench.measure import RESULTS

ROOT = Path(__file__).parents[1]
EACH = 99
# How many processes a file is worth, and about how many seconds they take together; others take 10 in one.
FILES = {
    "test_backends": (EACH, 300),  # which share nothing
    "test_gdn_prefill": (4, 140),
    "test_logits": (4, 240),
    "test_attention": (3, 110),
    "test_gdn_decode": (2, 40),
    "test_draw": (1, 25),
    "test_gdn_tiles": (1, 25),
    "test_moe": (2, 20),
    "test_linear": (1, 20),
    "test_engine": (2, 380),  # 50, but no other process shares them
    "test_weights": (1, 60),
}
TOGETHER = ("test_our_errors",)  # of a file in parts: cases for which a library compiles the same
ALONE = ("test_engine", "test_weights")  # which look at the memory of the whole card: nothing else runs on it then

Part = tuple[str, ...]  # tests of one file, named as pytest names them


def _worth(name: str) -> tuple[int, int]:
    return next((worth for key, worth in FILES.items() if key in name), (1, 10))


def cut(tests: Sequence[str]) -> list[Part]:
    """The tests of one file, in runs: neighbours share what they compile."""
    name = tests[0].partition("::")[0]
    size = -(-len(tests) // _worth(name)[0])
    runs = [tuple(test for test in tests if word in test) for word in TOGETHER]
    rest = [test for test in tests if not any(word in test for word in TOGETHER)]
    runs += [tuple(rest[i : i + size]) for i in range(0, len(rest), size)]
    return [part for part in runs if part]


def share(files: Sequence[str], i: int, n: int) -> list[str]:
    """The i-th of n shares of files, counted from 1, all of about as many seconds; the longest stand first."""
    shares: list[list[str]] = [[] for _ in range(n)]
    for name in sorted(files, key=lambda name: (-_worth(name)[1], name)):
        min(shares, key=lambda some: sum(_worth(one)[1] for one in some)).append(name)
    return shares[i - 1]


def parts(words: Sequence[str], i: int, n: int) -> list[Part]:
    """Of a share of the files whose name has one of the words.

    All files by turns, so that what the first part of one compiles its other parts find on the disk.
    """
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "--collect-only", "tests/gpu", "tests/kernels/gpu"]
    told = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout
    found: dict[str, list[str]] = {}
    for test in [line for line in told.splitlines() if "::" in line]:
        name = test.partition("::")[0]
        if not words or any(word in name for word in words):
            found.setdefault(name, []).append(test)
    names = share(list(found), i, n)
    apart = [part for name in names if _worth(name)[0] == EACH for part in cut(found[name])]
    by_turns = itertools.zip_longest(*(cut(found[name]) for name in names if _worth(name)[0] != EACH))
    return [*apart, *(part for turn in by_turns for part in turn if part)]


def run(part: Part, until: float) -> dict[str, Any]:
    name = part[0].partition("::")[0]
    with tempfile.NamedTemporaryFile(suffix=".xml") as report:
        command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"]
        command += [f"--junitxml={report.name}", *part]
        try:
            done = subprocess.run(
                command, cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=max(until - time.monotonic(), 1)
            )
        except subprocess.TimeoutExpired:
            return {"what": name, "cut_off": list(part)}
        if not Path(report.name).stat().st_size:  # the process ended before pytest did
            print(done.stdout[-6000:], flush=True)
            return {"what": name, "cut_off": list(part)}
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


def join(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each file and commit: counts, seconds and lists of its parts together."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        whole = found.setdefault((row["what"], row["commit"]), {})
        for key, value in row.items():
            if isinstance(value, dict):
                whole[key] = whole.get(key, {}) | value
            elif isinstance(value, list) or key == "tests":
                whole[key] = whole.get(key, type(value)()) + value
            elif key == "seconds":
                whole[key] = round(whole.get(key, 0.0) + value, 1)
            else:
                whole[key] = value
    return list(found.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=8)
    parser.add_argument("--limit", type=float, default=1200.0)
    parser.add_argument("--match", nargs="+", default=[], metavar="WORD", help="of files' names; default: all")
    parser.add_argument("--shard", default="1/1", metavar="I/N", help="run the I-th of N shares, for one of N GPUs")
    parser.add_argument("--join", nargs="+", type=Path, metavar="FILE", help="run nothing: make one record of these")
    parser.add_argument("--out", type=Path, default=RESULTS / "gpu_tests.json")
    arguments = parser.parse_args()
    if arguments.join:
        records = [json.loads(path.read_text()) for path in arguments.join]
        record = records[0] | {"rows": join([row for one in records for row in one["rows"]])}
    else:
        record = measure(arguments)
    arguments.out.write_text(json.dumps(record, indent=1) + "\n")
    sys.exit(any(row.get("failed") or row.get("cut_off") for row in record["rows"]))


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    until = time.monotonic() + arguments.limit
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    record = facts("python -m bench.gpu_tests")
    here = {"date": today, "commit": record.pop("commit")}
    wanted = parts(arguments.match, *(int(number) for number in arguments.shard.split("/")))
    names = {part[0].partition("::")[0] for part in wanted}
    before = json.loads(arguments.out.read_text())["rows"] if arguments.match and arguments.out.exists() else []
    record["rows"] = [row for row in before if row["what"] not in names]
    alone = [part for part in wanted if any(word in part[0] for word in ALONE)]
    for jobs, some in ((1, alone), (arguments.jobs, [part for part in wanted if part not in alone])):
        with ThreadPoolExecutor(jobs) as pool:
            for row in pool.map(lambda part: run(part, until), some):
                print({key: len(value) if isinstance(value, list) else value for key, value in row.items()}, flush=True)
                record["rows"] = join([*record["rows"], row | here])
                arguments.out.write_text(json.dumps(record, indent=1) + "\n")
    return record


if __name__ == "__main__":
    main()
