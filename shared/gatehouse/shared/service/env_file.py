"""The file of `--env-file`, read strictly: a setting on a line that is skipped would silently have no effect."""

import io
import re
from collections.abc import Mapping
from pathlib import Path

# Not documented by python-dotenv. Its documented `dotenv_values` skips a line that it cannot read and tells only the
# log, which names neither the file nor the line for the refusal.
from dotenv.parser import Binding, parse_stream

from gatehouse.shared.protocol.redaction import printable

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)


class InvalidEnvFile(ValueError):
    """One line for each problem: the file, the line, and what is wrong. No value is repeated."""


def read_env_file(path: Path | None) -> Mapping[str, str]:
    """Return the variables that a file sets, with their names as written; none if there is no file.

    Raises:
        InvalidEnvFile: not a regular file, not text in UTF-8, or a line that is not NAME=VALUE, a comment or empty.
            pydantic-settings, which reads the file next, would skip such a line.
        OSError: it cannot be read.
    """
    if path is None:
        return {}
    name = printable(str(path))
    if not path.is_file():
        # A pipe would be empty at the second read.
        raise InvalidEnvFile(f"{name}: not a regular file")
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise InvalidEnvFile(f"{name}, line {line}: not text in UTF-8") from None
    variables: dict[str, str] = {}
    problems: list[str] = []
    for binding in parse_stream(io.StringIO(text)):
        if (wrong := _problem(binding)) is not None:
            problems.append(f"{name}, line {_line(binding)}: {wrong}")
        elif binding.key is not None and binding.value is not None:
            variables[binding.key] = binding.value
    if problems:
        raise InvalidEnvFile("\n".join(problems))
    return variables


def _problem(binding: Binding) -> str | None:
    if "\x00" in binding.original.string:
        return "a NUL character"
    if binding.error or (binding.key is not None and (binding.value is None or not _NAME.fullmatch(binding.key))):
        return "not NAME=VALUE"
    return None


def _line(binding: Binding) -> int:
    """Return the line number of a statement, which includes the empty lines before it."""
    statement = binding.original.string
    return binding.original.line + statement[: len(statement) - len(statement.lstrip())].count("\n")
