"""The file of `--env-file`, read as strictly as the variables in it: what cannot be read limits nothing."""

import io
import re
from collections.abc import Mapping
from pathlib import Path

from dotenv.parser import Binding, parse_stream

from gatehouse.shared.protocol.redaction import printable

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)


class InvalidEnvFile(ValueError):
    """One line for each problem: the file, the line, and what is wrong. No value is repeated."""


def read_env_file(path: Path | None) -> Mapping[str, str]:
    """Return the variables that a file sets, as it spells them; none where there is no file.

    Raises:
        InvalidEnvFile: no regular file, not text in UTF-8, or a line that is neither NAME=VALUE, a comment nor empty.
            The library that reads it next would leave such a line out.
        OSError: it cannot be read.
    """
    if path is None:
        return {}
    name = printable(str(path))
    if not path.is_file():
        # A pipe would be empty when it is read again.
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
    """Return the line of a statement, which begins after the empty lines that belong to it."""
    statement = binding.original.string
    return binding.original.line + statement[: len(statement) - len(statement.lstrip())].count("\n")
