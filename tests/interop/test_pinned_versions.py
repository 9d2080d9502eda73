"""The lock file pins every client by version and digest, without download addresses."""

import json
import re
from importlib.metadata import version

from support.interop import DOCUMENT, FOLDER

EXACT = re.compile(r"\d+\.\d+\.\d+(-[0-9a-z.]+)?")
MANIFEST = json.loads((FOLDER / "package.json").read_text(encoding="utf-8"))
CLIENTS = MANIFEST["dependencies"]


def test_every_client_is_pinned_by_version_and_digest() -> None:
    lock = json.loads((FOLDER / "package-lock.json").read_text(encoding="utf-8"))["packages"]
    del lock[""]
    for name, pinned in {**CLIENTS, **MANIFEST["optionalDependencies"]}.items():
        assert EXACT.fullmatch(pinned), name
        assert lock[f"node_modules/{name}"]["version"] == pinned
    assert [path for path, package in lock.items() if "resolved" in package] == []
    assert [path for path, package in lock.items() if not package["integrity"].startswith("sha512-")] == []


def test_the_document_lists_every_client_with_its_version() -> None:
    named = dict(re.findall(r"^\| `([\w@/-]+)` \| (\S+) \|", DOCUMENT, flags=re.MULTILINE))
    named |= dict(re.findall(r"It is `([\w@/-]+)` (\S+),", DOCUMENT))
    assert named == {**CLIENTS, **{name: version(name) for name in ("mcp", "fastmcp-slim")}}
