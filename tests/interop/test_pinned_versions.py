"""What the clients are installed from says exactly which they are, and not where they come from."""

import json
import re

from support.interop import FOLDER

EXACT = re.compile(r"\d+\.\d+\.\d+(-[0-9a-z.]+)?")


def test_every_client_is_pinned_and_known_by_its_digest_and_none_by_an_address() -> None:
    manifest = json.loads((FOLDER / "package.json").read_text(encoding="utf-8"))
    asked_for = {**manifest["dependencies"], **manifest["optionalDependencies"]}
    lock = json.loads((FOLDER / "package-lock.json").read_text(encoding="utf-8"))["packages"]
    del lock[""]
    assert len(asked_for) == 6
    for name, version in asked_for.items():
        assert EXACT.fullmatch(version), name
        assert lock[f"node_modules/{name}"]["version"] == version
    assert [path for path, package in lock.items() if "resolved" in package] == []
    assert [path for path, package in lock.items() if not package["integrity"].startswith("sha512-")] == []
