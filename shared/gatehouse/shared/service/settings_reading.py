"""Reads settings from the environment, from `--env-file` and from secret files. All problems are reported at once."""

import os
from collections.abc import Container, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from gatehouse.shared.protocol.redaction import printable, quoted
from gatehouse.shared.service.env_file import InvalidEnvFile, read_env_file
from gatehouse.shared.service.files import UnsafeFile, is_exposed, read_private_file, secret_text
from gatehouse.shared.service.settings import CommandSettings, InvalidSettings

SettingsT = TypeVar("SettingsT", bound=CommandSettings)

_FILE = "_FILE"
"""At the end of a variable: it names a file that holds the value of the setting."""

_MAX_SECRET = 16 * 1024
"""Bytes of a file that holds a secret."""


def load_settings(settings_class: type[SettingsT], env_file: Path | None = None, **options: Any) -> SettingsT:
    """Read and check the settings of a server or a command. `options` of the command take precedence.

    Raises:
        InvalidSettings: names every unusable setting, its value and how to fix it. The value of one that holds a
            secret, or could, is not repeated.
    """
    in_file = _read(env_file)
    problems = [
        f"{name}={_shown(value)}: {effect}; unset it"
        for name, effect in settings_class.forbidden_variables.items()
        if (value := os.environ.get(name))
    ]
    problems += _exposed(settings_class, env_file, in_file)
    problems += _unknown_names(settings_class, in_file)
    secrets, unusable = _read_secret_files(settings_class, in_file)
    problems += unusable
    try:
        settings = settings_class(_env_file=env_file, **{**secrets, **options})  # type: ignore[call-arg]
    except ValidationError as error:
        problems += _invalid_values(settings_class, error, secrets)
    if problems:
        raise InvalidSettings("\n".join(problems))
    return settings


def _read(env_file: Path | None) -> Mapping[str, str]:
    try:
        return read_env_file(env_file)
    except InvalidEnvFile as error:
        # The other problems are unknown without the file.
        raise InvalidSettings(str(error)) from None


def _read_secret_files(
    settings_class: type[CommandSettings], in_file: Mapping[str, str]
) -> tuple[dict[str, str], list[str]]:
    """Return the settings whose values are in files of their own, and the problems with such files."""
    given = {name.upper(): value for name, value in (*in_file.items(), *os.environ.items())}
    if settings_class.model_config.get("env_ignore_empty"):
        given = {name: value for name, value in given.items() if value}
    secrets: dict[str, str] = {}
    problems = []
    for field in sorted(settings_class.confidential):
        variable = settings_class.variable(field)
        if (path := given.get(f"{variable}{_FILE}")) is None:
            continue
        if variable in given:
            problems.append(f"{variable}, {variable}{_FILE}: both are set; unset one")
            continue
        try:
            secrets[field] = _read_secret(Path(path))
        except ValueError as error:
            problems.append(f"{variable}{_FILE}={_shown(path)}: {error}")
    return secrets, problems


def _read_secret(path: Path) -> str:
    """Return the secret in a file that nobody else can read or replace. Raises ValueError."""
    try:
        document = read_private_file(path, "file", limit=_MAX_SECRET + 1, private_folder=True)
    except FileNotFoundError:
        raise ValueError("there is no such file") from None
    except UnsafeFile as error:
        raise ValueError(str(error)) from None
    if len(document) > _MAX_SECRET:
        raise ValueError(f"the file is larger than {_MAX_SECRET // 1024} KiB")
    if not (text := secret_text(document)):
        raise ValueError("the file is empty")
    return text


def _invalid_values(
    settings_class: type[CommandSettings], error: ValidationError, in_files: Container[str]
) -> Iterator[str]:
    schemas = settings_class.model_json_schema()["properties"]
    for problem in error.errors(include_url=False):
        if not problem["loc"]:
            # A problem of several settings names them itself.
            yield problem["msg"].removeprefix("Value error, ")
            continue
        field = str(problem["loc"][0])
        # For a missing setting, pydantic reports all other settings as the input.
        hidden = field in settings_class.confidential or problem["type"] == "missing"
        value = "" if hidden else f"={_shown(problem['input'])}"
        variable = f"{settings_class.variable(field)}{_FILE if field in in_files else ''}"
        yield f"{variable}{value}: {_explain(problem, schemas[field])}"


def _explain(problem: ErrorDetails, schema: Mapping[str, Any]) -> str:
    """Say what a value must be, in the words of the settings' own checks."""
    if "minimum" in schema:
        return f"must be {schema['minimum']} to {schema['maximum']}"
    if problem["type"] == "literal_error":
        return f"must be {problem['ctx']['expected'].replace(chr(39), '')}"
    return problem["msg"].removeprefix("Value error, ")


def _shown(value: object) -> str:
    """Return a value to print: a URL can hold a password before its `@`."""
    text = str(value)
    return "(not shown)" if "@" in text else quoted(text)


def _exposed(settings_class: type[CommandSettings], env_file: Path | None, in_file: Mapping[str, str]) -> Iterator[str]:
    """Name each secret in a file that others can read."""
    private = {settings_class.variable(name) for name in settings_class.private}
    if env_file is not None and is_exposed(env_file.stat()):
        for name in sorted(private & {name.upper() for name, value in in_file.items() if value}):
            yield f"{name}: {env_file}, which holds it, is readable by others. Run: chmod 600 {env_file}"


def _unknown_names(settings_class: type[CommandSettings], in_file: Mapping[str, str]) -> Iterator[str]:
    """Name each variable with this server's prefix that is not a setting: a misspelt limit would have no effect."""
    prefix = settings_class.variable("")
    known = [name.upper() for name in settings_class.model_fields]
    known += [f"{name.upper()}{_FILE}" for name in settings_class.confidential]
    for name in sorted({name.upper() for name in (*os.environ, *in_file)}):
        if name.startswith(prefix) and name.removeprefix(prefix) not in known:
            alike = get_close_matches(name.removeprefix(prefix), known, 1)
            remediation = f"did you mean {prefix}{alike[0]}?" if alike else "remove it or correct its name"
            yield f"{printable(name)}: there is no such setting; {remediation}"


def explain_settings(settings_class: type[CommandSettings], env_file: Path | None = None) -> list[dict[str, str]]:
    """Return every setting with its value, the source of the value, the default, and the purpose.

    A value that is or may contain a secret is shown as `set`. If it is in a file of its own, the variable that names
    the file is its source. The public identifiers come first.

    Raises:
        InvalidSettings: the file is malformed.
    """
    in_file = {name.upper(): value for name, value in _read(env_file).items()}
    environment = {name.upper(): value for name, value in os.environ.items()}
    fields = settings_class.model_fields
    records = []
    for name in sorted(fields, key=lambda name: name not in {"resource", "issuer"}):
        variable, default = settings_class.variable(name), fields[name].default
        source = "environment" if variable in environment else "file" if variable in in_file else "default"
        value = {**in_file, **environment}.get(variable)
        if name in settings_class.confidential and f"{variable}{_FILE}" in {**in_file, **environment}:
            source = value = f"{variable}{_FILE}"
        if value is not None:
            value = "set" if name in settings_class.confidential else _shown(value)
        default = "" if default is None else str(default)
        records.append(
            {
                "setting": variable,
                "value": default if value is None else value,
                "source": source,
                "default": default,
                "description": fields[name].description or "",
            }
        )
    return records
