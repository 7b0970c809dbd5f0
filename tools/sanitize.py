"""Small shapes of the Gated DeltaNet kernels under compute-sanitizer: bad accesses (memcheck) and races (racecheck).

python tools/sanitize.py [--out FILE.json]      on a machine with a GPU and CUDA's tools; exits with 1 if one finds any
"""

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDER = "tests/kernels/gpu"
TESTS = (
    f"{FOLDER}/test_gdn_prefill_gpu.py::test_matches_token_by_token[(1, 3)]",
    f"{FOLDER}/test_gdn_prefill_gpu.py::test_lengths[65]",
    f"{FOLDER}/test_gdn_prefill_gpu.py::test_other_head_sizes[64-48]",
    f"{FOLDER}/test_gdn_decode_gpu.py::test_matches_token_by_token[(1, 3)-torch.bfloat16]",
    f"{FOLDER}/test_gdn_decode_gpu.py::test_other_head_sizes[64-48]",
)
TOOLS = ("memcheck", "racecheck")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=TOOLS)
    arguments = parser.parse_args()
    version = subprocess.run(["compute-sanitizer", "--version"], capture_output=True, text=True, check=True).stdout
    rows = [sanitize(tool) for tool in arguments.tools]
    if arguments.out:
        name = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        gpu = subprocess.run(name, capture_output=True, text=True, check=True).stdout.splitlines()[0]
        sanitizer = version.strip().splitlines()[-1].partition(" (")[0]
        record = {"command": "python tools/sanitize.py", "gpu": gpu, "sanitizer": sanitizer, "rows": rows}
        arguments.out.write_text(json.dumps(record, indent=1) + "\n")
    return 1 if any(row["exit_code"] for row in rows) else 0


def sanitize(tool: str) -> dict[str, object]:
    """Only our kernels are instrumented; each tensor has memory of its own, so that what lies behind it is nobody's."""
    command = ["compute-sanitizer", "--tool", tool, "--kernel-name", "kernel_substring=_gdn_", "--error-exitcode", "9"]
    command += [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", *TESTS]
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    summary = re.findall(r"^=+ (?:ERROR|RACECHECK) SUMMARY: .*$", done.stdout, re.MULTILINE)
    passed = re.findall(r"^\d+ passed.*$", done.stdout, re.MULTILINE)
    row = {"tool": tool, "exit_code": done.returncode, "summary": summary, "tests": passed}
    print(json.dumps(row), flush=True)
    if done.returncode:
        print(done.stdout[-6000:], done.stderr[-2000:], sep="\n", file=sys.stderr)
    return row


if __name__ == "__main__":
    sys.exit(main())
