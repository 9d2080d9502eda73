"""Loads a catalogue by the name of its module, and what the catalogue brings besides tools."""

import importlib
import logging
import re
import sys
from collections.abc import Callable
from pathlib import Path
from traceback import FrameSummary, extract_tb
from types import ModuleType
from typing import Any, TypeVar

import click

from gatehouse.resourceserver.bearer.challenge import baseline_scopes
from gatehouse.resourceserver.catalogue import Catalogue
from gatehouse.resourceserver.catalogue.policy_file import InvalidPolicy, PolicyFile
from gatehouse.resourceserver.catalogue.policy_reading import read_policy
from gatehouse.resourceserver.catalogue.signature import InvalidCatalogue
from gatehouse.resourceserver.settings import Settings
from gatehouse.shared.protocol.redaction import printable
from gatehouse.shared.service.cli import Refusal
from gatehouse.shared.service.migrations import Schema
from gatehouse.shared.service.settings import InvalidSettings

LoadedT = TypeVar("LoadedT")

_PLACED = re.compile(r"\S+\.py:\d+: ")
"""The start of a message that names a file and a line."""

_FORM = 'CATALOGUE = Catalogue("NAME", scopes=[Scope(...)], groups=[tools])'


def load_served(settings: Settings) -> Catalogue:
    """Return the catalogue of the settings. That of an upstream serves no tool until the upstream has listed them.

    Raises:
        Refusal: the module or the policy file cannot be used.
    """
    if settings.upstream is None:
        return load_catalogue(settings.tools)
    # It imports the MCP SDK, which commands for a module import with the module.
    from gatehouse.resourceserver.upstream.serving import unlisted_catalogue  # noqa: PLC0415

    return unlisted_catalogue(load_policy(settings.upstream))


def load_document(settings: Settings) -> dict[str, Any]:
    """Return the catalogue file of the settings. That of an upstream has what its policy says. Raises Refusal."""
    if settings.upstream is None:
        return load_catalogue(settings.tools).document(settings.resource)
    from gatehouse.resourceserver.upstream.serving import unlisted_catalogue  # noqa: PLC0415 - as in load_served

    policy = load_policy(settings.upstream)
    tools = [
        {"name": tool.name, "description": "", "scopes": sorted(tool.scopes), "streaming": True}
        for tool in policy.tools.values()
    ]
    return {**unlisted_catalogue(policy).document(settings.resource), "tools": tools}


def check_policy(settings: Settings, policy: PolicyFile) -> None:
    """Check that a valid policy belongs to the settings, and can be enforced here. Raises InvalidPolicy."""
    from gatehouse.resourceserver.upstream.serving import unlisted_catalogue  # noqa: PLC0415 - as in load_served
    from gatehouse.resourceserver.upstream.stdio.launch import check_launch  # noqa: PLC0415

    if policy.resource not in {None, settings.resource}:
        raise InvalidPolicy(
            f"The policy is for the resource {policy.resource}, and the server is {settings.resource}. Set "
            "RESOURCESERVER_RESOURCE to the resource of the policy, or correct `resource` in the policy."
        )
    check_launch(policy.upstream)
    try:
        baseline_scopes(settings, unlisted_catalogue(policy))
    except (InvalidCatalogue, InvalidSettings) as error:
        raise InvalidPolicy(str(error)) from None


def load_policy(path: Path) -> PolicyFile:
    """Read a policy file. Raises Refusal if it cannot be used."""
    try:
        return read_policy(path)
    except InvalidPolicy as error:
        raise Refusal(unusable(path, error)) from None


def unusable(path: Path, error: InvalidPolicy) -> str:
    """Return what a command says of a policy file that cannot be used."""
    return f"{path} cannot be used as a policy:\n{error}"


def load_catalogue(module_name: str) -> Catalogue:
    """Import a module, also from the working directory, and return its CATALOGUE.

    Raises:
        Refusal: there is no such module, it cannot be imported, or it has no catalogue that can be served.
    """
    # At the end, so that no file in the working directory replaces an installed module.
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)
    module = _import(module_name)
    place = getattr(module, "__file__", None) or module_name
    found = getattr(module, "CATALOGUE", None)
    if found is None:
        raise Refusal(f"{place} has no CATALOGUE. Write at its end: {_FORM}")
    if _is_sdk_server(found):
        raise Refusal(
            f"{place}: CATALOGUE is an MCPServer, which is not protected. "
            "Write: CATALOGUE = guarded_catalogue(server, scopes={...}, declared=[Scope(...)])"
        )
    if not isinstance(found, Catalogue):
        raise Refusal(f"{place}: CATALOGUE is of the type {type(found).__name__}. Write: {_FORM}")
    if not found.scopes:
        raise Refusal(f"{place}: CATALOGUE declares no scope, and no token is issued without a scope. Declare one.")
    return found


