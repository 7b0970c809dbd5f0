"""Install PyTorch into this environment, saying first which build and how large.  Called by the Makefile.

    python tools/install_torch.py CONSTRAINTS OUTPUT [--torch REQUIREMENT] [--index URL]

Without a wish the CPU build is taken: the version that CONSTRAINTS pins with the local label `+cpu`, which no CUDA
build carries, so gigabytes of CUDA cannot come in by accident.  It comes from pip's own sources if one of them has
it, else from PyTorch's CPU index.  A build that is there stays until another one is wished for.

OUTPUT gets the constraints for everything else, below a line that remembers the wish.  A torch other than the pinned
one brings the triton that it needs, so both pins are left out then.
"""

import argparse
import re
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

CPU_INDEX = "https://download.pytorch.org/whl/cpu"
SIZES = {"cpu": "about 190 MB", "cuda": "about 2.7 GB with its libraries", "mac": "about 110 MB"}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("constraints", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--torch", default="", metavar="REQUIREMENT")
    parser.add_argument("--index", default="", metavar="URL")
    arguments = parser.parse_args(argv)
    lines = arguments.constraints.read_text().splitlines()
    pinned = next(line for line in lines if line.startswith("torch=="))
    linux = sys.platform == "linux"
    asked = bool(arguments.torch or arguments.index)
    wanted = arguments.torch or (pinned if arguments.index else pinned + ("+cpu" if linux else ""))
    wish = f"# PyTorch: {wanted} {arguments.index}".rstrip()
    before = arguments.output.read_text().partition("\n")[0] if arguments.output.exists() else None
    present = installed_torch()
    if present and (wish == before or not asked):
        wish = before or wish
        print(f"PyTorch {present} is here already")
    else:
        if present:
            pip("uninstall", "--yes", "--quiet", "torch", "triton")
        if not install(wanted, arguments.index, linux):
            return 1
    if (installed_torch() or "").partition("+")[0] != pinned.removeprefix("torch=="):
        lines = [line for line in lines if not re.match(r"(torch|triton)==", line)]
    arguments.output.write_text("\n".join([wish, *lines, ""]))
    return 0


def installed_torch() -> str | None:
    try:
        return metadata.version("torch")
    except metadata.PackageNotFoundError:
        return None


def install(wanted: str, index: str, linux: bool) -> bool:
    is_cpu = not linux or "+cpu" in wanted or index.endswith("/cpu")
    size = SIZES["mac" if not linux else "cpu" if is_cpu else "cuda"]
    kind = "CPU build" if is_cpu else "CUDA build, unless your index says otherwise"
    print(f"PyTorch: {wanted}, the {kind}, {size}; TORCH=... and TORCH_INDEX=... choose another", flush=True)
    if not index and "+cpu" in wanted and not pip("install", wanted, "--no-deps", "--dry-run", quiet=True):
        index = CPU_INDEX
    print(f"PyTorch: from {index or 'the sources that pip is set up with'}", flush=True)
    return pip("install", wanted, *(["--index-url", index] if index else []))


def pip(*arguments: str, quiet: bool = False) -> bool:
    output = subprocess.DEVNULL if quiet else None
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    return subprocess.run(command, stdout=output, stderr=output, check=False).returncode == 0


if __name__ == "__main__":
    sys.exit(main())
