"""`python -m aicortex` is the command `aicortex`."""

from __future__ import annotations

import sys

from aicortex.cli import main

if __name__ == "__main__":
    sys.exit(main())
