"""Every package that the product imports is declared, with a lower bound that was tested."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
REQUIREMENTS = {requirement.name: requirement for requirement in map(Requirement, PROJECT["dependencies"])}


def canonical(name: str) -> str:
    """Return the normalized name of a distribution (PyPA, "Name normalization")."""
    return re.sub(r"[-_.]+", "-", name).lower()


PINS = {
    canonical(name): version
    for name, version in re.findall(
        r"^([\w.-]+)==(\S+)", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE
    )
}

INDIRECT = {"gunicorn-h1c", "psycopg", "uvloop"}
"""SQLAlchemy and gunicorn import them by name: the driver of a database URL, the HTTP parser, the event loop."""


def imported_modules(file: Path) -> set[str]:
    """Return the top-level names of the modules that a file imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names.add(node.module)
    return {name.partition(".")[0] for name in names}


def imported_distributions() -> set[str]:
    """Return the distributions that contain the modules imported by the product."""
    modules = {
        module
        for folder in ("authserver", "resource", "shared")
        for file in (ROOT / folder).rglob("*.py")
        for module in imported_modules(file)
    } - {"gatehouse", "_typeshed", *sys.stdlib_module_names}
    distributions = packages_distributions()
    return {canonical(distributions[module][0]) for module in modules}


def test_exactly_the_imported_packages_are_declared() -> None:
    assert imported_distributions() | INDIRECT == set(REQUIREMENTS)


@pytest.mark.parametrize("name", sorted(REQUIREMENTS))
def test_a_lower_bound_is_the_pinned_release(name: str) -> None:
    """Only pinned versions are tested, so no older release series is promised."""
    requirement, pinned = REQUIREMENTS[name], Version(PINS[name])
    [lowest] = [Version(bound.version) for bound in requirement.specifier if bound.operator in {">=", "=="}]
    assert pinned in requirement.specifier
    assert lowest.release == pinned.release[: len(lowest.release)]
