"""The package itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def test_it_is_light(tmp_path: Path) -> None:
    """Importing the package, its paths and the configuration loads neither SQLite nor TOML nor the keyring."""
    heavy = "{'sqlite3', 'tomllib', 'tomli', 'tomli_w', 'platformdirs', 'keyring', 'difflib'}"
    script = (
        "import sys, aicortex.registry, aicortex.registry.paths, aicortex.registry.config as config\n"
        "config.read_config()\n"
        f"print(sorted({heavy} & set(sys.modules)))"
    )
    nobody = {**os.environ, "HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path), "AICORTEX_CONFIG": ""}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, cwd=tmp_path, env=nobody
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")
