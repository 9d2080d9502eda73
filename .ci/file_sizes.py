"""Fail when a Python file is more than one idea long: 400 lines, 600 in tests."""

import subprocess
import sys
from pathlib import Path

LIMIT, TEST_LIMIT = 400, 600

listed = subprocess.run(
    ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"],
    check=True,
    capture_output=True,
    text=True,
)
too_long = []
for name in filter(Path.exists, map(Path, listed.stdout.split())):
    lines = len(name.read_text(encoding="utf-8").splitlines())
    if lines > (TEST_LIMIT if name.parts[0] == "tests" else LIMIT):
        too_long.append(f"{name}: {lines} lines")
print("\n".join(too_long) or "file sizes: ok")
sys.exit(bool(too_long))
