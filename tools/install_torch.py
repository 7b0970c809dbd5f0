"""Install PyTorch into this environment, saying first which build and how large.  Called by the Makefile.

    python tools/install_torch.py CONSTRAINTS OUTPUT [--torch REQUIREMENT] [--index URL]

Without a wish the CPU build is taken: the version that CONSTRAINTS pins with the local label `+cpu`, which no CUDA
build carries, so gigabytes of CUDA cannot come in by accident.  It comes from pip's own sources if one of them has
it, else from PyTorch's CPU index.  OUTPUT gets the constraints for everything else; a torch other than the
pinned one brings the triton it needs, so both pins are left out then.
"""

import argparse
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from pip._vendor.packaging.requirements import Requirement

CPU_INDEX = "https://download.pytorch.org/whl/cpu"
OLDEST = "torch>=2.11"
SIZES = {"cpu": "about 190 MB", "cuda": "about 2.7 GB with the CUDA libraries it brings", "mac": "about 110 MB"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("constraints", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--torch", default="", metavar="REQUIREMENT")
    parser.add_argument("--index", default="", metavar="URL")
    arguments = parser.parse_args()
    pins = dict(re.findall(r"^(torch|triton)==(\S+)", arguments.constraints.read_text(), re.MULTILINE))
    linux = sys.platform == "linux"
    wanted = arguments.torch or f"torch=={pins['torch']}" + ("+cpu" if linux else "")
    present = installed_torch()
    keep = Requirement(arguments.torch or OLDEST)
    if present and keep.specifier.contains(present, prereleases=True):
        print(f"torch {present} is here already")
    elif not install(wanted, arguments.index, linux):
        return 1
    write_constraints(arguments.constraints, arguments.output, installed_torch() or "", pins["torch"])
    return 0


def installed_torch() -> str | None:
    try:
        return metadata.version("torch")
    except metadata.PackageNotFoundError:
        return None


def install(wanted: str, index: str, linux: bool) -> bool:
    is_cpu = "+cpu" in wanted or "/cpu" in index
    size = SIZES["cpu" if is_cpu else "cuda" if linux else "mac"]
    kind = "CPU build" if is_cpu or not linux else "CUDA build, unless the index says otherwise"
    print(f"PyTorch: {wanted}, the {kind}, {size}; make TORCH=... TORCH_INDEX=... chooses another", flush=True)
    if index:
        return pip("install", wanted, "--index-url", index)
    if "+cpu" in wanted and not pip("install", wanted, "--no-deps", "--dry-run", quiet=True):
        print(f"PyTorch: from {CPU_INDEX}", flush=True)
        return pip("install", wanted, "--index-url", CPU_INDEX)
    return pip("install", wanted)


def pip(*arguments: str, quiet: bool = False) -> bool:
    output = subprocess.DEVNULL if quiet else None
    command = [sys.executable, "-m", "pip", *arguments, "--disable-pip-version-check"]
    return subprocess.run(command, stdout=output, stderr=output, check=False).returncode == 0


def write_constraints(source: Path, output: Path, installed: str, pinned: str) -> None:
    lines = source.read_text().splitlines(keepends=True)
    if installed.partition("+")[0] != pinned:
        lines = [line for line in lines if not line.startswith(("torch==", "triton=="))]
    output.write_text("".join(lines))


if __name__ == "__main__":
    sys.exit(main())
