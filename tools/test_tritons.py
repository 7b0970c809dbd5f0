"""Run the kernels' tests that need no GPU on several versions of Triton, each in a folder of its own.

python tools/test_tritons.py [VERSION ...] [--folder FOLDER] [--out FILE.json]

Default: the oldest that we support and the newest that installs; `make test` itself runs the one that is pinned.  Exits
with 1 if a test fails on one of them.
"""

import argparse
import datetime
import json
import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from hotstart.bench.record import commit

ROOT = Path(__file__).parents[1]
OLDEST, NEWEST = "3.6.0", "newest"
# The interpreter of 3.6 gives numpy numbers in a way that numpy 2.4 no longer takes.
BESIDE = {"3.6": ["numpy<2.4"]}
TESTS = ["tests/kernels", "tests/unit/test_kernel_hazards.py"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("versions", nargs="*", default=[OLDEST, NEWEST])
    parser.add_argument("--folder", type=Path, default=ROOT / ".venv" / "tritons", help="where they are installed")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rows = [run(version, arguments.folder / version) for version in arguments.versions]
    if arguments.out:
        record = {
            "command": f"python tools/test_tritons.py {' '.join(arguments.versions)}",
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "commit": commit(),
            "tests": " ".join(TESTS),
            "rows": rows,
        }
        arguments.out.write_text(json.dumps(record, indent=1) + "\n")
    return 1 if any(row["exit_code"] for row in rows) else 0


def run(version: str, folder: Path) -> dict[str, Any]:
    install(version, folder)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT / "src")]),
        "TRITON_CACHE_DIR": str(folder / "cache"),
    }
    python = [sys.executable, "-c", "import numpy, triton; print(triton.__version__, numpy.__version__)"]
    found = subprocess.run(python, env=environment, capture_output=True, text=True, check=True).stdout.split()
    start = time.perf_counter()
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    told = re.findall(r"^(?:\d+ (?:passed|failed|error|skipped|deselected)\D*)+", done.stdout, re.MULTILINE)
    row = {
        "triton": found[0],
        "numpy": found[1],
        "exit_code": done.returncode,
        "result": told[-1].strip(" ,in") if told else "",
        "seconds": round(time.perf_counter() - start),
    }
    print(json.dumps(row), flush=True)
    if done.returncode:
        print(done.stdout[-6000:], done.stderr[-2000:], sep="\n", file=sys.stderr)
    return row


def install(version: str, folder: Path) -> None:
    if (folder / "triton").exists():
        return
    what = ["triton" if version == NEWEST else f"triton=={version}", *BESIDE.get(version[:3], [])]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), *what]
    subprocess.run(pip, check=True)


if __name__ == "__main__":
    sys.exit(main())
