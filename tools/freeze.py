"""Write the installed versions into a constraints file.  Called by `make constraints`."""

import re
import subprocess
import sys
from pathlib import Path

HEAD = "# What CI installs, and `make` too unless TORCH asks for another build.  Written by `make constraints`.\n"


def main() -> None:
    command = [sys.executable, "-m", "pip", "freeze", "--exclude-editable", "--exclude", "hotstart"]
    frozen = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    lines = [re.sub(r"\+cpu$", "", line) for line in frozen.splitlines() if re.match(r"[\w.-]+==", line)]
    Path(sys.argv[1]).write_text(HEAD + "".join(f"{line}\n" for line in lines))


if __name__ == "__main__":
    main()
