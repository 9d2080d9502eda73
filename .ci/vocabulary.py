"""Fail on a word of .ci/vocabulary.txt in any tracked text file, and print what to write instead."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

VOCABULARY = Path(".ci/vocabulary.txt")
NOT_PROSE = {".json", ".lock", ".svg", ".png", ".ico"}


def rules() -> Iterator[tuple[re.Pattern[str], str]]:
    """Yield each pattern, with the end of a word on both sides, and its replacement."""
    for line in VOCABULARY.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            pattern, arrow, replacement = line.partition(" => ")
            if not arrow:
                sys.exit(f'{VOCABULARY}: no " => " in: {line}')
            # "_" separates words too: test names are sentences.
            # A space of a pattern may be a line break, or the "_" of a test's name.
            spaced = pattern.replace(" ", r"[\s_]+(?:[#*>|] ?)?")
            yield re.compile(rf"(?<![A-Za-z0-9])(?:{spaced})(?![A-Za-z0-9])", re.IGNORECASE), replacement


def findings(path: Path, checked: list[tuple[re.Pattern[str], str]]) -> Iterator[str]:
    """Yield one line for each forbidden word of a file."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return
    for pattern, replacement in checked:
        for found in pattern.finditer(text):
            line = text.count("\n", 0, found.start()) + 1
            yield f"{path}:{line}: {' '.join(found[0].split())!r}; write: {replacement}"


listed = subprocess.run(["git", "ls-files", "-z"], check=True, capture_output=True, text=True).stdout.split("\0")
files = [Path(name) for name in listed if name and Path(name) != VOCABULARY and Path(name).suffix not in NOT_PROSE]
known = list(rules())
problems = [problem for path in files if path.is_file() for problem in findings(path, known)]
print("\n".join(problems) or "vocabulary: ok")
sys.exit(bool(problems))
