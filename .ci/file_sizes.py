"""Fail when a Python file is more than one idea long (400 lines, 600 in tests), or a function over 40 lines."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

FILE, TEST_FILE, FUNCTION = 400, 600, 40


def problems(path: Path) -> Iterator[str]:
    """Yield what is too long in a file. Tests may have long functions: a table of cases is one."""
    source = path.read_text(encoding="utf-8")
    is_test, lines = path.parts[0] == "tests", len(source.splitlines())
    if lines > (TEST_FILE if is_test else FILE):
        yield f"{path}: {lines} lines"
    for node in ast.walk(ast.parse(source)):
        if is_test or "migrations" in path.parts or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        length = (node.end_lineno or node.lineno) - node.lineno + 1
        if length > FUNCTION:
            yield f"{path}:{node.lineno}: {node.name} has {length} lines"


listed = subprocess.run(
    ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"],
    check=True,
    capture_output=True,
    text=True,
)
too_long = [problem for name in listed.stdout.split() if Path(name).exists() for problem in problems(Path(name))]
print("\n".join(too_long) or "sizes: ok")
sys.exit(bool(too_long))
