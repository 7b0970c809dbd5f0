"""`python -m hotstart` is the command `hotstart`."""

import sys

from hotstart.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