def read_resources(catalogue: Catalogue, identifier: str) -> None:
    """Read the resources of a catalogue for a resource identifier. Raises Refusal if one of them cannot be served."""
    try:
        catalogue.contents(identifier)
    except InvalidCatalogue as error:
        raise Refusal(str(error)) from None


def _is_sdk_server(found: object) -> bool:
    # The module that made one has imported the SDK. To import it here would slow down every other command.
    sdk = sys.modules.get("mcp.server.mcpserver")
    return sdk is not None and isinstance(found, sdk.MCPServer)


def load_schema(catalogue: Catalogue) -> Schema | None:
    """Return the schema of a catalogue's own tables. Raises Refusal if it cannot be imported."""
    return _load(catalogue, "migrations", catalogue.load_schema)


def load_command(catalogue: Catalogue) -> click.Command | None:
    """Return the command that a catalogue adds to `resourceserver`. Raises Refusal if it cannot be imported."""
    return _load(catalogue, "command", catalogue.load_command)


def _load(catalogue: Catalogue, what: str, load: Callable[[], LoadedT]) -> LoadedT:
    try:
        return load()
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a module may raise anything
        raise Refusal(_explain(error, f"the {what} of the catalogue {catalogue.name}")) from None


def _import(module_name: str) -> ModuleType:
    # MCPServer of the SDK adds a log handler when it is made, unless the root logger has one. With that handler,
    # commands would print log lines of Alembic and other libraries.
    root, placeholder = logging.getLogger(), logging.NullHandler()
    root.addHandler(placeholder)
    try:
        return importlib.import_module(module_name)
    except InvalidCatalogue as error:
        raise Refusal(_placed(error, module_name)) from None
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module_name}.".startswith(f"{error.name}."):
            raise Refusal(_not_found(module_name)) from None
        remediation = "" if _package_of(error.name or "") else f" Install it for {sys.executable}."
        raise Refusal(f"{_explain(error, module_name)}{remediation}") from None
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a module may raise anything
        raise Refusal(_explain(error, module_name)) from None
    finally:
        root.removeHandler(placeholder)


def _not_found(module_name: str) -> str:
    if (package := _package_of(module_name)) is not None:
        return f"There is no module {module_name} in {package}. Check the spelling."
    return (
        f"There is no module {module_name}. Run the command in the folder that {module_name.partition('.')[0]} is in, "
        "or name that folder in PYTHONPATH."
    )


def _package_of(module_name: str) -> str | None:
    """Return the place of a module's outermost package; None if that package is not installed."""
    top, dot, _ = module_name.partition(".")
    package = sys.modules.get(top) if dot else None
    return None if package is None else getattr(package, "__file__", None) or top


def _placed(error: InvalidCatalogue, module_name: str) -> str:
    """Return the message with file and line, unless it begins with those of a tool."""
    return str(error) if _PLACED.match(str(error)) else f"{_place(error, module_name)}: {error}"


def _explain(error: BaseException, what: str) -> str:
    """Say where an import failed, and why, in one line."""
    reason = printable(str(error).partition("\n")[0].rstrip("."))
    return f"{_place(error, what)}: {what} cannot be loaded: {type(error).__name__}: {reason}."


def _place(error: BaseException, what: str) -> str:
    """Return the file and line of the user's code that failed or that made the failing call, or else `what`."""
    if isinstance(error, SyntaxError) and error.filename is not None:
        return f"{error.filename}:{error.lineno}"
    frames = [frame for frame in extract_tb(error.__traceback__)[1:] if _is_source(frame)]
    if not frames:
        return what
    home = Path(frames[0].filename).parent
    own = [frame for frame in frames if Path(frame.filename).is_relative_to(home)]
    return f"{own[-1].filename}:{own[-1].lineno}"


def _is_source(frame: FrameSummary) -> bool:
    parts = Path(frame.filename).parts
    return not frame.filename.startswith("<") and "importlib" not in parts and "site-packages" not in parts
